/**
 * `npm run simulate`: clusters that are larger than this machine, in numbers. What is assumed comes first.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Command, Flag } from "effect/cli"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { assumptions, show } from "./report.ts"
import { tables } from "./tables.ts"

const command = Command.make("simulate", {
  seed: Flag.Int("seed").pipe(
    Flag.withDescription("The same seed gives the same tables, by default 1"),
    Flag.withDefault(1)
  ),
  json: Flag.Boolean("json").pipe(
    Flag.withDescription("One object a line on stdout, instead of tables"),
    Flag.withDefault(false)
  )
}, ({ json, seed }) =>
  Effect.gen(function*() {
    if (!json) yield* Console.log(`Seed ${seed}. ${assumptions}`)
    yield* Effect.forEach(
      tables(seed),
      (table) => Console.log(json ? JSON.stringify({ seed, ...table }) : show(table)),
      { discard: true }
    )
  })).pipe(
    Command.withDescription("How clusters behave that are larger than this machine, by the figures of the benchmark.")
  )

command.pipe(
  Command.run({ version: "0.1.0" }),
  Effect.provide(NodeServices.layer),
  NodeRuntime.runMain
)

/**
 * `npm run simulate`: clusters that are larger than this machine, in numbers. What is assumed comes first.
 */
import { Command, Flag } from "effect/cli"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { jsonLines, runCommand } from "../shared/commandLine.ts"
import { assumptions, show } from "./report.ts"
import { tables } from "./tables.ts"

const command = Command.make("simulate", {
  seed: Flag.Int("seed").pipe(
    Flag.withDescription("The same seed gives the same tables, by default 1"),
    Flag.withDefault(1)
  ),
  json: jsonLines
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

runCommand(command)

/**
 * Command lines of the scripts: how one is run, and the flags that several have.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Command, Flag } from "effect/cli"
import * as Effect from "effect/Effect"

/** Runs what the user typed. An error that has a message for its user is shown without a stack. */
export const runCommand = <Name extends string, Input, Context, E>(
  command: Command.Command<Name, Input, Context, E, NodeServices.NodeServices>
): void =>
  command.pipe(
    Command.run({ version: "0.1.0" }),
    Effect.provide(NodeServices.layer),
    NodeRuntime.runMain
  )

/** `--json`. */
export const jsonLines = Flag.Boolean("json").pipe(
  Flag.withDescription("One object a line on stdout, instead of tables"),
  Flag.withDefault(false)
)

/** Refuses what is less. */
export const atLeast = (least: number, name: string) =>
  Flag.filter((value: number) => value >= least, (value) => `--${name}: ${least} or more, got ${value}`)

/**
 * `npm run bench -- [scenario...]`: the command line.
 */
import { Argument, Command, Flag } from "effect/cli"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { atLeast, jsonLines, runCommand } from "../shared/commandLine.ts"
import * as Bench from "./bench.ts"
import { BenchError } from "./BenchError.ts"
import * as Commit from "./Commit.ts"
import { others } from "./Registry.ts"
import * as Scale from "./Scale.ts"
import type { Scenario } from "./Scenario.ts"
import { scenarios } from "./scenarios/all.ts"
import * as Server from "./Server.ts"

const namesOf = (all: ReadonlyArray<{ readonly name: string }>) => all.map(({ name }) => name).join(", ")

/** Those that were asked for, in the order of all. */
const choose = <A extends { readonly name: string }>(
  all: ReadonlyArray<A>,
  names: ReadonlyArray<string>,
  what: string
): Effect.Effect<ReadonlyArray<A>, BenchError> => {
  const unknown = names.filter((name) => !all.some((one) => one.name === name))
  return unknown.length === 0
    ? Effect.succeed(all.filter(({ name }) => names.includes(name)))
    : Effect.fail(
      new BenchError({
        message: `There is no ${what} ${unknown.map((name) => `"${name}"`).join(", ")}. There are: ${namesOf(all)}`
      })
    )
}

/** Those that another commit's worker runs by the protocol alone: the others know tables and files of this checkout. */
const comparable = scenarios.filter(({ isOwn }) => isOwn !== true)

const chooseScenarios = Effect.fnUntraced(function*(names: ReadonlyArray<string>, isComparison: boolean) {
  const possible = isComparison ? comparable : scenarios
  if (names.length === 0) return possible
  const chosen: ReadonlyArray<Scenario> = yield* choose(scenarios, names, "scenario")
  const refused = chosen.filter((scenario) => !possible.includes(scenario))
  return refused.length === 0 ? chosen : yield* new BenchError({
    message: `--against does not compare ${namesOf(refused)}. It compares: ${namesOf(comparable)}`
  })
})

const command = Command.make("bench", {
  names: Argument.String("scenario").pipe(
    Argument.withDescription(`Of: ${namesOf(scenarios)}. All of them by default`),
    Argument.variadic()
  ),
  json: jsonLines,
  peers: Flag.String("peers").pipe(
    Flag.withDescription(
      "What to measure beside Millrace, with commas; \"none\": nothing. By default all of them, with --against none"
    ),
    Flag.optional
  ),
  against: Flag.String("against").pipe(
    Flag.withDescription("A commit to compare the working tree with; the exit code is 1 unless it is no worse"),
    Flag.optional
  ),
  jobs: Flag.Int("jobs").pipe(
    Flag.withDescription("Jobs of a drain, by default 100,000; the other scenarios' are in proportion"),
    atLeast(1, "jobs"),
    Flag.optional
  ),
  rounds: Flag.Int("rounds").pipe(
    Flag.withDescription("By default 3, with --against 9"),
    atLeast(1, "rounds"),
    Flag.optional
  ),
  seconds: Flag.Int("seconds").pipe(
    Flag.withDescription("How long the neighbour's load lasts, by default 300"),
    atLeast(1, "seconds"),
    Flag.optional
  ),
  quick: Flag.Boolean("quick").pipe(
    Flag.withDescription("A look in minutes: 10,000 jobs, one round, 30 seconds of load"),
    Flag.withDefault(false)
  ),
  out: Flag.String("out").pipe(
    Flag.withDescription(
      "The file that the results go to, for report.ts. By default coverage/bench.jsonl, with --against coverage/against.jsonl"
    ),
    Flag.optional
  )
}, ({ against, jobs, json, names, out, peers, quick, rounds, seconds }) =>
  Effect.gen(function*() {
    const isComparison = Option.isSome(against)
    const peerNames = Option.getOrElse(peers, () => isComparison ? "none" : others.map(({ name }) => name).join(","))
    const options: Bench.Options = {
      scenarios: yield* chooseScenarios(names, isComparison),
      others: peerNames === "none"
        ? []
        : yield* choose(others, peerNames.split(",").filter((name) => name !== ""), "peer"),
      against: isComparison ? yield* Commit.resolve(against.value) : undefined,
      isJson: json,
      out: Option.getOrElse(out, () => isComparison ? "coverage/against.jsonl" : "coverage/bench.jsonl")
    }
    const scale = Scale.make({
      isQuick: quick,
      isComparison,
      jobs: Option.getOrUndefined(jobs),
      rounds: Option.getOrUndefined(rounds),
      seconds: Option.getOrUndefined(seconds)
    })
    yield* Effect.scoped(Bench.run(options)).pipe(
      Effect.provide(Layer.merge(Server.layer, Layer.succeed(Scale.Scale, scale)))
    )
  })).pipe(
    Command.withDescription(
      "How fast Millrace is on this machine, beside plain SQL and other job systems, or beside an earlier commit."
    )
  )

runCommand(command)

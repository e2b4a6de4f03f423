/**
 * `npm run chaos -- [options]`: the command line. Exits with 0 when every promise was kept, 1 when one was broken, 2 when the run itself
 * failed.
 */
import { Command, Flag } from "effect/cli"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { atLeast, runCommand } from "../shared/commandLine.ts"
import { breakages } from "./breakage.ts"
import { run } from "./run.ts"
import { Fault } from "./schedule.ts"

const positive = (name: string) =>
  Flag.filter((value: number) => value > 0, (value) => `--${name}: above 0, got ${value}`)

const command = Command.make(
  "chaos",
  {
    minutes: Flag.Finite("minutes").pipe(
      Flag.withDescription("How long faults are injected, by default 2"),
      positive("minutes"),
      Flag.withDefault(2)
    ),
    seconds: Flag.Finite("seconds").pipe(
      Flag.withDescription("The same, in seconds"),
      positive("seconds"),
      Flag.optional
    ),
    seed: Flag.Int("seed").pipe(
      Flag.withDescription(
        "The same seed gives the same schedule and the same intents. By default another one each time"
      ),
      Flag.optional
    ),
    schedule: Flag.FileSchema("schedule", Schema.Struct({ schedule: Schema.Array(Fault) }), { format: "json" }).pipe(
      Flag.withDescription(
        "A file with the first line of another run's --json: its faults, or those of them that are left there"
      ),
      Flag.optional
    ),
    json: Flag.Boolean("json").pipe(
      Flag.withDescription("The schedule as a line of JSON, and the result as the last one"),
      Flag.withDefault(false)
    ),
    runtime: Flag.Literals("runtime", ["cluster", "single"]).pipe(
      Flag.withDescription("\"single\": one runner owns all queues, the others stand by. By default they share them"),
      Flag.withDefault("cluster" as const)
    ),
    runners: Flag.Int("runners").pipe(Flag.withDescription("By default 3"), atLeast(1, "runners"), Flag.withDefault(3)),
    submitters: Flag.Int("submitters").pipe(
      Flag.withDescription("By default 2"),
      atLeast(1, "submitters"),
      Flag.withDefault(2)
    ),
    rate: Flag.Finite("rate").pipe(
      Flag.withDescription("Calls of submit a second, of all submitters together. By default 40"),
      positive("rate"),
      Flag.withDefault(40)
    ),
    scenario: Flag.Literals("scenario", ["random", "pause"]).pipe(
      Flag.withDescription(
        "\"pause\": an owner is frozen inside its COMMIT while a successor runs the same job"
      ),
      Flag.withDefault("random" as const)
    ),
    breaks: Flag.Literals("break", breakages).pipe(
      Flag.withDescription("Breaks a promise on purpose, to see the checker find it"),
      Flag.optional
    ),
    netns: Flag.Boolean("netns").pipe(
      Flag.withDescription(
        "The last runner lives in a network of its own, whose cable is pulled now and then. Linux, as root"
      ),
      Flag.withDefault(false)
    ),
    keep: Flag.Boolean("keep").pipe(
      Flag.withDescription("Keeps the folder with data, logs and ledgers"),
      Flag.withDefault(false)
    )
  },
  ({ breaks, json, keep, minutes, netns, rate, runners, runtime, scenario, schedule, seconds, seed, submitters }) =>
    run({
      seed: Option.getOrElse(seed, () => Math.floor(Math.random() * 1_000_000)),
      ms: Option.match(seconds, { onNone: () => minutes * 60_000, onSome: (seconds) => seconds * 1_000 }),
      runtime,
      runners,
      submitters,
      perSecond: rate,
      isJson: json,
      isKept: keep,
      hasNamespace: netns,
      faults: Option.getOrUndefined(schedule)?.schedule,
      scenario,
      breaks: Option.getOrUndefined(breaks)
    }).pipe(
      Effect.map((isKept) => {
        process.exitCode = isKept ? 0 : 1
      })
    )
).pipe(
  Command.withDescription(
    "Runs Millrace while everything around it fails, and has an outside checker count what that cost."
  )
)

runCommand(command)

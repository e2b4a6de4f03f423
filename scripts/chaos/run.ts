/**
 * A run: processes up, faults as scheduled, everything healed, and when all is quiet the checker's verdict. A run that is ended early leaves
 * no process and no folder behind.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import { messageOf } from "../shared/messageOf.ts"
import { statementsOf } from "./breakage.ts"
import { ChaosError } from "./ChaosError.ts"
import type { Verdict } from "./checker/check.ts"
import * as Events from "./Events.ts"
import * as Faults from "./faults.ts"
import { hang, maxAttempts } from "./intents.ts"
import * as Namespace from "./Namespace.ts"
import type { Options } from "./options.ts"
import { pause } from "./pause.ts"
import { type Ground, runnerOf, submitterOf, untilDown, untilUp } from "./places.ts"
import * as Postgres from "./Postgres.ts"
import * as Process from "./Process.ts"
import * as Report from "./report.ts"
import { type Fault, schedule } from "./schedule.ts"
import { partitions, tables } from "./work.ts"

/** When no fault is injected any more: how long there may be jobs and none of them ends. A delayed one waits for half of it. */
const patienceMs = 60_000

/** Injects what is scheduled, each at its time, and heals what lasts longer than the run. */
const injectAll = (options: Options, world: Faults.World, faults: ReadonlyArray<Fault>) =>
  Effect.gen(function*() {
    const counts = new Map<keyof Faults.Counts, number>()
    const from = performance.now()
    const wait = (until: number) => Effect.sleep(Math.max(0, from + until - performance.now()))
    for (const fault of faults) {
      yield* wait(fault.at)
      const words = [fault.kind, ...fault.mode === "" ? [] : [fault.mode], fault.target, `${fault.forMs} ms`].join(" ")
      if (!options.isJson) yield* Console.error(`${(fault.at / 1_000).toFixed(1).padStart(8)} s  ${words}`)
      yield* Faults.inject(world, fault, (name) => counts.set(name, (counts.get(name) ?? 0) + 1)).pipe(
        Effect.tapError((error) => Console.error(`${words}: ${error.message}`)),
        Effect.ignore,
        Effect.forkScoped
      )
    }
    yield* wait(options.ms)
    return counts
  }).pipe(Effect.scoped, Effect.map((counts): Faults.Counts => Object.fromEntries(counts)))

/** Waits until no job is left, or until nothing happens any more: what is left then is the checker's business. */
const untilQuiet = (postgres: Postgres.Postgres) =>
  Effect.gen(function*() {
    let left = Number.POSITIVE_INFINITY
    let changedAt = performance.now()
    while (left > 0 && performance.now() - changedAt < patienceMs) {
      yield* Effect.sleep("500 millis")
      // A job that kills its backend may do so now, too: then there is no answer for a moment.
      const [row] = yield* Effect.orElseSucceed(postgres.query("select count(*) from millrace.jobs"), () => [])
      if (row === undefined) continue
      const count = Number(row[0])
      if (count !== left) changedAt = performance.now()
      left = count
    }
  })

/** The verdict of a process that knows nothing of us. */
const check = (url: string, folder: string) =>
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const { join } = yield* Path.Path
    const file = join(folder, "verdict.json")
    const { code } = yield* Effect.scoped(
      Effect.flatMap(
        Process.start({ script: "checker/check.ts", log: join(folder, "checker.log"), args: [url, folder, file] }),
        ({ ended }) => ended
      )
    )
    if (code !== 0) {
      return yield* new ChaosError({
        message: `the checker failed:\n${Process.lastWords(join(folder, "checker.log"))}`
      })
    }
    const verdict: Verdict = JSON.parse(yield* fs.readFileString(file))
    return verdict
  })

const makeFolder = (isKept: boolean) =>
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const folder = yield* fs.makeTempDirectory({ prefix: "millrace-chaos-" })
    // The server may run under another account, and has to get in.
    yield* fs.chmod(folder, 0o755)
    yield* Effect.addFinalizer(() =>
      isKept
        ? Console.error(`All of the run is in ${folder}`)
        : Effect.ignore(fs.remove(folder, { recursive: true }))
    )
    return folder
  })

/** Runs and answers whether every promise was kept. */
export const run = (options: Options) =>
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const { join } = yield* Path.Path
    const folder = yield* makeFolder(options.isKept)
    const events = Events.open(join(folder, "events.jsonl"))
    yield* fs.writeFileString(join(folder, "terms.json"), JSON.stringify({ maxAttempts, crashLimit: 5, hang }))
    const faults = options.scenario === "pause"
      ? []
      : options.faults ?? schedule({ ...options, isCluster: options.runtime === "cluster" })
    if (options.isJson) yield* Console.log(JSON.stringify({ schedule: faults }))

    const postgres = yield* Postgres.start(folder, events)
    yield* Effect.forEach(tables, postgres.query)
    const namespace = options.hasNamespace ? yield* Namespace.make : undefined
    const ground: Ground = { options, folder, postgres, events, namespace, partitions: { wanted: partitions } }
    const numbers = (count: number) => Array.from({ length: count }, (_, number) => number)
    const runners = yield* Effect.forEach(numbers(options.runners), runnerOf(ground))
    const guest = yield* runnerOf(ground)(options.runners)
    const submitters = yield* Effect.forEach(numbers(options.submitters), submitterOf(ground))
    const world: Faults.World = { ...ground, runners, guest, submitters, frozen: new Set() }

    yield* untilUp(runners.map(({ slot }) => slot))
    if (options.breaks !== undefined) yield* Effect.forEach(statementsOf[options.breaks], postgres.query)
    const monitor = yield* Process.start({
      script: "checker/monitor.ts",
      log: join(folder, "monitor.log"),
      args: [postgres.url, join(folder, "samples.jsonl")]
    })
    yield* monitor.ready

    let counts: Faults.Counts = { freeze: 1 }
    if (options.scenario === "random") yield* untilUp(submitters)
    events.note({ what: "began" })
    if (options.scenario === "pause") yield* pause(world, options.seed, folder)
    else {
      counts = yield* injectAll(options, world, faults)
      yield* untilDown(submitters, (process) => process.tell({ stop: true }))
    }
    yield* untilQuiet(postgres)
    events.note({ what: "quiet" })
    yield* untilDown([...runners, guest].map(({ slot }) => slot), (process) => process.signal("SIGTERM"))
    monitor.signal("SIGTERM")
    yield* monitor.ended
    events.note({ what: "ended" })

    const report: Report.Report = {
      ...yield* check(postgres.url, folder),
      faults: counts,
      seed: options.seed,
      minutes: options.scenario === "pause" ? 0 : Math.round(options.ms / 6_000) / 10,
      runners: options.runners,
      runtime: options.runtime
    }
    if (report.breaches.length > 0) {
      for (const { slot: { number } } of [...runners, guest]) {
        const words = Process.warnings(join(folder, `runner-${number}.log`))
        yield* Console.error([`runner ${number} has said:`, ...words].join("\n"))
      }
    }
    yield* Console.log(options.isJson ? Report.line(report) : Report.show(report))
    return report.breaches.length === 0
  }).pipe(
    Effect.scoped,
    Effect.mapError((error) => error instanceof ChaosError ? error : new ChaosError({ message: messageOf(error) }))
  )

/**
 * A run: processes up, faults as scheduled, everything healed, and when all is quiet the checker's verdict. A run that is ended early leaves
 * no process and no folder behind.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import * as Schedule from "effect/Schedule"
import { type Breakage, statementsOf } from "./breakage.ts"
import { ChaosError, messageOf } from "./ChaosError.ts"
import type { Verdict } from "./checker/check.ts"
import * as Events from "./Events.ts"
import * as Faults from "./faults.ts"
import { maxAttempts } from "./intents.ts"
import * as Namespace from "./Namespace.ts"
import { pause } from "./pause.ts"
import { freePort } from "./port.ts"
import * as Postgres from "./Postgres.ts"
import * as Process from "./Process.ts"
import * as Proxy from "./Proxy.ts"
import * as Report from "./report.ts"
import type { RunnerOptions } from "./runner.ts"
import { type Fault, schedule } from "./schedule.ts"
import { dice } from "./Seed.ts"
import * as Slot from "./Slot.ts"
import type { SubmitterOptions } from "./submitter.ts"
import { partitions, tables } from "./work.ts"

/** What the command line says. */
export interface Options {
  readonly seed: number
  readonly ms: number
  readonly runtime: "cluster" | "single"
  readonly runners: number
  readonly submitters: number
  readonly perSecond: number
  readonly isJson: boolean
  readonly isKept: boolean
  readonly hasNamespace: boolean
  /** Instead of the seed's. */
  readonly faults: ReadonlyArray<Fault> | undefined
  readonly scenario: "random" | "pause"
  readonly breaks: Breakage | undefined
}

/** Shorter runs have no time for a job that kills its process again and again. */
const leastForDying = 180_000

/** When no fault is injected any more: how long there may be jobs and none of them ends. A delayed one waits for half of it. */
const patienceMs = 60_000

const withOptions = (options: object) => ({ CHAOS_OPTIONS: JSON.stringify(options) })

/** What all places of a run share. */
interface Ground {
  readonly options: Options
  readonly folder: string
  readonly postgres: Postgres.Postgres
  readonly events: Events.Events
  readonly namespace: Namespace.Namespace | undefined
  readonly partitions: Faults.World["partitions"]
}

/** How often a runner comes back at another address than it had. */
const movesOften = 0.3

/** A place for a runner with lines of its own: to the database, and from the others under two addresses. */
const runnerOf = ({ events, folder, namespace, options, partitions, postgres }: Ground) => (number: number) =>
  Effect.gen(function*() {
    const { join } = yield* Path.Path
    const own = dice(options.seed, `runner/${number}`)
    // All runners know each other by addresses that are good in all networks of the run.
    const host = namespace?.host ?? Proxy.loopback
    const home = number === options.runners - 1 ? namespace : undefined
    const listen = { host: home?.address ?? Proxy.loopback, port: yield* freePort }
    const database = yield* Proxy.start(host, { host: Proxy.loopback, port: Number(new URL(postgres.url).port) })
    const peers = [yield* Proxy.start(host, listen), yield* Proxy.start(host, listen)] as const
    let [address] = peers
    const slot = yield* Slot.make({
      what: "runner",
      number,
      events,
      dice: own,
      start: (incarnation) =>
        Effect.suspend(() => {
          if (own.chance(movesOften)) address = own.pick(peers)
          return Process.start({
            script: "runner.ts",
            preload: "skew.ts",
            ...home !== undefined && { namespace: home.name },
            log: join(folder, `runner-${number}.log`),
            env: withOptions(
              {
                url: Proxy.through(postgres.url, database),
                runner: number,
                incarnation,
                runtime: options.runtime,
                partitions: partitions.wanted,
                host,
                port: address.port,
                listenHost: listen.host,
                listenPort: listen.port
              } satisfies RunnerOptions
            )
          })
        })
    })
    return { slot, database, peers } satisfies Faults.Runner
  })

const submitterOf = ({ events, folder, options, partitions, postgres }: Ground) => (number: number) =>
  Effect.gen(function*() {
    const { join } = yield* Path.Path
    return yield* Slot.make({
      what: "submitter",
      number,
      events,
      dice: dice(options.seed, `submitter/${number}`),
      start: (incarnation) =>
        Process.start({
          script: "submitter.ts",
          log: join(folder, `submitter-${number}.log`),
          env: withOptions(
            {
              url: postgres.url,
              folder,
              seed: options.seed,
              submitter: number,
              incarnation,
              perSecond: options.perSecond / options.submitters,
              partitions: partitions.wanted,
              dies: number === 0 && options.ms >= leastForDying
            } satisfies SubmitterOptions
          )
        })
    })
  })

const untilUp = (slots: ReadonlyArray<Slot.Slot>) =>
  Effect.forEach(slots, (slot) =>
    Effect.gen(function*() {
      yield* slot.open
      const process = yield* Effect.repeat(Effect.sync(slot.current), {
        until: (process) => process !== undefined,
        schedule: Schedule.spaced("10 millis")
      })
      yield* process?.ready ?? Effect.void
    }), { discard: true, concurrency: "unbounded" })

/** Nobody follows, and whoever is up ends as it is told; killed after a while. */
const untilDown = (slots: ReadonlyArray<Slot.Slot>, tell: (process: Process.Process) => void) =>
  Effect.forEach(slots, (slot) =>
    Effect.gen(function*() {
      yield* slot.close
      const process = slot.current()
      if (process === undefined) return
      tell(process)
      yield* Effect.timeoutOrElse(process.ended, {
        duration: "40 seconds",
        orElse: () => Effect.andThen(Effect.sync(() => process.signal("SIGKILL")), process.ended)
      })
    }), { discard: true, concurrency: "unbounded" })

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
      const [row] = yield* postgres.query("select count(*) from millrace.jobs")
      const count = Number(row?.[0])
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
    yield* fs.writeFileString(join(folder, "terms.json"), JSON.stringify({ maxAttempts, crashLimit: 5 }))
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
    yield* Console.log(options.isJson ? Report.line(report) : Report.show(report))
    return report.breaches.length === 0
  }).pipe(
    Effect.scoped,
    Effect.mapError((error) => error instanceof ChaosError ? error : new ChaosError({ message: messageOf(error) }))
  )

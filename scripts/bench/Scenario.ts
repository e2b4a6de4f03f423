/**
 * A scenario: what is asked of a system, and the steps that most of them share.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { BenchError } from "./BenchError.ts"
import * as Cost from "./Cost.ts"
import type { Sample } from "./measure.ts"
import type { Connect } from "./protocol.ts"
import * as Redis from "./Redis.ts"
import type * as Registry from "./Registry.ts"
import type { Scale } from "./Scale.ts"
import * as Server from "./Server.ts"
import type { Work } from "./System.ts"
import * as WorkerProcess from "./WorkerProcess.ts"

/** One measurement: a system, in a round. */
export interface Turn {
  readonly system: Registry.Entry
  readonly round: number
  readonly redis: Redis.Redis | undefined
}

export interface Scenario {
  readonly name: string
  /** What is measured, in a sentence. */
  readonly what: string
  readonly work: Work
  /** Only Millrace, against itself. */
  readonly isOwn?: boolean
  /** The metric that decides `--against`; by default `cost` (compare.ts). */
  readonly decidedBy?: string
  /** One round says enough, or takes too long for more. */
  readonly isOnce?: boolean
  readonly measure: (
    turn: Turn
  ) => Effect.Effect<ReadonlyArray<Sample>, BenchError, Server.Server | Scale | Scope.Scope>
}

/** A process of its own for a system, which ends afterwards. */
export const inProcess = <A, E, R>(
  { adapter, worker }: Registry.Entry,
  use: (worker: WorkerProcess.Worker) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | BenchError, Exclude<R, Scope.Scope>> =>
  Effect.scoped(Effect.flatMap(WorkerProcess.start(adapter, worker), use))

const open = Effect.fnUntraced(function*<A, E, R>(
  worker: WorkerProcess.Worker,
  connect: Connect,
  use: (worker: WorkerProcess.Worker) => Effect.Effect<A, E, R>
) {
  yield* worker.call("open", connect)
  const result = yield* use(worker)
  yield* worker.call("close", undefined)
  return result
})

/** The same, connected meanwhile. */
export const connected = <A, E, R>(
  system: Registry.Entry,
  connect: Connect,
  use: (worker: WorkerProcess.Worker) => Effect.Effect<A, E, R>
) => inProcess(system, (worker) => open(worker, connect, use))

/** The same, on a database that has nothing of the system's yet. */
export const prepared = <A, E, R>(
  system: Registry.Entry,
  connect: Connect,
  use: (worker: WorkerProcess.Worker) => Effect.Effect<A, E, R>
) => inProcess(system, (worker) => Effect.andThen(worker.call("prepare", connect), open(worker, connect, use)))

/** A fresh database, and an empty Redis. */
export const fresh = Effect.fnUntraced(function*({ redis }: Turn, work: Work) {
  const connect: Connect = { url: yield* Server.database, redis, work }
  if (redis !== undefined) yield* Redis.flush(redis)
  return connect
})

/** Jobs that wait on a fresh database, stored by a process that is gone when they are run. */
export const preload = Effect.fnUntraced(function*(turn: Turn, work: Work, jobs: number) {
  const connect = yield* fresh(turn, work)
  yield* prepared(turn.system, connect, ({ call }) => call("preload", { jobs }))
  yield* Server.settleDown(connect.url)
  return connect
})

/** Processor time a job of one call to a worker, its waiting included. */
export const withCost = Effect.fnUntraced(function*<A, E, R>(
  { call }: WorkerProcess.Worker,
  url: string,
  jobs: number,
  use: Effect.Effect<A, E, R>
) {
  const before = yield* Cost.now(url)
  const { cpuMicros: nodeBefore } = yield* call("progress", undefined)
  const result = yield* use
  const { cpuMicros: nodeAfter } = yield* call("progress", undefined)
  return { result, extra: Cost.perJob(before, yield* Cost.now(url), nodeAfter - nodeBefore, jobs) }
})

/** Jobs a second. */
export const rate = (jobs: number, millis: number): number => jobs / millis * 1_000

/** Runs what waits, and says what that cost a job. */
export const drain = Effect.fnUntraced(function*(
  system: Registry.Entry,
  connect: Connect,
  jobs: number,
  until: "started" | "settled"
) {
  const deadBefore = yield* Cost.deadTuples(connect.url)
  const { after, before, drained } = yield* connected(system, connect, ({ call }) =>
    Effect.gen(function*() {
      const before = yield* Cost.now(connect.url)
      const drained = yield* call("drain", { jobs, until })
      return { before, drained, after: yield* Cost.now(connect.url) }
    }))
  const dead = (yield* Cost.deadTuples(connect.url)) - deadBefore
  const extra: Readonly<Record<string, number>> = {
    ...Cost.perJob(before, after, drained.cpuMicros, jobs),
    "peak RSS MB": drained.peakRssMb,
    "WAL bytes a job": (after.walBytes - before.walBytes) / jobs,
    "dead tuples a job": dead / jobs,
    "first start ms": drained.firstMillis,
    "starts a job": drained.starts / jobs
  }
  return { drained, extra }
})

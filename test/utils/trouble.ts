/**
 * What the tests of a database in trouble share: the runtime in this process, handlers that write a row, and words for what must come of it.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as References from "effect/References"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import { CurrentJob } from "../../src/CurrentJob.ts"
import * as EventBus from "../../src/EventBus.ts"
import * as Job from "../../src/Job.ts"
import type { JobId } from "../../src/JobId.ts"
import * as JobRuntime from "../../src/JobRuntime.ts"
import * as Jobs from "../../src/Jobs.ts"
import * as Postgres from "../../src/Postgres.ts"
import * as RetryPolicy from "../../src/RetryPolicy.ts"
import { untilFinal } from "./child.ts"
import { queue, tables } from "./worker.ts"

/** A handler that has written its row, and the test that decides what comes next. */
export interface Turn {
  readonly jobId: JobId
  /** The backend of its transaction. */
  readonly pid: number
  readonly go: Effect.Effect<void>
  /** Waits until it has ended: `true` when it was interrupted. */
  readonly wasInterrupted: Effect.Effect<boolean>
}

/** The runtime tells at length what it waits for; here that is what is meant to happen. */
export const quiet = Effect.provideService(References.MinimumLogLevel, "None")

/** One attempt each: whatever the database does must not count as one. */
export const retry = RetryPolicy.none

/** Writes a row and returns; with `hold` its transaction stops inside COMMIT while somebody has that advisory lock. */
export class Write extends Job.make("Write", {
  payload: Schema.Struct({ hold: Schema.optionalKey(Schema.Int) }),
  queue: queue(20),
  retry
}) {}

/** Writes a row and waits for its turn's `go`. */
export class Turned extends Job.make("Turned", { queue: queue(20), retry }) {}

export const write = (hold?: number) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient
    const { attempt, jobId } = yield* CurrentJob
    const [row] = yield* sql<{ readonly pid: number }>`
      insert into public.rows (job_id, attempt, pid, hold) values (${jobId}, ${attempt}, pg_backend_pid(), ${
      hold ?? null
    }) returning pid`
    return row?.pid ?? 0
  })

/** The runtime in this process, over a client of the test's choice, watched from outside by `sql`. */
export const start = Effect.fnUntraced(function*(url: string, options: Omit<Postgres.Options, "url"> = {}) {
  // Whatever is set for the database, the test itself can write to it.
  const own = Postgres.layer({ url, startupParameters: { default_transaction_read_only: "off" } })
  const sql = yield* Effect.map(Layer.build(own), (context) => Effect.provide(PgClient, context))
  const client = yield* sql
  for (const statement of tables) yield* client.unsafe(statement)
  const turns = yield* Queue.unbounded<Turn>()
  const handlers = Layer.mergeAll(
    Write.toLayer(({ hold }) => Effect.asVoid(write(hold))),
    Turned.toLayer(() =>
      Effect.gen(function*() {
        const pid = yield* write()
        const { jobId } = yield* CurrentJob
        const go = Deferred.makeUnsafe<void>()
        const wasInterrupted = Deferred.makeUnsafe<boolean>()
        yield* Queue.offer(turns, {
          jobId,
          pid,
          go: Effect.asVoid(Deferred.succeed(go, undefined)),
          wasInterrupted: Deferred.await(wasInterrupted)
        })
        yield* Deferred.await(go).pipe(
          Effect.onExit((exit) => Deferred.succeed(wasInterrupted, exit._tag === "Failure"))
        )
      })
    )
  )
  const context = yield* Layer.build(
    handlers.pipe(
      Layer.provideMerge(JobRuntime.layer({ queues: [queue(20)] })),
      Layer.provideMerge(Postgres.layer({ url, maxConnections: 25, ...options }))
    )
  )
  const jobs = yield* Effect.provide(Jobs.Jobs, context)
  const bus = yield* Effect.provide(EventBus.EventBus, context)
  const completed: Array<string> = []
  yield* bus.stream({ tags: ["JobCompleted"] }).pipe(
    Stream.runForEach(({ jobId }) => Effect.sync(() => completed.push(jobId))),
    Effect.forkScoped({ startImmediately: true })
  )
  /** Events come after the commit, so a status may tell of the end before its event does. */
  const untilCompleted = (count: number) =>
    Effect.sync(() => completed.length).pipe(
      Effect.repeat({ until: (length) => length >= count, schedule: Schedule.spaced("2 millis") }),
      Effect.as(completed)
    )
  return {
    sql: client,
    jobs,
    completed,
    untilCompleted,
    nextTurn: Queue.take(turns),
    /** Runs an effect with the runtime's services. */
    inside: Effect.provide(context)
  }
})

/** The jobs whose handler's row is there. */
export const rowsOf = (sql: PgClient, ids: ReadonlyArray<string>) =>
  Effect.map(
    sql<{ readonly job_id: string }>`select job_id from public.rows where job_id = any(${ids}::uuid[])`,
    (rows) => rows.map(({ job_id }) => job_id)
  )

/** Every one of these has completed in its first attempt and has written exactly once. */
export const assertEachOnce = (sql: PgClient, ids: ReadonlyArray<string>) =>
  Effect.gen(function*() {
    const fates = yield* untilFinal(sql, ids)
    assert.deepStrictEqual(fates.filter(({ attempt, state }) => state !== "completed" || attempt !== 1), [])
    assert.deepStrictEqual((yield* rowsOf(sql, ids)).toSorted(), ids.toSorted())
  })

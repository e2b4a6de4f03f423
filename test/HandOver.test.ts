/**
 * Jobs handed over in memory by the process that submits them: started once, and only what is committed and was not read meanwhile.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as CurrentJob from "../src/CurrentJob.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import type { JobId } from "../src/JobId.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as Jobs from "../src/Jobs.ts"
import { JobStore, tenantKey } from "../src/JobStore.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { layerPostgres, Partitions } from "./utils/partitions.ts"
import { failureOf, makeStops, until } from "./utils/runtime.ts"

const Ten = JobQueue.make("ten", { concurrency: 10 })

/** A type whose handler only says which jobs it was started for. Without a transaction: nothing would undo a start too many. */
const counted = Effect.fnUntraced(function*(type: string) {
  const starts: Array<JobId> = []
  yield* JobHandlers.register(
    type,
    () => Effect.flatMap(CurrentJob.CurrentJob, ({ jobId }) => Effect.sync(() => starts.push(jobId))),
    { transaction: "none", retry: RetryPolicy.none }
  )
  return starts
})

/** The owner looks for everything of this lane again, as its sweep does. */
const sweep = Effect.gen(function*() {
  const store = yield* JobStore
  const { queueId } = yield* store.declareQueue(Ten.name)
  const { of } = yield* Partitions
  yield* of(Ten).wake([{ queueId, partition: 0, lane: 2, tenant: tenantKey(undefined), seq: 0 }])
})

/** Submits a job, runs it to its end: everything ready before it has been read by then, and run. */
const oneMore = Effect.fnUntraced(function*(type: string) {
  const jobs = yield* Jobs.Jobs
  yield* jobs.await(yield* jobs.submit({ type, queue: Ten }))
})

layer(layerPostgres({ queues: [Ten] }), { excludeTestServices: true })("a job in its submitter's hand", (it) => {
  it.effect("is never started when the transaction that submitted it rolls back, alone, in a batch or in a savepoint", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* PgClient
      const starts = yield* counted("rolled back")
      const request = { type: "rolled back", queue: Ten }
      yield* oneMore("rolled back")
      yield* failureOf(sql.withTransaction(Effect.andThen(jobs.submit(request), Effect.fail("no"))))
      yield* failureOf(sql.withTransaction(Effect.andThen(jobs.submit([request, request]), Effect.fail("no"))))
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* sql`select 1`
        yield* failureOf(sql.withTransaction(Effect.andThen(jobs.submit(request), Effect.fail("no"))))
      }))
      // A savepoint that the client knows nothing of.
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* sql`savepoint mine`
        yield* jobs.submit(request)
        yield* sql`rollback to savepoint mine`
      }))
      yield* sweep
      yield* oneMore("rolled back")
      assert.strictEqual(starts.length, 2)
    }))

  it.effect("is started once, also when the owner reads its table at that very moment", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* PgClient
      const starts = yield* counted("once")
      const request = { type: "once", queue: Ten }
      const ids = yield* Effect.forEach(
        Array.from({ length: 300 }, (_, index) => index),
        (index) =>
          Effect.andThen(
            index % 5 === 0 ? sweep : Effect.void,
            index % 2 === 0 ? jobs.submit(request) : sql.withTransaction(jobs.submit(request))
          ),
        { concurrency: 8 }
      )
      yield* Effect.forEach(ids, (id) => jobs.await(id), { concurrency: 20 })
      yield* sweep
      yield* oneMore("once")
      assert.strictEqual(starts.length, 301)
      assert.strictEqual(new Set(starts).size, 301)
    }))

  it.effect("is not read again while it waits, and not while it runs", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      const starts: Array<unknown> = []
      yield* JobHandlers.register("held", (payload) =>
        Effect.andThen(Effect.sync(() => starts.push(payload)), stops.stop(String(payload))), { transaction: "none" })
      yield* counted("before")
      yield* oneMore("before")
      const ids: Array<JobId> = []
      for (let payload = 0; payload < 15; payload++) {
        ids.push(yield* jobs.submit({ type: "held", payload, queue: Ten }))
      }
      // Ten run, five wait.
      yield* stops.arrived("9")
      const late = yield* jobs.submit({ type: "held", payload: 15, queue: Ten })
      yield* sweep
      const { of } = yield* Partitions
      yield* until(Effect.sync(() =>
        of(Ten).view(late) !== undefined
      ))
      yield* stops.release("0")
      yield* jobs.await(ids[0]!)
      yield* sweep
      yield* stops.releaseAll
      yield* Effect.forEach([...ids, late], (id) => jobs.await(id))
      assert.deepStrictEqual(starts, Array.from({ length: 16 }, (_, n) => n))
    }))

  it.effect("is not started again when the owner has read and run it before its submitter tells of it", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* PgClient
      const stops = yield* makeStops
      const starts = yield* counted("late")
      yield* oneMore("late")
      const submitting = yield* Effect.forkScoped(
        sql.withTransaction(Effect.gen(function*() {
          // The word of the commit goes out in turn: this comes before that of the job.
          yield* sql.afterCommit(stops.stop("committed"))
          return yield* jobs.submit({ type: "late", queue: Ten })
        })),
        { startImmediately: true }
      )
      yield* stops.arrived("committed")
      yield* sweep
      yield* until(Effect.map(sql`select 1 from millrace.jobs`, (rows) => rows.length === 0))
      yield* stops.releaseAll
      yield* Fiber.join(submitting)
      yield* oneMore("late")
      assert.strictEqual(starts.length, 3)
      assert.strictEqual(new Set(starts).size, 3)
    }))

  it.effect("is not started when it was cancelled before its submitter tells of it", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* PgClient
      const stops = yield* makeStops
      const starts = yield* counted("cancelled")
      yield* oneMore("cancelled")
      let jobId: JobId | undefined
      const submitting = yield* Effect.forkScoped(
        sql.withTransaction(Effect.gen(function*() {
          yield* sql.afterCommit(stops.stop("committed"))
          jobId = yield* jobs.submit({ type: "cancelled", queue: Ten })
        })),
        { startImmediately: true }
      )
      yield* stops.arrived("committed")
      assert(jobId !== undefined)
      yield* jobs.cancel(jobId)
      yield* stops.releaseAll
      yield* Fiber.join(submitting)
      yield* oneMore("cancelled")
      assert.strictEqual(starts.length, 2)
      assert.notInclude(starts, jobId)
    }))
})

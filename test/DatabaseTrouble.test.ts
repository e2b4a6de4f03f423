/**
 * Guarantees 1, 2 and 10 when the database is in trouble: it restarts, it closes sessions, its answers get lost, it is not there.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import { fatesOf, untilFinal } from "./utils/child.ts"
import { databaseUrl, TestDatabase, TestServer } from "./utils/database.ts"
import { holdLock, untilWaiting } from "./utils/holds.ts"
import { makeLines } from "./utils/lines.ts"
import { epochOf } from "./utils/ownership.ts"
import { makeRecorder } from "./utils/recorder.ts"
import { assertEachOnce, quiet, rowsOf, start, Turned, Write } from "./utils/trouble.ts"

describe("PostgreSQL restarts under load", () => {
  for (const mode of ["fast", "immediate"] as const) {
    it.live(`in mode ${mode}: nothing is lost, nothing is written twice, and the runtime goes on by itself`, () =>
      Effect.gen(function*() {
        const server = yield* TestServer
        const { jobs, sql } = yield* start(server.url)
        const ids: Array<string> = []
        const submitting = yield* Effect.gen(function*() {
          const { jobIds } = yield* jobs.submit(Array.from({ length: 20 }, () => Write.request({}))).pipe(
            Effect.retry({ while: (error) => error.isRetryable })
          )
          ids.push(...jobIds)
        }).pipe(Effect.forever, Effect.forkScoped)
        for (const count of [200, 600]) {
          yield* Effect.sync(() => ids.length).pipe(
            Effect.repeat({ until: (length) => length >= count, schedule: Schedule.spaced("2 millis") })
          )
          yield* server.restart(mode)
        }
        yield* Effect.sync(() => ids.length).pipe(
          Effect.repeat({ until: (length) => length >= 900, schedule: Schedule.spaced("2 millis") })
        )
        yield* Fiber.interrupt(submitting)
        yield* assertEachOnce(sql, ids)
        // The last submission may have been cut short: stored or not, but whole.
        const [left] = yield* sql`select count(*)::int as n from millrace.dead_letters`
        assert.deepStrictEqual(left, { n: 0 })
      }).pipe(Effect.scoped, quiet, Effect.provide(TestServer.layerWith({ synchronous_commit: "on" }))))
  }
})

describe("PostgreSQL restarts while long jobs run", () => {
  it.live(
    "blames nobody: the process has lived on, no crash is counted, and no job ends as a crash loop",
    () =>
      Effect.gen(function*() {
        const server = yield* TestServer
        const { jobs, nextTurn, sql } = yield* start(server.url)
        const id = yield* jobs.submit(Turned.request(undefined))
        // What a crash would be counted from.
        const noted = sql`select id from millrace.running_jobs where id = ${id}`
        let turn = yield* nextTurn
        for (let count = 0; count < 2; count++) {
          yield* Effect.repeat(noted, { until: (rows) => rows.length === 1, schedule: Schedule.spaced("20 millis") })
          yield* server.stop("fast")
          assert.isTrue(yield* turn.wasInterrupted)
          yield* server.start
          turn = yield* nextTurn
          assert.deepInclude((yield* fatesOf(sql, [id]))[0], { state: "live", attempt: 0, crashes: 0 })
        }
        yield* turn.go
        yield* assertEachOnce(sql, [id])
      }).pipe(Effect.scoped, quiet, Effect.provide(TestServer.layerWith({ synchronous_commit: "on" }))),
    60_000
  )
})

describe("the session of a running handler is closed by the server", () => {
  it.live("its attempt counts as one, and its writes are rolled back", () =>
    Effect.gen(function*() {
      const { jobs, nextTurn, sql } = yield* start(yield* databaseUrl)
      const id = yield* jobs.submit(Turned.request(undefined))
      const first = yield* nextTurn
      yield* sql`select pg_terminate_backend(${first.pid}, 5000)`
      yield* first.go
      assert.deepInclude((yield* untilFinal(sql, [id]))[0], { state: "failed", attempt: 1, crashes: 0 })
      assert.deepStrictEqual(yield* rowsOf(sql, [id]), [])
    }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)))

  it.live("inside COMMIT, after its settlement: it did not commit, and counts as an attempt", () =>
    Effect.gen(function*() {
      const { jobs, sql } = yield* start(yield* databaseUrl)
      const { release } = yield* holdLock(sql, 1)
      const id = yield* jobs.submit(Write.request({ hold: 1 }))
      const [session] = yield* untilWaiting(sql)
      yield* sql`select pg_terminate_backend(${session!.pid}, 5000)`
      yield* release
      assert.deepInclude((yield* untilFinal(sql, [id]))[0], { state: "failed", attempt: 1, crashes: 0 })
      assert.deepStrictEqual(yield* rowsOf(sql, [id]), [])
    }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)))
})

describe("the connection is lost during COMMIT", () => {
  it.live("and the server commits: the runtime waits for the old session, finds the outcome, and does not run the job again", () =>
    Effect.gen(function*() {
      const url = yield* databaseUrl
      const lines = makeLines(url)
      const { jobs, sql, untilCompleted } = yield* start(url, { stream: lines.stream })
      const { release } = yield* holdLock(sql, 1)
      const id = yield* jobs.submit(Write.request({ hold: 1 }))
      const [session] = yield* untilWaiting(sql)
      yield* lines.lose(sql, [session!.pid])
      // The old session still waits inside COMMIT, and the refence waits for the old session.
      yield* untilWaiting(sql, 2)
      yield* release
      yield* jobs.await(id)
      yield* assertEachOnce(sql, [id])
      assert.deepInclude((yield* fatesOf(sql, [id]))[0], { version: 0 })
      assert.deepStrictEqual(yield* untilCompleted(1), [id])
    }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)))

  it.live("before the server got it: the first attempt can never commit any more, and the job runs again", () =>
    Effect.gen(function*() {
      const url = yield* databaseUrl
      const lines = makeLines(url)
      const { jobs, nextTurn, sql, untilCompleted } = yield* start(url, { stream: lines.stream })
      const id = yield* jobs.submit(Turned.request(undefined))
      const first = yield* nextTurn
      // Its handler is done: what is written next is its settlement and COMMIT.
      yield* lines.loseAtNextWrite(sql, first.pid)
      yield* first.go
      const second = yield* nextTurn
      assert.strictEqual(second.jobId, id)
      assert.deepStrictEqual(yield* rowsOf(sql, [id]), [])
      // Raised by the refence: no settlement of the first attempt fits the row.
      assert.deepInclude((yield* fatesOf(sql, [id]))[0], { version: 2, attempt: 0, crashes: 1 })
      yield* second.go
      yield* jobs.await(id)
      yield* assertEachOnce(sql, [id])
      assert.deepStrictEqual(yield* untilCompleted(1), [id])
    }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)))

  it.live("again and again, at any moment of a transaction: each job completes once and is announced once", () =>
    Effect.gen(function*() {
      const url = yield* databaseUrl
      const lines = makeLines(url)
      const { completed, jobs, sql, untilCompleted } = yield* start(url, { stream: lines.stream })
      const { jobIds } = yield* jobs.submit(Array.from({ length: 1_000 }, () => Write.request({})))
      const open = sql<{ readonly pid: number }>`
        select pid from pg_stat_activity where datname = current_database() and application_name = 'millrace' and state <> 'idle'
          and pid <> pg_backend_pid()`
      // The first take-over is not what this is about, and may be lost for as long as somebody looks for it.
      yield* untilCompleted(1)
      let lost = 0
      while (lost < 30 && completed.length < jobIds.length) {
        lost += yield* lines.lose(sql, (yield* open).map(({ pid }) => pid))
      }
      assert.isAbove(lost, 0)
      yield* assertEachOnce(sql, jobIds)
      assert.deepStrictEqual((yield* untilCompleted(jobIds.length)).toSorted(), jobIds.toSorted())
    }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)))
})

describe("two make the first partition of a day at the same time", () => {
  it.live("the job whose settlement came second completes in its first attempt", () =>
    Effect.gen(function*() {
      const { jobs, sql } = yield* start(yield* databaseUrl)
      const other = yield* sql.reserve
      const run = (statement: string) => other.executeUnprepared(statement, [], undefined)
      yield* run("begin")
      // Where the first job to complete goes: it is kept for seven days.
      yield* run(
        "select millrace.ensure_partition((now() at time zone 'utc')::date + n) from generate_series(7, 8) as n"
      )
      const id = yield* jobs.submit(Write.request({}))
      yield* untilWaiting(sql)
      yield* run("commit")
      yield* jobs.await(id)
      yield* assertEachOnce(sql, [id])
    }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)))
})

describe("the answer to a submission is lost", () => {
  it.live("what was stored is not stored twice, and the caller gets its ids", () =>
    Effect.gen(function*() {
      const url = yield* databaseUrl
      const recorder = makeRecorder(url)
      const { jobs, sql } = yield* start(url, { stream: recorder.stream })
      recorder.cutAt = "insert into millrace.jobs"
      const submitting = yield* Effect.forkScoped(
        jobs.submit(Array.from({ length: 50 }, () => Write.request({}, { runAt: Date.UTC(2100) })))
      )
      const stored = sql<{ readonly id: string }>`select id from millrace.jobs`
      yield* Effect.repeat(stored, { until: (rows) => rows.length > 0, schedule: Schedule.spaced("2 millis") })
      recorder.cutAt = undefined
      const { jobIds } = yield* Fiber.join(submitting)
      assert.deepStrictEqual((yield* stored).map(({ id }) => id).toSorted(), jobIds.toSorted())
      assert.strictEqual(jobIds.length, 50)
    }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)))
})

describe("the sessions that hold the shard locks are closed by the server", () => {
  it.live("running attempts are interrupted, a new epoch takes over, and nothing commits twice", () =>
    Effect.gen(function*() {
      const { jobs, nextTurn, sql } = yield* start(yield* databaseUrl)
      const epoch = epochOf(sql)
      const id = yield* jobs.submit(Turned.request(undefined))
      const first = yield* nextTurn
      const before = yield* epoch
      yield* sql`select pg_terminate_backend(pid, 5000) from pg_stat_activity
        where datname = current_database() and application_name = 'millrace locks'`
      assert.isTrue(yield* first.wasInterrupted)
      const second = yield* nextTurn
      assert.strictEqual(second.jobId, id)
      assert.isAbove(yield* epoch, before)
      assert.deepStrictEqual(yield* rowsOf(sql, [id]), [])
      yield* second.go
      yield* assertEachOnce(sql, [id])
    }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)))
})

describe("the database is not there", () => {
  it.live("a submission fails with StoreUnavailable, nothing of it is stored, and the same one works later", () =>
    Effect.gen(function*() {
      const server = yield* TestServer
      const { jobs, sql } = yield* start(server.url)
      const before = yield* jobs.submit(Write.request({}))
      yield* untilFinal(sql, [before])
      yield* server.stop("fast")
      const request = Write.request({})
      const error = yield* Effect.flip(jobs.submit(request))
      assert.strictEqual(error._tag, "SubmitError")
      assert.strictEqual(error.reason._tag, "StoreUnavailable")
      assert.isTrue(error.isRetryable)
      for (const operation of ["status", "await", "cancel", "replayJob"] as const) {
        const asked: Effect.Effect<unknown, { readonly _tag: string; readonly message: string }> = jobs[operation](
          before
        )
        const unknown = yield* Effect.flip(asked)
        assert.strictEqual(unknown._tag, "StoreUnavailable")
        assert.include(unknown.message, `did not answer during ${operation}:`)
      }
      yield* server.start
      const id = yield* jobs.submit(request).pipe(Effect.retry({ while: ({ isRetryable }) => isRetryable }))
      yield* assertEachOnce(sql, [id])
      const everything = yield* sql`select id from millrace.jobs union all select id from millrace.finished_jobs`
      assert.strictEqual(everything.length, 2)
      assert.deepInclude((yield* fatesOf(sql, [before]))[0], { state: "completed" })
    }).pipe(Effect.scoped, quiet, Effect.provide(TestServer.layerWith({ synchronous_commit: "on" }))))
})

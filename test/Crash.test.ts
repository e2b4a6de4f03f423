/**
 * Guarantees 1, 2, 3 and 12 when a process is killed: nothing is lost, exactly once in the database, at least once outside of it, and a
 * job that kills its process never takes its neighbours along.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Jobs from "../src/Jobs.ts"
import { fatesOf, restartUntil, rowsOf, startWorker, untilFinal } from "./utils/child.ts"
import { databaseUrl } from "./utils/database.ts"
import { holdLock, terminate, untilWaiting } from "./utils/holds.ts"
import { submittingTo } from "./utils/submitting.ts"
import { batchSizes, Die, DieLate, Hold, Idle, Outside, Slow, slowQueue, Write } from "./utils/worker.ts"

const submitting = submittingTo(1, slowQueue)

/** A job behind these: once it has run, a worker has had every chance to run them too. */
const runOneMore = Effect.gen(function*() {
  const id = yield* Effect.flatMap(Jobs.Jobs, (jobs) => jobs.submit(Write.request({})))
  yield* untilFinal(yield* PgClient, [id])
})

describe("a process that is killed with SIGKILL", () => {
  it.live("while it submits loses nothing that was acknowledged, and leaves no part of a batch", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const url = yield* databaseUrl
      const submitter = yield* startWorker({ url, role: "submitter" })
      yield* submitter.until("submitted", { count: 60 })
      yield* submitter.kill
      const acknowledged = (yield* submitter.until("submitted")).flatMap(({ jobIds }) => jobIds)
      const stored = yield* sql<{ readonly id: string; readonly batch: string | null }>`
        select id, batch_id as batch from millrace.jobs`
      const ids = new Set(stored.map(({ id }) => id))
      assert.deepStrictEqual(acknowledged.filter((id) => !ids.has(id)), [])
      const batches = Map.groupBy(stored.filter(({ batch }) => batch !== null), ({ batch }) => batch)
      const torn = [...batches.values()].filter(({ length }) => !batchSizes.some((size) => size === length))
      assert.deepStrictEqual(torn, [])
      assert.isAbove(batches.size, 1)

      yield* startWorker({ url })
      const fates = yield* untilFinal(sql, [...ids])
      assert.deepStrictEqual(fates.filter(({ attempt, state }) => state !== "completed" || attempt !== 1), [])
      assert.strictEqual((yield* rowsOf(sql, [...ids])).length, ids.size)
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("while a handler runs leaves none of the handler's writes; the next process runs the job, once", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const url = yield* databaseUrl
      const jobs = yield* Jobs.Jobs
      const id = yield* jobs.submit(Hold.request(undefined))
      const first = yield* startWorker({ url })
      yield* first.until("holding", { jobId: id })
      yield* first.kill
      assert.deepStrictEqual(yield* rowsOf(sql, [id]), [])
      const second = yield* startWorker({ url })
      yield* second.tell({ tell: "go", jobId: id })
      assert.strictEqual(yield* jobs.await(id, Hold), second.pid)
      assert.deepStrictEqual(yield* rowsOf(sql, [id]), [{ job_id: id, attempt: 1, pid: second.pid }])
      assert.strictEqual((yield* jobs.status(id)).attempts, 1)
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("between a handler's last statement and the commit leaves nothing; the next process runs the job, once", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const url = yield* databaseUrl
      const jobs = yield* Jobs.Jobs
      const { release } = yield* holdLock(sql, 1)
      const id = yield* jobs.submit(Write.request({ hold: 1 }))
      const first = yield* startWorker({ url })
      yield* first.until("returning", { jobId: id })
      // Its settlement is done; COMMIT waits in the server for what is deferred to it.
      const [session] = yield* untilWaiting(sql)
      assert.isDefined(session)
      yield* first.kill
      // The server finds out that its client is gone by itself, within seconds; here at once.
      yield* terminate(sql, session.pid)
      assert.deepStrictEqual(yield* rowsOf(sql, [id]), [])
      yield* release
      const second = yield* startWorker({ url })
      const [fate] = yield* untilFinal(sql, [id])
      assert.deepInclude(fate, { state: "completed", attempt: 1 })
      assert.deepStrictEqual(yield* rowsOf(sql, [id]), [{ job_id: id, attempt: 1, pid: second.pid }])
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("inside COMMIT, by itself: the server gives the dead client's transaction up and the next process is not blocked for ever", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const url = yield* databaseUrl
      const jobs = yield* Jobs.Jobs
      yield* holdLock(sql, 1)
      const id = yield* jobs.submit(Write.request({ hold: 1 }))
      const first = yield* startWorker({ url })
      const [session] = yield* untilWaiting(sql)
      yield* first.kill
      yield* sql`select 1 from pg_stat_activity where pid = ${session!.pid}`.pipe(
        Effect.repeat({ until: (rows) => rows.length === 0, schedule: Schedule.spaced("50 millis") })
      )
      assert.deepInclude((yield* fatesOf(sql, [id]))[0], { state: "live", attempt: 0 })
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("after the commit and before it knows: the job is completed and not run again", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const url = yield* databaseUrl
      const jobs = yield* Jobs.Jobs
      const { release } = yield* holdLock(sql, 1)
      const id = yield* jobs.submit(Write.request({ hold: 1 }))
      const first = yield* startWorker({ url })
      yield* untilWaiting(sql)
      // It cannot read the answer any more.
      yield* first.signal("SIGSTOP")
      yield* release
      const [committed] = yield* untilFinal(sql, [id])
      assert.deepInclude(committed, { state: "completed", attempt: 1, version: 0 })
      yield* first.kill
      const second = yield* startWorker({ url })
      yield* runOneMore
      assert.deepStrictEqual((yield* fatesOf(sql, [id]))[0], committed)
      assert.deepStrictEqual(yield* rowsOf(sql, [id]), [{ job_id: id, attempt: 1, pid: first.pid }])
      assert.isEmpty(second.said.filter((said) => "jobId" in said && said.jobId === id))
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("while the outcomes of many ended handlers wait to be written: every job ends completed, transactional ones exactly once", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const url = yield* databaseUrl
      const jobs = yield* Jobs.Jobs
      const { jobIds: idle } = yield* jobs.submit(Array.from({ length: 200 }, () => Idle.request(undefined)))
      // Their handlers' transactions end in between, each by itself.
      const { jobIds: writing } = yield* jobs.submit(
        Array.from({ length: 20 }, () => Write.request({})),
        { priority: "critical" }
      )
      // Whoever settles any of the others waits.
      const session = yield* sql.reserve
      yield* session.executeUnprepared("begin", [], undefined)
      yield* session.executeUnprepared(
        "select id from millrace.jobs where id = any($1::uuid[]) for update",
        [idle],
        undefined
      )
      const first = yield* startWorker({ url })
      yield* first.until("returning", { count: 60 })
      yield* untilWaiting(sql)
      assert.isAtLeast((yield* fatesOf(sql, idle)).filter(({ state }) => state === "live").length, 150)
      yield* first.kill
      const unwritten = new Set((yield* first.until("returning")).map(({ jobId }) => jobId))
      yield* session.executeUnprepared("rollback", [], undefined)
      const second = yield* startWorker({ url })
      const fates = yield* untilFinal(sql, [...idle, ...writing])
      assert.deepStrictEqual(fates.filter(({ attempt, state }) => state !== "completed" || attempt !== 1), [])
      const rows = yield* rowsOf(sql, writing)
      assert.deepStrictEqual(rows.map(({ job_id }) => job_id).toSorted(), writing.toSorted())
      // At least once outside of it: what had ended and was not written ran again.
      const again = (yield* second.until("returning")).filter(({ jobId }) => unwritten.has(jobId))
      assert.isNotEmpty(again)
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("during a handler without a transaction: what it did stays, and it is done again under the same job id", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const url = yield* databaseUrl
      const jobs = yield* Jobs.Jobs
      const id = yield* jobs.submit(Outside.request(undefined))
      const first = yield* startWorker({ url })
      yield* first.until("holding", { jobId: id })
      yield* first.kill
      const second = yield* startWorker({ url })
      yield* second.tell({ tell: "go", jobId: id })
      const [fate] = yield* untilFinal(sql, [id])
      assert.deepInclude(fate, { state: "completed", attempt: 1 })
      const rows = yield* rowsOf(sql, [id])
      assert.sameMembers(rows.map(({ pid }) => pid), [first.pid, second.pid])
      assert.deepStrictEqual(rows.map(({ attempt }) => attempt), [1, 1])
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("with many jobs running, again and again: all complete, and each has written exactly once", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const url = yield* databaseUrl
      const jobs = yield* Jobs.Jobs
      const { jobIds } = yield* jobs.submit(Array.from({ length: 2_000 }, () => Write.request({})))
      for (const count of [100, 300, 500]) {
        const worker = yield* startWorker({ url })
        yield* worker.until("returning", { count })
        yield* worker.kill
      }
      yield* startWorker({ url })
      const fates = yield* untilFinal(sql, jobIds)
      assert.deepStrictEqual(fates.filter(({ attempt, state }) => state !== "completed" || attempt !== 1), [])
      const rows = yield* rowsOf(sql, jobIds)
      assert.strictEqual(rows.length, jobIds.length)
      assert.strictEqual(new Set(rows.map(({ job_id }) => job_id)).size, jobIds.length)
      assert.isAtLeast(new Set(rows.map(({ pid }) => pid)).size, 4)
    }).pipe(Effect.scoped, Effect.provide(submitting)))
})

describe("a job that kills its process each time", () => {
  it.live(
    "is a dead letter after five crashes, runs alone from the second one on, and its neighbours complete unharmed",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const url = yield* databaseUrl
        const jobs = yield* Jobs.Jobs
        const crashesOf = (id: string) => Effect.map(fatesOf(sql, [id]), ([fate]) => fate?.crashes ?? 0)
        // Runs beside it when the process dies, before anyone knows who is to blame.
        const beside = yield* jobs.submit(Hold.request(undefined))
        const id = yield* jobs.submit(Die.request(undefined))
        const early = yield* restartUntil(
          startWorker({ url }),
          Effect.repeat(crashesOf(id), { until: (crashes) => crashes >= 2, schedule: Schedule.spaced("5 millis") })
        )
        yield* Effect.forEach(early, (worker) => worker.kill, { discard: true })

        // Neighbours that come before it and after it.
        const before = yield* jobs.submit(Array.from({ length: 30 }, () => Write.request({}, { priority: "critical" })))
        const after = yield* jobs.submit(Array.from({ length: 30 }, () => Write.request({})))
        const late = yield* restartUntil(
          Effect.tap(startWorker({ url }), (worker) => worker.tell({ tell: "go", jobId: beside })),
          Effect.repeat(fatesOf(sql, [id]), {
            until: ([fate]) => fate?.state === "failed",
            schedule: Schedule.spaced("5 millis")
          })
        )
        assert.deepInclude((yield* fatesOf(sql, [id]))[0], {
          state: "failed",
          attempt: 0,
          crashes: 5,
          errorTag: "CrashLoop"
        })
        assert.deepStrictEqual(yield* rowsOf(sql, [id]), [])
        const starts = late.flatMap(({ said }) => said).filter((one) => one.say === "started" && one.jobId === id)
        assert.isNotEmpty(starts)
        for (const start of starts) assert.deepInclude(start, { beside: 0, attempt: 1 })

        const [neighbour, ...neighbours] = yield* untilFinal(sql, [beside, ...before.jobIds, ...after.jobIds])
        assert.deepInclude(neighbour, { state: "completed", attempt: 1 })
        // Stored, run and completed: no crash was ever written to them.
        for (const fate of neighbours) assert.deepInclude(fate, { state: "completed", attempt: 1, version: 0 })
        assert.strictEqual((yield* rowsOf(sql, [beside, ...before.jobIds, ...after.jobIds])).length, 61)

        const status = yield* jobs.status(id)
        assert.strictEqual(status.crashes, 5)
        assert.strictEqual(status.attempts, 0)
      }).pipe(Effect.scoped, Effect.provide(submitting)),
    90_000
  )

  it.live(
    "is a dead letter after five crashes, and no job of another queue in the process is given up with it",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const url = yield* databaseUrl
        const jobs = yield* Jobs.Jobs
        const killer = yield* jobs.submit(DieLate.request(undefined))
        const { jobIds } = yield* jobs.submit(Array.from({ length: 6 }, () => Slow.request(undefined)))
        const workers = yield* restartUntil(startWorker({ url, isSlow: true }), untilFinal(sql, [killer, ...jobIds]))
        const [fate, ...fates] = yield* fatesOf(sql, [killer, ...jobIds])
        assert.deepInclude(fate, { state: "failed", attempt: 0, crashes: 5, errorTag: "CrashLoop" })
        for (const neighbour of fates) assert.deepInclude(neighbour, { state: "completed", attempt: 1 })
        assert.strictEqual((yield* rowsOf(sql, jobIds)).length, jobIds.length)
        // Blamed twice at most: as long as nobody knows that it is a suspect.
        const beside = workers.filter(({ said }) =>
          said.some((one) => one.say === "started" && one.jobId === killer && one.beside > 0)
        )
        assert.isAtMost(beside.length, 3)
      }).pipe(Effect.scoped, Effect.provide(submitting)),
    120_000
  )
})

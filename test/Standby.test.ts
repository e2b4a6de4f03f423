/**
 * Guarantees 1, 2 and 10 with several processes on one database: one owns the queues, the others submit and stand by; whoever is superseded
 * cannot commit.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Schedule from "effect/Schedule"
import { JobAlreadyFinal } from "../src/JobError.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Jobs from "../src/Jobs.ts"
import * as RequestContext from "../src/RequestContext.ts"
import { rowsOf, startWorker, untilFinal, type Worker } from "./utils/child.ts"
import { databaseUrl } from "./utils/database.ts"
import { epochOf, ownershipsOf } from "./utils/ownership.ts"
import { submittingTo } from "./utils/submitting.ts"
import { Hold, queue, Write } from "./utils/worker.ts"

const submitting = submittingTo()

/** Waits until the queue has been taken over so many times. */
const untilEpoch = (sql: PgClient, epoch: number) =>
  Effect.repeat(epochOf(sql), { until: (now) => now >= epoch, schedule: Schedule.spaced("10 millis") })

/** The session that holds the shard locks. */
const lockSession = (sql: PgClient) =>
  Effect.map(
    sql<{ readonly pid: number }>`
      select l.pid from pg_locks l join pg_stat_activity a using (pid)
      where l.locktype = 'advisory' and l.granted and a.application_name = 'millrace locks' and a.datname = current_database()
      group by l.pid having count(*) >= 16`,
    (rows) => rows.map(({ pid }) => pid)
  )

/** A worker that owns the queues, and one that stands by. */
const two = Effect.gen(function*() {
  const sql = yield* PgClient
  const url = yield* databaseUrl
  const owner = yield* startWorker({ url })
  yield* untilEpoch(sql, 1)
  const standby = yield* startWorker({ url })
  yield* standby.until("ready")
  return { owner, standby }
})

const startedIn = (worker: Worker) => worker.said.flatMap((said) => said.say === "started" ? [said.jobId] : [])

describe("a second process on the same database", () => {
  it.live("stands by; what it submits is announced, reaches the owner and runs there; it takes over when the owner is killed", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const { owner, standby } = yield* two
      const heard = yield* sql.listen("millrace_wake")
      yield* standby.tell({ tell: "submit", count: 5 })
      const [submitted] = yield* standby.until("submitted")
      const ids = submitted!.jobIds
      yield* Effect.repeat(Queue.take(heard), { until: ({ payload }) => payload.startsWith("[") })
      yield* untilFinal(sql, ids)
      assert.deepStrictEqual(startedIn(owner).toSorted(), ids.toSorted())
      assert.deepStrictEqual(startedIn(standby), [])
      assert.strictEqual(yield* epochOf(sql), 1)

      const jobs = yield* Jobs.Jobs
      const held = yield* jobs.submit(Hold.request(undefined))
      yield* owner.until("holding", { jobId: held })
      yield* owner.kill
      yield* standby.until("holding", { jobId: held })
      yield* standby.tell({ tell: "go", jobId: held })
      assert.strictEqual(yield* jobs.await(held, Hold), standby.pid)
      assert.strictEqual(yield* epochOf(sql), 2)
      assert.deepStrictEqual(yield* rowsOf(sql, [held]), [{ job_id: held, attempt: 1, pid: standby.pid }])
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("cancels what the owner runs: its handler is interrupted, its writes are rolled back, and the row says by whom", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const owner = yield* startWorker({ url: yield* databaseUrl })
      yield* untilEpoch(sql, 1)
      const standby = yield* Layer.build(JobRuntime.layer({ queues: [queue(20)], gracePeriod: 0 }))
      const { cancel, status, submit } = Context.get(standby, Jobs.Jobs)
      const id = yield* submit(Hold.request(undefined))
      yield* owner.until("holding", { jobId: id })
      yield* RequestContext.provide(cancel(id), { userId: "ada" })
      yield* owner.until("interrupted", { jobId: id })
      assert.deepInclude((yield* status(id)).history.at(-1), { move: "cancelled", by: "ada" })
      assert.deepStrictEqual(yield* rowsOf(sql, [id]), [])
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("takes over from an owner that is told to stop, without a pause in between that would need a rescue", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const jobs = yield* Jobs.Jobs
      const { owner, standby } = yield* two
      yield* owner.signal("SIGTERM")
      yield* owner.ended
      const id = yield* jobs.submit(Write.request({}))
      assert.strictEqual(yield* jobs.await(id, Write), standby.pid)
      assert.deepInclude((yield* ownershipsOf(sql))[0], { careful: false })
    }).pipe(Effect.scoped, Effect.provide(submitting)))
})

/** The owner of a job that holds is stopped, and the one that stood by has begun the same job. */
const superseded = Effect.gen(function*() {
  const sql = yield* PgClient
  const { owner, standby } = yield* two
  const id = yield* Effect.flatMap(Jobs.Jobs, (jobs) => jobs.submit(Hold.request(undefined)))
  yield* owner.until("holding", { jobId: id })
  yield* owner.signal("SIGSTOP")
  // The server would close it by itself after ten seconds without a refresh.
  yield* sql`select pg_terminate_backend(pid, 5000) from unnest(${yield* lockSession(sql)}::int[]) as l(pid)`
  yield* standby.until("holding", { jobId: id })
  return { owner, standby, id }
})

describe("an owner that is stopped (SIGSTOP) and superseded", () => {
  it.live("cannot commit what its handler had written: its successor has run the job, and only the successor's row is there", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const jobs = yield* Jobs.Jobs
      const { id, owner, standby } = yield* superseded
      yield* standby.tell({ tell: "go", jobId: id })
      assert.strictEqual(yield* jobs.await(id, Hold), standby.pid)

      // Its handler may return at once; it is told so before it can see that it has lost the lock.
      yield* owner.tell({ tell: "go", jobId: id })
      yield* owner.signal("SIGCONT")
      yield* Effect.raceFirst(owner.until("returning", { jobId: id }), owner.until("interrupted", { jobId: id }))
      // Its transaction has ended: there is no session left with one open.
      yield* sql`select 1 from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'`
        .pipe(
          Effect.repeat({ until: (rows) => rows.length === 0, schedule: Schedule.spaced("10 millis") })
        )
      assert.deepStrictEqual(yield* rowsOf(sql, [id]), [{ job_id: id, attempt: 1, pid: standby.pid }])
      assert.strictEqual((yield* jobs.status(id)).attempts, 1)
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("stops its attempts when it goes on, stands by, and can own the queues again", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const jobs = yield* Jobs.Jobs
      const { id, owner, standby } = yield* superseded
      yield* owner.signal("SIGCONT")
      yield* owner.until("interrupted", { jobId: id })
      yield* standby.tell({ tell: "go", jobId: id })
      assert.strictEqual(yield* jobs.await(id, Hold), standby.pid)
      assert.strictEqual(yield* epochOf(sql), 2)

      yield* standby.kill
      const next = yield* jobs.submit(Write.request({}))
      assert.strictEqual(yield* jobs.await(next, Write), owner.pid)
      assert.strictEqual(yield* epochOf(sql), 3)
    }).pipe(Effect.scoped, Effect.provide(submitting)))
})

describe("a process that only submits (JobRuntime.layerClient)", () => {
  it.live("submits with no worker there; the worker that starts later runs the jobs; status and await work from the client", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const url = yield* databaseUrl
      const jobs = yield* Jobs.Jobs
      const id = yield* jobs.submit(Hold.request(undefined))
      const { jobIds } = yield* jobs.submit(Array.from({ length: 10 }, () => Write.request({})))
      assert.strictEqual((yield* jobs.status(id)).state, "queued")
      const waiting = yield* Effect.forkScoped(jobs.await(id, Hold))
      const worker = yield* startWorker({ url })
      yield* worker.until("holding", { jobId: id })
      yield* untilFinal(sql, jobIds)
      yield* jobs.status(id).pipe(
        Effect.repeat({ until: ({ state }) => state === "running", schedule: Schedule.spaced("20 millis") })
      )
      yield* worker.tell({ tell: "go", jobId: id })
      assert.strictEqual(yield* Fiber.join(waiting), worker.pid)
      const status = yield* jobs.status(id, Hold)
      assert.deepInclude(status, { state: "completed", attempts: 1, crashes: 0, result: worker.pid })
      assert.deepStrictEqual(status.history.map(({ move }) => move), ["submitted", "started", "completed"])
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("cancels what waits in the owner's memory and what runs there, also when the first word to the owner got lost", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const url = yield* databaseUrl
      const jobs = yield* Jobs.Jobs
      const worker = yield* startWorker({ url, concurrency: 1 })
      const running = yield* jobs.submit(Hold.request(undefined))
      yield* worker.until("holding", { jobId: running })
      const waiting = yield* jobs.submit(Write.request({}))
      yield* jobs.cancel(waiting)
      assert.strictEqual((yield* jobs.status(waiting)).state, "cancelled")
      assert.deepStrictEqual(
        yield* Effect.flip(jobs.cancel(waiting)),
        new JobAlreadyFinal({ jobId: waiting, jobState: "cancelled" })
      )
      // Nobody listens now, until the worker sees it.
      yield* sql`select pg_terminate_backend(pid, 5000) from pg_stat_activity
        where datname = current_database() and query like 'LISTEN%'`
      yield* jobs.cancel(running)
      yield* worker.until("interrupted", { jobId: running })
      assert.deepStrictEqual(startedIn(worker), [running])
      assert.deepStrictEqual(yield* rowsOf(sql, [running, waiting]), [])
      const next = yield* jobs.submit(Write.request({}))
      assert.strictEqual(yield* jobs.await(next, Write), worker.pid)
    }).pipe(Effect.scoped, Effect.provide(submitting)))
})

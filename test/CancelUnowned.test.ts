/**
 * `Jobs.cancel` of a queued job: in the table where nobody who lives owns its partition, from any process; by its owner where there is one.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it, layer } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as CancelJob from "../src/internal/cancelJob.ts"
import * as ShardGroups from "../src/internal/shardGroups.ts"
import { clusterPrefix, lockNamespace } from "../src/internal/sql/shards.ts"
import { PartitionUnavailable } from "../src/JobError.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import type { JobId } from "../src/JobId.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Jobs from "../src/Jobs.ts"
import { JobStore, type Message } from "../src/JobStore.ts"
import * as PgJobStore from "../src/PgJobStore.ts"
import * as RequestContext from "../src/RequestContext.ts"
import { rowsOf, startWorker } from "./utils/child.ts"
import { databaseUrl, TestDatabase } from "./utils/database.ts"
import { terminate, untilWaiting } from "./utils/holds.ts"
import { ownershipsOf } from "./utils/ownership.ts"
import { startProgram } from "./utils/programs.ts"
import { failureOf, makeStops, until, untilState } from "./utils/runtime.ts"
import { day, fresh, noted, t0 } from "./utils/storeFixture.ts"
import { submittingTo } from "./utils/submitting.ts"
import { Hold, Outside, Write } from "./utils/worker.ts"

/** Looks once, and asks nobody twice. */
const atOnce = (jobs: Jobs.Jobs["Service"], id: JobId) => Effect.provideService(jobs.cancel(id), CancelJob.Patience, 0)

const movesOf = (jobs: Jobs.Jobs["Service"], id: JobId) =>
  Effect.map(jobs.status(id), ({ history }) => history.map(({ move }) => move))

/** The sessions that hold shard locks. */
const sessions = (sql: PgClient) =>
  sql<{ readonly pid: number }>`
    select distinct l.pid from pg_locks l join pg_stat_activity a using (pid)
    where l.locktype = 'advisory' and l.granted and a.application_name = 'millrace locks' and a.datname = current_database()`

/** A transaction of somebody else's that has got so far, and commits when it is released. */
const open = (sql: PgClient, statement: Effect.Effect<unknown, unknown>) =>
  Effect.gen(function*() {
    const isOpen = yield* Deferred.make<void>()
    const close = yield* Deferred.make<void>()
    const transaction = yield* Effect.forkScoped(
      sql.withTransaction(Effect.gen(function*() {
        yield* statement
        yield* Deferred.succeed(isOpen, undefined)
        yield* Deferred.await(close)
      }))
    )
    yield* Deferred.await(isOpen)
    return { release: Effect.andThen(Deferred.succeed(close, undefined), Fiber.join(transaction)) }
  })

const submitting = submittingTo()

describe("where no worker has ever been", () => {
  it.live("a client cancels what it has submitted, at once, and the history says who it was", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const jobs = yield* Jobs.Jobs
      const [one, two] = [yield* jobs.submit(Write.request({})), yield* jobs.submit(Write.request({}))]
      yield* RequestContext.provide(atOnce(jobs, one), { userId: "ada" })
      const status = yield* jobs.status(one)
      assert.strictEqual(status.state, "cancelled")
      assert.deepInclude(status.history.at(-1), { move: "cancelled", by: "ada" })
      assert.deepInclude(yield* failureOf(atOnce(jobs, one)), { _tag: "JobAlreadyFinal", jobState: "cancelled" })
      // A worker that comes later runs the other one.
      const worker = yield* startWorker({ url: yield* databaseUrl })
      assert.strictEqual(yield* jobs.await(two, Write), worker.pid)
      assert.deepStrictEqual((yield* rowsOf(sql, [one, two])).map((row) => row.job_id), [two])
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("it tells whoever may run the job all the same: a process that has lost its lock and does not know it", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const heard = yield* Effect.flatMap(JobStore, (store) => store.heard)
      const id = yield* jobs.submit(Write.request({}))
      yield* RequestContext.provide(atOnce(jobs, id), { userId: "ada" })
      const isIt = (message: Message) => message._tag === "Cancel" && message.jobId === id && message.by === "ada"
      yield* Effect.repeat(Queue.take(heard), { until: isIt })
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("a row that somebody holds is tried again, and is no failure of the database", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const { jobs } = yield* startProgram(JobRuntime.layerClient({ lockTimeout: "100 millis" }))
      const id = yield* jobs.submit({ type: "any" })
      const { release } = yield* open(sql, sql`select from millrace.jobs where id = ${id} for update`)
      const error = yield* failureOf(atOnce(jobs, id))
      assert.deepStrictEqual(error, new PartitionUnavailable({ entity: "default/0" }))
      assert.include(error.message, "somebody holds the job's row")
      yield* release
      yield* atOnce(jobs, id)
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)))
})

describe("where a worker was", () => {
  it.live("what it ran and what it had in hand is cancelled once it is killed; its successor runs the rest", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const url = yield* databaseUrl
      const jobs = yield* Jobs.Jobs
      const worker = yield* startWorker({ url, concurrency: 1 })
      const running = yield* jobs.submit(Hold.request(undefined))
      yield* worker.until("holding", { jobId: running })
      const [waiting, other] = [yield* jobs.submit(Write.request({})), yield* jobs.submit(Write.request({}))]
      yield* worker.kill
      yield* Effect.forEach([running, waiting], jobs.cancel)
      const successor = yield* startWorker({ url })
      assert.strictEqual(yield* jobs.await(other, Write), successor.pid)
      assert.deepStrictEqual((yield* rowsOf(sql, [running, waiting, other])).map((row) => row.job_id), [other])
      assert.strictEqual((yield* jobs.status(running)).state, "cancelled")
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("frozen, it is asked as long as it holds its lock; without it what it runs is cancelled, and ends when it goes on", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const jobs = yield* Jobs.Jobs
      const worker = yield* startWorker({ url: yield* databaseUrl })
      const [held, outside] = [
        yield* jobs.submit(Hold.request(undefined)),
        yield* jobs.submit(Outside.request(undefined))
      ]
      yield* worker.until("holding", { jobId: held })
      yield* worker.until("holding", { jobId: outside })
      yield* worker.signal("SIGSTOP")
      const ids = [held, outside]
      for (const id of ids) {
        const error = yield* failureOf(atOnce(jobs, id))
        assert.deepStrictEqual(error, new PartitionUnavailable({ entity: "work/0" }))
        assert.isTrue(new PartitionUnavailable({ entity: "work/0" }).isRetryable)
      }
      yield* Effect.forEach(yield* sessions(sql), ({ pid }) => terminate(sql, pid))
      yield* Effect.forEach(ids, (id) => atOnce(jobs, id))
      yield* worker.signal("SIGCONT")
      yield* Effect.forEach(ids, (jobId) => worker.until("interrupted", { jobId }))
      assert.strictEqual(yield* jobs.await(yield* jobs.submit(Write.request({})), Write), worker.pid)
      assert.deepStrictEqual(yield* rowsOf(sql, [held]), [])
      assert.deepStrictEqual(
        yield* Effect.forEach(ids, (id) => Effect.map(jobs.status(id), ({ state }) => state)),
        ["cancelled", "cancelled"]
      )
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("who asks a frozen one goes on until it holds its lock no more, and cancels then", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const jobs = yield* Jobs.Jobs
      const heard = yield* Effect.flatMap(JobStore, (store) => store.heard)
      const worker = yield* startWorker({ url: yield* databaseUrl })
      const held = yield* jobs.submit(Hold.request(undefined))
      yield* worker.until("holding", { jobId: held })
      yield* worker.signal("SIGSTOP")
      const cancelling = yield* Effect.forkChild(jobs.cancel(held))
      yield* Effect.repeat(Queue.take(heard), { until: (message) => message._tag === "Cancel" })
      yield* Effect.forEach(yield* sessions(sql), ({ pid }) => terminate(sql, pid))
      yield* Fiber.join(cancelling)
      assert.strictEqual((yield* jobs.status(held)).state, "cancelled")
      yield* worker.signal("SIGCONT")
      yield* worker.until("interrupted", { jobId: held })
      assert.deepStrictEqual(yield* rowsOf(sql, [held]), [])
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("alive, it is asked: a running job ends there, with its attempt in the history", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const worker = yield* startWorker({ url: yield* databaseUrl })
      const running = yield* jobs.submit(Hold.request(undefined))
      yield* worker.until("holding", { jobId: running })
      yield* jobs.cancel(running)
      yield* worker.until("interrupted", { jobId: running })
      assert.deepStrictEqual(yield* movesOf(jobs, running), ["submitted", "started", "cancelled"])
    }).pipe(Effect.scoped, Effect.provide(submitting)))
})

const Orders = JobQueue.make("orders", { partitionBy: "key", ordered: true })
const Pictures = JobQueue.make("pictures", { partitions: 4, group: "gpu" })
const Letters = JobQueue.make("letters", { partitions: 4 })

const inCluster = (options: JobRuntime.ClusterOptions = {}) =>
  startProgram(
    JobRuntime.layerCluster({ queues: [Letters, Pictures], host: "127.0.0.1", port: 0, gracePeriod: 0, ...options })
  )

const untilOwned = (queue: JobQueue.JobQueue) =>
  Effect.flatMap(PgClient, (sql) =>
    until(Effect.map(
      ownershipsOf(sql, queue.name),
      (all) => all.filter(({ owner }) => owner !== null).length === queue.partitions
    )))

describe("beside workers that are there", () => {
  it.live("a queue of a group that no runner hosts is nobody's", () =>
    Effect.gen(function*() {
      const { jobs } = yield* inCluster()
      yield* untilOwned(Letters)
      const { jobIds } = yield* jobs.submit(Array.from({ length: 8 }, () => ({ type: "any", queue: Pictures })))
      yield* Effect.forEach(jobIds, (id) => atOnce(jobs, id))
      yield* Effect.forEach(jobIds, (id) => Effect.provideService(untilState(id, "cancelled"), Jobs.Jobs, jobs))
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)))

  it.live("a queue that none of them declares is nobody's", () =>
    Effect.gen(function*() {
      yield* inCluster({ queues: [Letters] })
      yield* untilOwned(Letters)
      const client = yield* startProgram(JobRuntime.layerClient({ queues: [Orders] }))
      const id = yield* client.jobs.submit({ type: "any", key: "a", queue: Orders })
      yield* atOnce(client.jobs, id)
      assert.deepStrictEqual(yield* movesOf(client.jobs, id), ["submitted", "cancelled"])
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)))

  it.live("each of their partitions says by which session it is owned, in whatever group it is", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const said = (...queues: ReadonlyArray<JobQueue.JobQueue>) =>
        Effect.gen(function*() {
          yield* Effect.forEach(queues, untilOwned)
          const names = queues.map(({ name }) => name)
          const owned = yield* sql<{ readonly pid: number | null }>`
            select distinct lock_pid as pid from millrace.partitions join millrace.queues on id = queue_id
            where name = any(${names}::text[]) and lock_epoch = epoch`
          assert.deepStrictEqual(owned, yield* sessions(sql))
          assert.strictEqual(owned.length, 1)
        })
      const runner = yield* inCluster({ groups: ["default", "gpu"] })
      yield* said(Letters, Pictures)
      yield* runner.stop
      yield* startProgram(JobRuntime.layer({ queues: [Letters, Pictures, Orders], gracePeriod: 0 }))
      yield* said(Letters, Pictures, Orders)
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)))
})

describe("in an ordered queue", () => {
  it.live("the next of the key runs when a worker comes, whether the one before was ever in hand or not", () =>
    Effect.gen(function*() {
      const client = yield* startProgram(JobRuntime.layerClient({ queues: [Orders] }))
      const stops = yield* makeStops
      const seen: Array<unknown> = []
      const worker = JobRuntime.layer({ queues: [Orders], gracePeriod: 0 })
      const handlers = Layer.effectDiscard(
        JobHandlers.register("step", (payload) => {
          seen.push(payload)
          return stops.stop(String(payload))
        }, { transaction: "none" })
      )
      const start = startProgram(Layer.provideMerge(handlers, worker))
      const submit = (payload: string) => client.jobs.submit({ type: "step", payload, key: "a", queue: Orders })
      const [first, second, third] = [yield* submit("first"), yield* submit("second"), yield* submit("third")]
      yield* atOnce(client.jobs, first)
      const before = yield* start
      yield* stops.arrived("second")
      yield* before.stop
      yield* atOnce(client.jobs, second)
      yield* start
      yield* stops.arrived("third")
      assert.deepStrictEqual(seen, ["second", "third"])
      yield* stops.release("third")
      yield* client.jobs.await(third)
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)))
})

layer(Layer.provideMerge(PgJobStore.layer(), TestDatabase.layer), { excludeTestServices: true, timeout: "60 seconds" })(
  "the store",
  (it) => {
    const cancelled = { entry: noted("cancelled"), now: t0, purgeAt: t0 + day }

    it.effect("takes a partition for owned while the session that held its lock at the take-over holds it", () =>
      Effect.gen(function*() {
        const { queueId, store, stored } = yield* fresh
        const sql = yield* PgClient
        const namespace = lockNamespace(clusterPrefix("millrace")) | 0
        const lock = ShardGroups.lockNumber({ group: ShardGroups.nameOf(3), id: 7 })
        const hold = (session: Effect.Success<typeof sql.reserve>) =>
          session.executeUnprepared(`select pg_advisory_lock(${namespace}, ${lock})::text`, [], undefined)
        const letGo = (session: Effect.Success<typeof sql.reserve>) =>
          session.executeUnprepared("select pg_advisory_unlock_all()::text", [], undefined)
        const [ours, theirs] = [yield* sql.reserve, yield* sql.reserve]
        const take = store.takeOver({ queueId, partition: 0 }, { owner: "a", now: t0, lock })
        const isCancelled = Effect.flatMap(
          Effect.suspend(() => stored()),
          ({ id }) => store.cancel({ ...cancelled, id, version: 0, owner: undefined })
        )

        yield* hold(ours)
        yield* take
        assert.isFalse(yield* isCancelled)
        yield* letGo(ours)
        assert.isTrue(yield* isCancelled)
        // Of somebody who has not taken over.
        yield* hold(theirs)
        assert.isTrue(yield* isCancelled)
        // By code that does not say by which lock.
        yield* sql`update millrace.partitions set epoch = epoch + 1, owner = 'old' where queue_id = ${queueId}`
        assert.isFalse(yield* isCancelled)
        yield* letGo(theirs)
        assert.isFalse(yield* isCancelled)
        // Held by nobody even then: there is no telling.
        yield* take
        assert.isFalse(yield* isCancelled)
      }).pipe(Effect.scoped))

    it.effect("lets whoever takes over wait for a cancellation under way, and read after it", () =>
      Effect.gen(function*() {
        const { owner, readyIds, store, stored, takeOver } = yield* fresh
        const sql = yield* PgClient
        const { id } = yield* stored()
        yield* store.handOver(owner)
        // It has looked who owns the partition, and waits for the row.
        const { release } = yield* open(sql, sql`select from millrace.jobs where id = ${id} for update`)
        const cancelling = yield* Effect.forkChild(store.cancel({ ...cancelled, id, version: 0, owner: undefined }))
        yield* untilWaiting(sql, 1)
        const taking = yield* Effect.forkChild(takeOver())
        yield* untilWaiting(sql, 2)
        yield* release
        assert.isTrue(yield* Fiber.join(cancelling))
        assert.deepStrictEqual(yield* readyIds(yield* Fiber.join(taking)), [])
      }).pipe(Effect.scoped))

    it.effect("waits for a take-over under way, and cancels nothing of the new owner's", () =>
      Effect.gen(function*() {
        const { owner, queueId, stateOf, store, stored } = yield* fresh
        const sql = yield* PgClient
        const { id } = yield* stored()
        yield* store.handOver(owner)
        const { release } = yield* open(
          sql,
          sql`update millrace.partitions set epoch = epoch + 1, owner = 'b' where queue_id = ${queueId}`
        )
        const cancelling = yield* Effect.forkChild(store.cancel({ ...cancelled, id, version: 0, owner: undefined }))
        yield* untilWaiting(sql, 1)
        yield* release
        assert.isFalse(yield* Fiber.join(cancelling))
        assert.strictEqual(yield* stateOf(id), "queued")
      }).pipe(Effect.scoped))
  }
)

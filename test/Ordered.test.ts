/**
 * Queues that keep the order of each key: one job of a key at a time, in the order of submission, whatever happens to those before it.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, layer } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as CurrentJob from "../src/CurrentJob.ts"
import * as Job from "../src/Job.ts"
import { InvalidField, Snooze } from "../src/JobError.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as Jobs from "../src/Jobs.ts"
import { JobStore } from "../src/JobStore.ts"
import { lanes } from "../src/Priority.ts"
import * as RequestContext from "../src/RequestContext.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { layerMemory, layerPostgres, Partitions } from "./utils/partitions.ts"
import { failureOf, makeStops, until, untilState } from "./utils/runtime.ts"
import { newJob } from "./utils/storeFixture.ts"

const Orders = JobQueue.make("orders", { concurrency: 20, partitionBy: "key", ordered: true })
const Narrow = JobQueue.make("narrow", { concurrency: 2, partitionBy: "key", ordered: true })
const Loose = JobQueue.make("loose", { concurrency: 20, partitionBy: "key" })
const queues = [Orders, Narrow, Loose]

class Step extends Job.make("Step", {
  payload: Schema.Struct({ order: Schema.String, n: Schema.Int }),
  queue: Orders,
  key: ({ order }) => order
}) {}

/** What handlers saw: the starts of each key, and the most that ran at once, of a key and in all. */
const makeWatch = () => {
  const running = new Map<string, number>()
  const starts = new Map<string, Array<number>>()
  const most = { ofKey: 0, inAll: 0 }
  const watched = <A, E, R>(key: string, n: number, work: Effect.Effect<A, E, R>) =>
    Effect.suspend(() => {
      const beside = (running.get(key) ?? 0) + 1
      running.set(key, beside)
      starts.set(key, [...starts.get(key) ?? [], n])
      most.ofKey = Math.max(most.ofKey, beside)
      most.inAll = Math.max(most.inAll, [...running.values()].reduce((sum, one) => sum + one, 0))
      return Effect.ensuring(work, Effect.sync(() => running.set(key, (running.get(key) ?? 0) - 1)))
    })
  return { starts, most, watched }
}

const once = RetryPolicy.fixed("1 millis", { maxAttempts: 1 })

const suite = <E>(
  name: string,
  partitions: Layer.Layer<Jobs.Jobs | JobHandlers.JobHandlers | JobStore | Partitions, E>
) =>
  layer(partitions, { excludeTestServices: true, timeout: "60 seconds" })(`an ordered queue, ${name}`, (it) => {
    it.effect("jobs of one key run one after another, as submitted, in whatever lanes; those of others run beside them", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const { most, starts, watched } = makeWatch()
        yield* JobHandlers.register("step", (payload) => {
          const [key, n] = Schema.decodeUnknownSync(Schema.Tuple([Schema.String, Schema.Int]))(payload)
          return watched(key, n, Effect.yieldNow)
        }, { transaction: "none" })
        const keys = Array.from({ length: 12 }, (_, index) => `key-${index}`)
        const ids = yield* Effect.forEach(Array.from({ length: 25 }, (_, n) => n), (n) =>
          Effect.map(
            jobs.submit(keys.map((key, index) => ({
              type: "step",
              queue: Orders,
              key,
              payload: [key, n],
              priority: lanes[(n + index) % 4]!.name
            }))),
            ({ jobIds }) => jobIds
          ))
        yield* Effect.forEach(ids.flat(), (id) => jobs.await(id), { concurrency: "unbounded" })
        assert.strictEqual(most.ofKey, 1)
        assert.isAbove(most.inAll, 1)
        for (const key of keys) assert.deepStrictEqual(starts.get(key), Array.from({ length: 25 }, (_, n) => n), key)
      }))

    it.effect("one that fails holds its key until its last attempt; its dead letter lets the next one go", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const seen: Array<string> = []
        yield* JobHandlers.register("fail", (payload) =>
          Effect.flatMap(CurrentJob.CurrentJob, ({ attempt }) => {
            seen.push(`${String(payload)}:${attempt}`)
            return payload === "bad" ? Effect.fail("no") : Effect.void
          }), { transaction: "none", retry: RetryPolicy.fixed("30 millis", { maxAttempts: 3 }) })
        const submit = (payload: string, key: string) => jobs.submit({ type: "fail", payload, key, queue: Orders })
        const bad = yield* submit("bad", "k")
        const next = yield* submit("next", "k")
        const other = yield* submit("other", "l")
        yield* jobs.await(other)
        yield* jobs.await(next)
        assert.strictEqual((yield* jobs.status(bad)).state, "failed")
        assert.deepStrictEqual(seen.filter((one) => one !== "other:1"), ["bad:1", "bad:2", "bad:3", "next:1"])
      }))

    it.effect("one that snoozes keeps its place", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const seen: Array<unknown> = []
        yield* JobHandlers.register("snooze", (payload) => {
          seen.push(payload)
          return seen.length === 1 ? Effect.fail(new Snooze({ delay: Duration.millis(30) })) : Effect.void
        }, { transaction: "none" })
        const submit = (payload: number) => jobs.submit({ type: "snooze", payload, key: "s", queue: Orders })
        yield* submit(1)
        yield* jobs.await(yield* submit(2))
        assert.deepStrictEqual(seen, [1, 1, 2])
      }))

    it.effect("a cancelled one lets the next one go, whether it runs or waits for its next attempt", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const stops = yield* makeStops
        yield* JobHandlers.register("cancelled", (payload) => stops.stop(String(payload)), { transaction: "none" })
        yield* JobHandlers.register("waits", () => Effect.fail("no"), {
          transaction: "none",
          retry: RetryPolicy.fixed("1 hour", { maxAttempts: 2 })
        })
        const submit = (type: string, payload: string) => jobs.submit({ type, payload, key: "c", queue: Orders })
        const [first, second] = [yield* submit("cancelled", "first"), yield* submit("waits", "second")]
        const third = yield* submit("cancelled", "third")
        yield* stops.arrived("first")
        yield* jobs.cancel(first)
        yield* untilState(second, "retrying")
        yield* jobs.cancel(second)
        // Sooner than any sweep.
        yield* Effect.timeout(stops.arrived("third"), "2 seconds")
        yield* stops.releaseAll
        yield* jobs.await(third)
      }))

    it.effect("a key with more jobs than the mailbox holds nobody else back, not even while its first one waits", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const stops = yield* makeStops
        yield* JobHandlers.register("crowd", () => Effect.void, { transaction: "none" })
        yield* JobHandlers.register("gate", () => stops.stop("gate"), { transaction: "none" })
        yield* jobs.submit({ type: "gate", key: "hot", queue: Narrow })
        yield* stops.arrived("gate")
        const crowd = yield* jobs.submit(
          Array.from({ length: 3_000 }, () => ({ type: "crowd", key: "hot", queue: Narrow }))
        )
        for (let n = 0; n < 5; n++) {
          yield* jobs.await(yield* jobs.submit({ type: "crowd", key: `cold-${n}`, queue: Narrow }))
        }
        const { lanes } = (yield* Partitions).of(Narrow).snapshot()
        assert.isTrue(lanes.every(({ size }) => size === 0))
        yield* stops.releaseAll
        yield* Effect.forEach(crowd.jobIds.slice(0, 20), (id) => jobs.await(id))
      }))

    it.effect("tenants have lines of their own", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const stops = yield* makeStops
        yield* JobHandlers.register("tenants", (payload) => stops.stop(String(payload)), { transaction: "none" })
        const submit = (payload: string, tenantId: string) =>
          RequestContext.provide(jobs.submit({ type: "tenants", payload, queue: Orders, key: "k" }), { tenantId })
        yield* submit("one", "a")
        yield* submit("behind", "a")
        yield* submit("other", "b")
        yield* Effect.forEach(["one", "other"], stops.arrived)
        yield* stops.releaseAll
        yield* stops.arrived("behind")
      }))

    it.effect("a job without a key is refused, which says what to do, and nothing of its batch is stored", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        class Keyless extends Job.make("Keyless", { queue: Orders }) {}
        class ByOrder extends Job.make("ByOrder", {
          payload: Schema.Struct({ order: Schema.String }),
          queue: Orders,
          key: ({ order }) => order
        }) {}
        let runs = 0
        const run = () => Effect.sync(() => void runs++)
        yield* Layer.build(Layer.mergeAll(Keyless.toLayer(run), ByOrder.toLayer(run)))
        yield* JobHandlers.register("keyless", run)
        const wanted = "key: expected a key, by which queue \"orders\" is ordered: "
        const anyKey = "give it with the request, or by a key function of the definition, received nothing"
        for (
          const [request, words] of [
            [{ type: "keyless", queue: Orders }, anyKey],
            [{ type: "keyless", queue: "orders" }, anyKey],
            [Keyless.request(), anyKey],
            [{ type: "Keyless", queue: Orders }, anyKey],
            [
              { type: "ByOrder", queue: Orders, payload: { ordre: "o-1" } },
              "the definition of ByOrder makes one of payloads that fit it (payload.order: expected string, received nothing), received nothing"
            ]
          ] as const
        ) {
          const { isRetryable, message, reason } = yield* failureOf(jobs.submit(request))
          assert.deepStrictEqual([isRetryable, reason._tag, message], [false, "InvalidField", `${wanted}${words}`])
          const ofBatch = yield* failureOf(jobs.submit([{ ...request, key: "k" }, request]))
          assert.strictEqual(ofBatch.message, `[1].${wanted}${words}`)
        }
        const byDefault = yield* failureOf(jobs.submit([{ type: "keyless" }], { queue: Orders }))
        assert.include(byDefault.message, `[0].${wanted}`)
        yield* jobs.await(yield* jobs.submit({ type: "keyless", key: "k", queue: Orders }))
        assert.strictEqual(runs, 1)
      }))

    it.effect("a job that was stored without a key, by a version that took it, runs, and can be replayed", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const store = yield* JobStore
        const partition = (yield* Partitions).of(Orders)
        let runs = 0
        const run = () => Effect.suspend(() => ++runs === 1 ? Effect.fail("no") : Effect.void)
        yield* JobHandlers.register("former", run, { transaction: "none", retry: once })
        const { queueId } = yield* store.declareQueue("orders")
        const now = yield* store.now
        const job = newJob({ queueId, type: "former" })
        const [stored] = yield* store.submit([job], { batchId: undefined, now })
        yield* partition.wake([{ queueId, partition: 0, lane: job.lane, tenant: job.tenant, seq: stored?.seq ?? 0 }])
        yield* untilState(job.id, "failed")
        yield* jobs.replayJob(job.id)
        yield* jobs.await(job.id)
        assert.strictEqual(runs, 2)
      }))

    it.effect("a new owner in the middle of a line goes on with it, and never beside the one before", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const { takeOver } = yield* Partitions
        const { most, starts, watched } = makeWatch()
        yield* JobHandlers.register(
          "moved",
          (payload) => watched("m", Number(payload), Effect.yieldNow),
          { transaction: "none" }
        )
        const { jobIds } = yield* jobs.submit(
          Array.from({ length: 200 }, (_, payload) => ({ type: "moved", payload, key: "m", queue: Orders }))
        )
        yield* until(Effect.sync(() => (starts.get("m") ?? []).length > 50))
        yield* takeOver(Orders)
        yield* Effect.forEach(jobIds, (id) => jobs.await(id))
        // What was not written down by then runs again: its number may come twice, and never after a later one has ended.
        const seen = starts.get("m") ?? []
        assert.deepStrictEqual([...new Set(seen)], Array.from({ length: 200 }, (_, n) => n))
        assert.isAtMost(most.ofKey, 2)
      }))
  })

suite("in memory", layerMemory({ queues }))
suite("on PostgreSQL", layerPostgres({ queues }))

layer(layerPostgres({ queues }), { excludeTestServices: true, timeout: "60 seconds" })("keys", (it) => {
  describe("keys", () => {
    it.effect("come from the definition, or from the request, and are told with the job", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const sql = yield* PgClient
        const given = [
          yield* jobs.submit(Step.request({ order: "o-1", n: 1 })),
          yield* jobs.submit(Step.request({ order: "o-1", n: 2 }, { key: "mine" })),
          yield* jobs.submit({ type: "Step", payload: { order: "o-2", n: 3 }, key: "plain", queue: Orders }),
          yield* jobs.submit(Step.request({ order: "o-1", n: 4 }, { queue: "loose" }))
        ]
        const rows = yield* sql<{ readonly id: string; readonly key: string }>`select id, key from millrace.jobs`
        const keyOf = new Map(rows.map(({ id, key }) => [id, key]))
        assert.deepStrictEqual(given.map((id) => keyOf.get(id)), ["o-1", "mine", "plain", "o-1"])
      }))

    it.effect("that cannot be kept, or mean nothing to the queue, are refused by the name of their field", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        for (const key of ["", "x".repeat(513), "a\0b"]) {
          const { reason } = yield* failureOf(jobs.submit([Step.request({ order: key, n: 1 })]))
          assert(reason instanceof InvalidField)
          assert.deepInclude(reason, { field: "[0].key" })
        }
        const { reason } = yield* failureOf(jobs.submit({ type: "any", key: "k" }))
        assert(reason instanceof InvalidField)
        assert.include(reason.message, `key: expected none: queue "default" goes by job`)
      }))

    it.effect("without order all jobs of a key are in one partition and run beside each other", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const stops = yield* makeStops
        yield* JobHandlers.register("beside", (payload) => stops.stop(String(payload)), { transaction: "none" })
        yield* jobs.submit(["a", "b"].map((payload) => ({ type: "beside", payload, key: "k", queue: Loose })))
        yield* Effect.forEach(["a", "b"], stops.arrived)
        yield* stops.releaseAll
      }))

    it.effect("a job that was stored before and became visible later waits for the one that runs", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const sql = yield* PgClient
        const stops = yield* makeStops
        const { most, starts, watched } = makeWatch()
        yield* JobHandlers.register("late", (payload) => watched("t", Number(payload), stops.stop(String(payload))), {
          transaction: "none",
          retry: once
        })
        const submit = (payload: number) => jobs.submit({ type: "late", payload, key: "t", queue: Orders })
        const early = yield* Effect.forkChild(
          sql.withTransaction(Effect.tap(submit(1), () => Effect.andThen(stops.stop("stored"), Effect.void)))
        )
        yield* stops.arrived("stored")
        yield* submit(2)
        yield* stops.arrived("2")
        yield* stops.release("stored")
        const id = yield* Fiber.join(early)
        yield* submit(3)
        yield* until(Effect.map(jobs.status(id), ({ state }) => state === "queued"))
        yield* stops.release("2")
        yield* stops.arrived("1")
        yield* stops.releaseAll
        yield* jobs.await(id)
        yield* stops.arrived("3")
        assert.deepStrictEqual(starts.get("t"), [2, 1, 3])
        assert.strictEqual(most.ofKey, 1)
      }))
  })
})

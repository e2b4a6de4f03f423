/**
 * Queues whose partitions mean something, and whose count changes while jobs are in them: what is of before runs where it is, what comes goes
 * by the new count, and of one key never two at a time, nor one before another that was submitted earlier.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Job from "../src/Job.ts"
import type { LayoutError } from "../src/JobError.ts"
import type { JobId } from "../src/JobId.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Jobs from "../src/Jobs.ts"
import { JobStore, type StoreError } from "../src/JobStore.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { untilFinal } from "./utils/child.ts"
import { TestDatabase } from "./utils/database.ts"
import { until } from "./utils/runtime.ts"

const lines = (partitions: number) =>
  JobQueue.make("lines", { concurrency: 12, partitions, partitionBy: "key", ordered: true })

class Step extends Job.make("Step", {
  payload: Schema.Struct({ key: Schema.String, n: Schema.Int, isDelayed: Schema.Boolean }),
  queue: lines(2),
  retry: RetryPolicy.fixed("20 millis", { maxAttempts: 3 }),
  error: Schema.Literal("again"),
  transaction: "none",
  key: ({ key }) => key
}) {}

const isMoving = {
  while: (error: LayoutError | StoreError) => error._tag === "LayoutError" && error.reason._tag === "QueueMoving",
  schedule: Schedule.spaced("50 millis")
}

describe("the count of an ordered queue's partitions", () => {
  it.live(
    "changes under its jobs, up and down: those of a key run one at a time, as they were submitted",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const running = new Map<string, number>()
        const done = new Map<string, Array<number>>()
        const failed = new Set<string>()
        const tangles: Array<string> = []
        const StepLive = Step.toLayer(({ isDelayed, key, n }) =>
          Effect.suspend(() => {
            const beside = running.get(key) ?? 0
            if (beside > 0) tangles.push(`${key}: ${n} beside another`)
            running.set(key, beside + 1)
            const isFirst = n % 5 === 0 && !failed.has(`${key} ${n}`)
            failed.add(`${key} ${n}`)
            return Effect.yieldNow.pipe(
              Effect.andThen(isFirst ? Effect.fail("again" as const) : Effect.void),
              Effect.tap(() =>
                Effect.sync(() => {
                  const before = done.get(key) ?? []
                  if (!isDelayed && (before.at(-1) ?? -1) > n) tangles.push(`${key}: ${n} after ${before.at(-1)}`)
                  if (!isDelayed) before.push(n)
                  done.set(key, before)
                })
              ),
              Effect.ensuring(Effect.sync(() => running.set(key, (running.get(key) ?? 1) - 1)))
            )
          })
        )
        const runtime = JobRuntime.layer({ queues: [lines(2)] })
        const context = yield* Layer.build(Layer.fresh(StepLive.pipe(Layer.provideMerge(runtime))))
        const { submit } = Context.get(context, Jobs.Jobs)
        const ids: Array<JobId> = []
        let n = 0
        const keys = Array.from({ length: 10 }, (_, index) => `key ${index}`)
        // A few batches are always on their way.
        const load = Effect.gen(function*() {
          n++
          const { jobIds } = yield* submit([
            ...keys.map((key) => Step.request({ key, n, isDelayed: false })),
            Step.request({ key: keys[n % 10]!, n, isDelayed: true }, { delay: "300 millis" })
          ])
          ids.push(...jobIds)
          yield* untilFinal(sql, ids.slice(-8 * jobIds.length, -7 * jobIds.length))
        }).pipe(Effect.forever)
        const loading = yield* Effect.forkScoped(load)
        const untilMore = (count: number) =>
          Effect.suspend(() => {
            const enough = ids.length + count
            return until(Effect.sync(() => ids.length >= enough))
          })
        const store = Context.get(context, JobStore)
        // Other programs come, each with a count of its own, when they can have it.
        for (const count of [5, 3, 7]) {
          yield* untilMore(100)
          const declared = yield* store.declareQueue("lines", lines(count)).pipe(Effect.retry(isMoving))
          assert.strictEqual(declared.partitions, count)
          // Its first row there has an owner, if not before.
          yield* untilMore(100)
        }
        yield* untilMore(100)
        yield* Fiber.interrupt(loading)
        yield* untilFinal(sql, ids)
        assert.deepStrictEqual(tangles, [])
        assert.strictEqual([...done.values()].flat().length, n * keys.length)
      }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)),
    60_000
  )

  it.live(
    "is not another one while jobs lie by the former: who asks for that works with the one there is, and gets its own then",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const go = yield* Deferred.make<void>()
        const StepLive = Step.toLayer(({ n }) => n === 0 ? Deferred.await(go) : Effect.void)
        const start = (partitions: number) =>
          Layer.build(Layer.fresh(
            StepLive.pipe(Layer.provideMerge(JobRuntime.layer({ queues: [lines(partitions)], gracePeriod: 0 })))
          ))
        const first = yield* start(2)
        const store = Context.get(first, JobStore)
        const { submit } = Context.get(first, Jobs.Jobs)
        const keys = Array.from({ length: 8 }, (_, index) => `key ${index}`)
        const requests = (n: number) => keys.map((key) => Step.request({ key, n, isDelayed: false }))
        const held = yield* submit(requests(0))
        yield* store.declareQueue("lines", lines(4))
        const behind = yield* submit(requests(1))
        // It stands by, and asks again.
        yield* start(5)
        assert.strictEqual((yield* store.declareQueue("lines")).partitions, 4)
        yield* Deferred.succeed(go, undefined)
        yield* until(Effect.map(store.declareQueue("lines"), ({ partitions }) => partitions === 5))
        const last = yield* submit(requests(2))
        const fates = yield* untilFinal(sql, [...held.jobIds, ...behind.jobIds, ...last.jobIds])
        assert.deepStrictEqual(fates.filter(({ attempt, state }) => attempt !== 1 || state !== "completed"), [])
      }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)),
    60_000
  )
})

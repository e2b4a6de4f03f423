/**
 * A count of partitions that cannot be had at the start: the program works with the one there is, and asks again.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Queues from "../../src/internal/queues.ts"
import * as JobQueue from "../../src/JobQueue.ts"
import { JobStore, StoreError } from "../../src/JobStore.ts"
import * as MemoryJobStore from "../../src/MemoryJobStore.ts"

const byTenant = (partitions: number) => JobQueue.make("tenants", { partitions, partitionBy: "tenant" })

/** A store in which nobody gets the lock for a change while `isLocked`. */
const locking = Effect.gen(function*() {
  const inner = yield* JobStore
  const state = { isLocked: true, asked: 0 }
  const lockTimeout = new StoreError({ reason: "LockTimeout", operation: "declareQueue", cause: new Error("locked") })
  const store = JobStore.of({
    ...inner,
    declareQueue: (name, wanted) => {
      if (name !== "tenants" || wanted === undefined) return inner.declareQueue(name, wanted)
      state.asked++
      return state.isLocked ? Effect.fail(lockTimeout) : inner.declareQueue(name, wanted)
    }
  })
  yield* inner.declareQueue("tenants", byTenant(2))
  const start = (queue: JobQueue.JobQueue) =>
    Effect.provide(Queues.Queues, Queues.layer([queue]).pipe(Layer.provide(Layer.succeed(JobStore, store))))
  const stored = Effect.map(inner.declareQueue("tenants"), ({ partitions }) => partitions)
  return { inner, start, state, stored }
})

describe("a count that cannot be had because others hold the table", () => {
  it.effect("is asked for again with each look, until it is there", () =>
    Effect.gen(function*() {
      const { start, state, stored } = yield* locking
      const queues = yield* start(byTenant(5))
      yield* queues.refresh
      assert.strictEqual(yield* stored, 2)
      assert.strictEqual(state.asked, 2)
      state.isLocked = false
      yield* queues.refresh
      assert.strictEqual(yield* stored, 5)
      assert.strictEqual(queues.declared.find(({ row }) => row.name === "tenants")?.row.partitions, 5)
      yield* queues.refresh
      assert.strictEqual(state.asked, 3)
    }).pipe(Effect.provide(MemoryJobStore.layer)))

  it.effect("is not asked for any more once another program has asked for something else", () =>
    Effect.gen(function*() {
      const { inner, start, state, stored } = yield* locking
      const queues = yield* start(byTenant(5))
      yield* inner.declareQueue("tenants", byTenant(3))
      state.isLocked = false
      yield* queues.refresh
      yield* queues.refresh
      assert.strictEqual(yield* stored, 3)
      assert.strictEqual(state.asked, 1)
    }).pipe(Effect.provide(MemoryJobStore.layer)))

  it.effect("lets nobody start by what the queue is not: by job where it goes by tenant", () =>
    Effect.gen(function*() {
      const { start } = yield* locking
      const error = yield* Effect.flip(start(JobQueue.make("tenants", { partitions: 2 })))
      assert.strictEqual(error._tag, "StoreError")
    }).pipe(Effect.provide(MemoryJobStore.layer)))
})

/**
 * A count of partitions that cannot be had at the start: the program works with the one there is, and asks again. A layout that changes
 * meanwhile is told of.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Queues from "../../src/internal/queues.ts"
import { LayoutError, QueueMoving } from "../../src/JobError.ts"
import * as JobQueue from "../../src/JobQueue.ts"
import { JobStore, StoreError } from "../../src/JobStore.ts"
import * as MemoryJobStore from "../../src/MemoryJobStore.ts"
import { type Logged, recordLog } from "../utils/logged.ts"

const byTenant = (partitions: number) => JobQueue.make("tenants", { partitions, partitionBy: "tenant" })

/** A store in which nobody gets the lock for a change while `isLocked`. */
const locking = Effect.gen(function*() {
  const inner = yield* JobStore
  const state: { isLocked: boolean; asked: number; afterChange: Effect.Effect<void> } = {
    isLocked: true,
    asked: 0,
    afterChange: Effect.void
  }
  const lockTimeout = new StoreError({ reason: "LockTimeout", operation: "declareQueue", cause: new Error("locked") })
  const store = JobStore.of({
    ...inner,
    declareQueue: (name, wanted) => {
      if (name !== "tenants" || wanted === undefined) return inner.declareQueue(name, wanted)
      state.asked++
      return state.isLocked
        ? Effect.fail(lockTimeout)
        : Effect.tap(inner.declareQueue(name, wanted), () => state.afterChange)
    }
  })
  yield* inner.declareQueue("tenants", byTenant(2))
  const start = (queue: JobQueue.JobQueue) =>
    Effect.provide(Queues.Queues, Queues.layer([queue]).pipe(Layer.provide(Layer.succeed(JobStore, store))))
  const stored = Effect.map(inner.declareQueue("tenants"), ({ partitions }) => partitions)
  return { inner, start, state, stored }
})

/** Of a queue whose count was changed a moment ago. */
const movingUnless =
  (declareQueue: JobStore["Service"]["declareQueue"]): JobStore["Service"]["declareQueue"] => (name, wanted) =>
    wanted === undefined
      ? declareQueue(name)
      : Effect.fail(new LayoutError({ reason: new QueueMoving({ queue: name, stored: 2, asked: wanted.partitions }) }))

describe("a count that cannot be had because others hold the table", () => {
  it.effect("is warned of by the name of its error", () => {
    const { layer, lines } = recordLog()
    return Effect.gen(function*() {
      const { inner, start } = yield* locking
      yield* start(byTenant(5))
      const moving = { ...inner, declareQueue: movingUnless(inner.declareQueue) }
      yield* Effect.provide(
        Queues.Queues,
        Queues.layer([byTenant(5)]).pipe(Layer.provide(Layer.succeed(JobStore, JobStore.of(moving))))
      )
      assert.deepStrictEqual(lines.map(({ level }) => level), ["Warn", "Warn"])
      assert.match(lines[0]!.text, /^StoreError, LockTimeout: /)
      assert.match(lines[1]!.text, /^LayoutError, QueueMoving: .*asks for 5/)
    }).pipe(Effect.provide(Layer.mergeAll(MemoryJobStore.layer, layer)))
  })

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

describe("a layout that another program has changed", () => {
  const byJob = (partitions: number, group = "default") => JobQueue.make("jobs", { partitions, group })
  const messages = (lines: ReadonlyArray<Logged>) => lines.map(({ level, text }) => `${level}: ${text}`)

  it.effect("is told of once by whoever declares the queue, field by field, and not by who has changed it", () => {
    const { layer, lines } = recordLog()
    return Effect.gen(function*() {
      const inner = yield* JobStore
      const stored = Layer.succeed(JobStore, inner)
      const queues = yield* Effect.provide(Queues.Queues, Queues.layer([byJob(2)]).pipe(Layer.provide(stored)))
      assert.deepStrictEqual(lines, [])
      const other = yield* Effect.provide(Queues.Queues, Queues.layer([byJob(4, "mail")]).pipe(Layer.provide(stored)))
      const changed = `changed partitions from 2 to 4, group from default to mail`
      assert.deepStrictEqual(messages(lines), [`Info: Queue "jobs": this program has ${changed}`])
      yield* Effect.all([queues.refresh, queues.refresh, other.refresh], { concurrency: "unbounded" })
      yield* queues.refresh
      assert.deepStrictEqual(messages(lines.slice(1)), [`Info: Queue "jobs": another program has ${changed}`])
      // Nobody here declares it.
      yield* inner.declareQueue("foreign")
      yield* queues.refresh
      yield* inner.declareQueue("foreign", { ...byJob(3) })
      lines.length = 0
      yield* queues.refresh
      assert.deepStrictEqual(lines, [])
    }).pipe(Effect.provide(Layer.mergeAll(MemoryJobStore.layer, layer)))
  })

  it.effect("is not taken for changed back by an answer that comes late", () => {
    const { layer, lines } = recordLog()
    return Effect.gen(function*() {
      const inner = yield* JobStore
      const late = yield* Latch.make(false)
      let isFirst = true
      const answers = Effect.tap(inner.queues, () => {
        if (!isFirst) return Effect.void
        isFirst = false
        return late.await
      })
      const queues = yield* Effect.provide(
        Queues.Queues,
        Queues.layer([byJob(2)]).pipe(
          Layer.provide(Layer.succeed(JobStore, JobStore.of({ ...inner, queues: answers })))
        )
      )
      const first = yield* Effect.forkChild(queues.refresh, { startImmediately: true })
      assert.isFalse(isFirst)
      yield* inner.declareQueue("jobs", byJob(4))
      lines.length = 0
      yield* queues.refresh
      yield* late.open
      yield* Fiber.join(first)
      assert.strictEqual(queues.declared.find(({ row }) => row.name === "jobs")?.row.partitions, 4)
      assert.strictEqual(lines.length, 1)
    }).pipe(Effect.provide(Layer.mergeAll(MemoryJobStore.layer, layer)))
  })

  it.effect("is not taken for another's while this program hears that its own change is done", () => {
    const { layer, lines } = recordLog()
    return Effect.gen(function*() {
      const { inner, start, state } = yield* locking
      const queues = yield* start(byTenant(5))
      lines.length = 0
      state.isLocked = false
      const [changed, heard] = [yield* Latch.make(false), yield* Latch.make(false)]
      state.afterChange = Effect.andThen(changed.open, heard.await)
      const asking = yield* Effect.forkChild(queues.refresh, { startImmediately: true })
      yield* changed.await
      const looking = yield* Effect.forkChild(queues.refresh, { startImmediately: true })
      yield* heard.open
      yield* Fiber.joinAll([asking, looking])
      assert.strictEqual((yield* inner.declareQueue("tenants")).partitions, 5)
      assert.deepStrictEqual(messages(lines), [
        `Info: Queue "tenants": this program has changed partitions from 2 to 5`
      ])
    }).pipe(Effect.provide(Layer.mergeAll(MemoryJobStore.layer, layer)))
  })
})

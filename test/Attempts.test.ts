/**
 * Hazards of attempts whose handler has ended while their outcome is still being written or told of.
 */
import { assert, layer } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as CurrentJob from "../src/CurrentJob.ts"
import * as EventBus from "../src/EventBus.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as Jobs from "../src/Jobs.ts"
import { StoreError } from "../src/JobStore.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { layerMemory, Partitions } from "./utils/partitions.ts"
import { makeStops, until } from "./utils/runtime.ts"

const Ten = JobQueue.make("ten", { concurrency: 10 })
const Thirty = JobQueue.make("thirty", { concurrency: 30 })

// ------------------------------------------------------------------------------------------------ a bus that is slow

const makeSlowBus = (tag: string) => {
  const isTold = Latch.makeUnsafe(true)
  const told = { count: 0 }
  const bus = Layer.succeed(
    EventBus.EventBus,
    EventBus.EventBus.of({
      publish: (event) =>
        event._tag === tag ? Effect.tap(isTold.await, () => Effect.sync(() => told.count++)) : Effect.void,
      stream: () => Stream.never,
      subscribe: () => Effect.succeed(Stream.never)
    })
  )
  return { bus, isTold, told }
}

const slow = makeSlowBus("JobRetried")

layer(layerMemory({ queues: [Ten], eventBus: slow.bus }), { excludeTestServices: true })(
  "with a bus that is slow",
  (it) => {
    it.effect("a job that runs again before its last attempt has been told of is not forgotten: it is seen, and can be cancelled", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const { of } = yield* Partitions
        const stops = yield* makeStops
        let runs = 0
        yield* JobHandlers.register("again", () => ++runs === 1 ? Effect.fail("again") : stops.stop("second"), {
          retry: RetryPolicy.delays([0, 0])
        })
        yield* slow.isTold.close
        const id = yield* jobs.submit({ type: "again", queue: Ten })
        yield* stops.arrived("second")
        yield* slow.isTold.open
        yield* until(Effect.sync(() => slow.told.count === 1))
        assert.deepStrictEqual(of(Ten).snapshot().running, [id])
        assert.isTrue(of(Ten).view(id)?.isRunning)
        yield* jobs.cancel(id)
        assert.strictEqual((yield* jobs.status(id)).state, "cancelled")
        assert.deepStrictEqual(of(Ten).snapshot().running, [])
      }))
  }
)

// ------------------------------------------------------------------------------------------------ a store that refuses

const refuses = { isOn: false }

layer(
  layerMemory({
    queues: [Ten],
    changeStore: (store) => ({
      ...store,
      settle: (owner, settlements, now) =>
        refuses.isOn
          ? Effect.fail(new StoreError({ reason: "Refused", operation: "settle", cause: new Error("the test's") }))
          : store.settle(owner, settlements, now)
    })
  }),
  { excludeTestServices: true }
)("with a store that refuses every outcome", (it) => {
  const refused = (type: string) =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const ran = yield* Deferred.make<void>()
      const scope = yield* Scope.make()
      yield* JobHandlers.register(type, () => Deferred.succeed(ran, undefined)).pipe(Scope.provide(scope))
      refuses.isOn = true
      const id = yield* jobs.submit({ type, queue: Ten })
      yield* Deferred.await(ran)
      yield* Effect.forEach(Array.from({ length: 20 }), () => Effect.yieldNow, { discard: true })
      return { id, scope }
    })

  it.effect("guarantee 10: a handler that goes does not wait for the minute in which its job is left alone", () =>
    Effect.gen(function*() {
      const { of } = yield* Partitions
      const { id, scope } = yield* refused("refused")
      assert.isTrue(of(Ten).view(id)?.isRunning)
      yield* Scope.close(scope, Exit.void)
      assert.isNotTrue(of(Ten).view(id)?.isRunning)
    }))

  it.effect("nor does whoever cancels that job", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const { id, scope } = yield* refused("refused, cancelled")
      refuses.isOn = false
      yield* Effect.exit(jobs.cancel(id))
      yield* Scope.close(scope, Exit.void)
    }))
})

// ------------------------------------------------------------------------------------------------ handlers and loggers

const failing = Logger.make(({ message }) => {
  if (String(message).includes("No handler")) throw new Error("the logger is broken")
})

layer(
  layerMemory({ queues: [Ten, Thirty] }).pipe(Layer.provideMerge(Logger.layer([failing]))),
  { excludeTestServices: true }
)("in memory", (it) => {
  it.effect("a handler that cancels its own job before it has ever waited ends, and its job is cancelled", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      yield* JobHandlers.register(
        "own end",
        () => Effect.flatMap(CurrentJob.CurrentJob, ({ jobId }) => Effect.andThen(jobs.cancel(jobId), Effect.never))
      )
      const id = yield* jobs.submit({ type: "own end", queue: Ten })
      yield* until(Effect.map(jobs.status(id), ({ state }) => state === "cancelled"))
    }))

  it.effect("a logger that fails neither starts a job twice nor stops the queue", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      const starts: Array<unknown> = []
      yield* JobHandlers.register("gates", () => stops.stop("gate"))
      yield* JobHandlers.register("known", (payload) => Effect.sync(() => starts.push(payload)))
      yield* JobHandlers.register("known and slow", (payload) =>
        Effect.andThen(Effect.sync(() => starts.push(payload)), stops.stop("slow")))
      yield* jobs.submit(Array.from({ length: 30 }, () => ({ type: "gates", queue: Thirty })))
      yield* stops.arrived("gate")
      // One turn of the dispatcher: a type that nobody knows first, one that is still running last.
      yield* jobs.submit({ type: "nobody's", queue: Thirty })
      yield* jobs.submit(Array.from({ length: 62 }, (_, payload) => ({ type: "known", payload, queue: Thirty })))
      yield* jobs.submit({ type: "known and slow", payload: 62, queue: Thirty })
      // Far more than the mailbox holds.
      const { jobIds } = yield* jobs.submit(
        Array.from({ length: 1_000 }, (_, index) => ({ type: "known", payload: 63 + index, queue: Thirty }))
      )
      yield* stops.release("gate")
      yield* stops.arrived("slow")
      yield* Effect.forEach(jobIds, (id) =>
        jobs.await(id), { concurrency: 20 })
      yield* stops.releaseAll
      assert.deepStrictEqual(starts, Array.from({ length: 1_063 }, (_, n) => n))
    }))
})

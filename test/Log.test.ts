/**
 * What an operator reads of runners: a partition that moves, a process that leaves. The words for outages are in DatabaseOutage.test.ts.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as JobHandlers from "../src/JobHandlers.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Jobs from "../src/Jobs.ts"
import { TestDatabase } from "./utils/database.ts"
import { recordLog } from "./utils/logged.ts"
import { until } from "./utils/runtime.ts"

/** Where a partition goes depends on a runner's port: with so many each runner has some. */
const Work = JobQueue.make("work", { concurrency: 320, partitions: 32 })

/** A runner in this process, whose jobs end when the test lets them, and its log. */
const join = Effect.gen(function*() {
  const log = recordLog()
  const runtime = JobRuntime.layerCluster({ queues: [Work], gracePeriod: "1 hour", host: "127.0.0.1", port: 0 })
  const context = yield* Effect.provide(Layer.build(Layer.fresh(runtime)), log.layer)
  const gate = Latch.makeUnsafe(false)
  let running = 0
  const held = Effect.suspend(() => {
    running++
    return Effect.ensuring(gate.await, Effect.sync(() => running--))
  })
  yield* JobHandlers.register("held", () => held, { transaction: "none" }).pipe(Effect.provide(context))
  const { drain } = Context.get(context, JobRuntime.Runner)
  const { submit } = Context.get(context, Jobs.Jobs)
  return {
    ...log,
    gate,
    running: () => running,
    submit: Effect.asVoid(
      Effect.orDie(submit(Array.from({ length: 64 }, () => ({ type: "held", payload: null, queue: Work }))))
    ),
    drain: Effect.provide(drain, log.layer),
    untilSaid: (words: string | RegExp) => until(Effect.sync(() => log.of(words).length > 0))
  }
})

describe("a runner", () => {
  it.live(
    "whose partitions move to one that joins says which, and what becomes of their jobs; one that is told to leave says that it drains",
    () =>
      Effect.gen(function*() {
        const first = yield* join
        yield* first.untilSaid("Taken over: ")
        yield* first.submit
        yield* until(Effect.sync(() => first.running() === 64))
        const second = yield* join
        yield* first.untilSaid(/^work\/\d+ moves to another runner: waiting up to 1h for \d+ running job/)
        yield* first.gate.open
        yield* first.untilSaid(/^Moved to other runners: .*work\/.*; \d+ running jobs? ended$/)
        yield* second.untilSaid("Taken over: ")
        assert.deepStrictEqual([...first.of("Drain"), ...second.of("Drain")], [])

        yield* second.submit
        yield* until(Effect.sync(() => second.running() > 0))
        const [moves, takeOvers] = [second.of("Moved").length, first.of("Taken over").length]
        const draining = yield* Effect.forkChild(second.drain)
        yield* second.untilSaid(/^Draining: .*; \d+ jobs? may run on for up to 1h$/)
        yield* second.gate.open
        yield* Fiber.join(draining)
        assert.strictEqual(second.of(/^Drained in .*: \d+ running jobs? ended$/).length, 1)
        // What moves is told of after as long.
        yield* until(Effect.sync(() => first.of("Taken over").length > takeOvers))
        assert.strictEqual(second.of("Moved").length, moves)
        const stacks = [...first.lines, ...second.lines].filter(({ hasStack }) => hasStack)
        assert.deepStrictEqual(stacks, [])
      }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)),
    60_000
  )
})

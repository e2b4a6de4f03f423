import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as Coalescer from "../../src/internal/coalescer.ts"

/** A coalescer of numbers, each answered by its double, whose runs wait until the test lets them go. */
const held = Effect.fnUntraced(function*(options: { readonly maxBatch: number; readonly maxInFlight: number }) {
  const runs: Array<{ readonly items: ReadonlyArray<number>; readonly go: Deferred.Deferred<void, string> }> = []
  const coalesce = yield* Coalescer.make({
    ...options,
    run: (items: ReadonlyArray<number>) => {
      const go = Deferred.makeUnsafe<void, string>()
      runs.push({ items, go })
      return Effect.as(Deferred.await(go), items.map((item) => item * 2))
    }
  })
  /** Sends without waiting; returns when the item has been taken in. */
  const send = (item: number) => Effect.forkScoped(coalesce(item), { startImmediately: true })
  const untilRuns = (count: number) => Effect.repeat(Effect.yieldNow, { until: () => runs.length >= count })
  return { runs, send, untilRuns }
})

it.effect("an item goes out at once when nothing is under way, the others join the next run in their order", () =>
  Effect.gen(function*() {
    const { runs, send, untilRuns } = yield* held({ maxBatch: 10, maxInFlight: 1 })
    const first = yield* send(1)
    yield* untilRuns(1)
    const fibers = [first, ...yield* Effect.forEach([2, 3, 4], send)]
    assert.deepStrictEqual(runs.map(({ items }) => items), [[1]])
    yield* Deferred.succeed(runs[0]!.go, undefined)
    yield* untilRuns(2)
    assert.deepStrictEqual(runs.map(({ items }) => items), [[1], [2, 3, 4]])
    yield* Deferred.succeed(runs[1]!.go, undefined)
    assert.deepStrictEqual(yield* Effect.forEach(fibers, Fiber.join), [2, 4, 6, 8])
  }))

it.effect("a run takes no more items than it may, and no more runs are under way than may be", () =>
  Effect.gen(function*() {
    const { runs, send, untilRuns } = yield* held({ maxBatch: 2, maxInFlight: 2 })
    const first = yield* send(1)
    yield* untilRuns(1)
    const second = yield* send(2)
    yield* untilRuns(2)
    const fibers = [first, second, ...yield* Effect.forEach([3, 4, 5, 6, 7], send)]
    assert.deepStrictEqual(runs.map(({ items }) => items), [[1], [2]])
    yield* Deferred.succeed(runs[1]!.go, undefined)
    yield* untilRuns(3)
    assert.deepStrictEqual(runs.map(({ items }) => items), [[1], [2], [3, 4]])
    yield* Deferred.succeed(runs[0]!.go, undefined)
    yield* untilRuns(4)
    yield* Deferred.succeed(runs[2]!.go, undefined)
    yield* untilRuns(5)
    assert.deepStrictEqual(runs.slice(2).map(({ items }) => items), [[3, 4], [5, 6], [7]])
    for (const { go } of runs) yield* Deferred.succeed(go, undefined)
    assert.deepStrictEqual(yield* Effect.forEach(fibers, Fiber.join), [2, 4, 6, 8, 10, 12, 14])
  }))

it.effect("a run that fails fails its own items only, and the next ones go out", () =>
  Effect.gen(function*() {
    const { runs, send, untilRuns } = yield* held({ maxBatch: 10, maxInFlight: 1 })
    const first = yield* send(1)
    yield* untilRuns(1)
    const second = yield* send(2)
    yield* Deferred.fail(runs[0]!.go, "no")
    yield* untilRuns(2)
    yield* Deferred.succeed(runs[1]!.go, undefined)
    assert.deepStrictEqual(yield* Fiber.await(first), Exit.fail("no"))
    assert.deepStrictEqual(yield* Fiber.await(second), Exit.succeed(4))
  }))

it.effect("a caller that is interrupted stops waiting, its item is sent all the same", () =>
  Effect.gen(function*() {
    const { runs, send, untilRuns } = yield* held({ maxBatch: 10, maxInFlight: 1 })
    const first = yield* send(1)
    yield* untilRuns(1)
    const second = yield* send(2)
    const third = yield* send(3)
    yield* Fiber.interrupt(first)
    yield* Fiber.interrupt(second)
    yield* Deferred.succeed(runs[0]!.go, undefined)
    yield* untilRuns(2)
    assert.deepStrictEqual(runs[1]!.items, [2, 3])
    yield* Deferred.succeed(runs[1]!.go, undefined)
    assert.strictEqual(yield* Fiber.join(third), 6)
  }))

const broken: ReadonlyArray<readonly [string, (items: ReadonlyArray<number>) => Effect.Effect<ReadonlyArray<number>>]> =
  [
    ["dies", () => Effect.die("boom")],
    ["throws", () => {
      throw new Error("boom")
    }],
    ["answers too little", () => Effect.succeed([])]
  ]

for (const [what, answer] of broken) {
  it.effect(`a run that ${what} leaves nobody waiting, and the next item goes out`, () =>
    Effect.gen(function*() {
      let isBroken = true
      const coalesce = yield* Coalescer.make({
        maxBatch: 10,
        maxInFlight: 1,
        run: (items: ReadonlyArray<number>) => isBroken ? answer(items) : Effect.succeed(items)
      })
      assert.isTrue(Exit.isFailure(yield* Effect.exit(coalesce(1))))
      isBroken = false
      assert.strictEqual(yield* coalesce(2), 2)
    }))
}

it.effect("when its scope closes nobody is left waiting: neither for what is under way, nor for a turn, nor who comes late", () =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    let runs = 0
    const coalesce = yield* Scope.provide(
      Coalescer.make<number, number, never>({ maxBatch: 10, maxInFlight: 1, run: () => (runs++, Effect.never) }),
      scope
    )
    const first = yield* Effect.forkScoped(coalesce(1), { startImmediately: true })
    yield* Effect.repeat(Effect.yieldNow, { until: () => runs === 1 })
    const second = yield* Effect.forkScoped(coalesce(2), { startImmediately: true })
    yield* Scope.close(scope, Exit.void)
    const late = yield* Effect.forkScoped(coalesce(3), { startImmediately: true })
    for (const fiber of [first, second, late]) assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
    assert.strictEqual(runs, 1)
  }))

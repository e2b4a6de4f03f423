/**
 * Many shard locks are asked for in lots, and given back a few at a time.
 */
import { assert, describe, it } from "@effect/vitest"
import * as RunnerAddress from "effect/cluster/RunnerAddress"
import { RunnerStorage } from "effect/cluster/RunnerStorage"
import * as ShardId from "effect/cluster/ShardId"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as ManyLocks from "../../src/internal/manyLocks.ts"

const shards = (count: number) => Array.from({ length: count }, (_, index) => ShardId.make("a00", index + 1))
const address = RunnerAddress.make("host", 1)

/** The storage on one that does this. */
const over = (storage: Partial<RunnerStorage["Service"]>) =>
  Effect.map(
    Layer.build(Layer.provide(ManyLocks.layer, Layer.mock(RunnerStorage, storage))),
    (context) => Context.get(context, RunnerStorage)
  )

/** How many locks it asks for at a time, and how many it says that it has got, where a refresh then finds `kept` of them. */
const asking = (count: number, kept: number) =>
  Effect.gen(function*() {
    const asked: Array<number> = []
    const { acquire } = yield* over({
      acquire: (_, ids) =>
        Effect.sync(() => {
          const lot = [...ids]
          asked.push(lot.length)
          return lot
        }),
      refresh: (_, ids) => Effect.succeed([...ids].slice(0, kept))
    })
    const acquired = yield* acquire(address, shards(count))
    return { asked, got: acquired.length }
  }).pipe(Effect.scoped)

describe("shard locks", () => {
  it.effect("are asked for a thousand at a time, each once", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* asking(0, 0), { asked: [], got: 0 })
      assert.deepStrictEqual(yield* asking(1_000, 0), { asked: [1_000], got: 1_000 })
      assert.deepStrictEqual(yield* asking(2_001, 2_001), { asked: [1_000, 1_000, 1], got: 2_001 })
    }))

  it.effect("that the session of an earlier lot had, which is gone, are not taken for held", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* asking(1_500, 500), { asked: [1_000, 500], got: 500 })
    }))

  it.effect("are given back a few at a time, so that none waits for its session longer than it may", () =>
    Effect.gen(function*() {
      const isAnswered = yield* Latch.make(false)
      const sent = new Set<number>()
      const { release } = yield* over({
        release: (_, { id }) => Effect.andThen(Effect.sync(() => sent.add(id)), isAnswered.await)
      })
      const releasing = yield* Effect.forEach(
        shards(100),
        (shard) => Effect.forkChild(release(address, shard), { startImmediately: true })
      )
      assert.strictEqual(sent.size, 4)
      yield* isAnswered.open
      yield* Fiber.joinAll(releasing)
      assert.strictEqual(sent.size, 100)
    }).pipe(Effect.scoped))
})

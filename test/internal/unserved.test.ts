/**
 * When it is told that nobody runs a queue's jobs: not while somebody is about to come, and not again and again.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { Hosts } from "../../src/internal/hosts.ts"
import { Owners } from "../../src/internal/owners.ts"
import * as Queues from "../../src/internal/queues.ts"
import { afterLook, layer, LookEvery, nothing, Unserved } from "../../src/internal/unserved.ts"
import { JobStore } from "../../src/JobStore.ts"
import * as MemoryJobStore from "../../src/MemoryJobStore.ts"
import { until } from "../utils/runtime.ts"

/** What is told after each of these looks, and what stands then. */
const told = (looks: ReadonlyArray<ReadonlyArray<string>>) => {
  let found = nothing
  return looks.map((last) => {
    found = afterLook(found, last)
    return { begun: found.begun, standing: found.standing }
  })
}

describe("queues that nobody serves", () => {
  it("what only one look has found is not told: a runner that joins, or a partition that moves, has had its time", () => {
    for (const { begun, standing } of told([["a"], [], ["a"], ["b"], []])) {
      assert.deepStrictEqual([begun, standing], [[], []])
    }
  })

  it("what stands is told once, and again when it comes back", () => {
    const looks = told([["a"], ["a", "b"], ["a", "b"], ["b"], ["a", "b"], ["a"]])
    assert.deepStrictEqual(looks.map(({ begun }) => begun), [[], ["a"], ["b"], [], [], ["a"]])
    assert.deepStrictEqual(looks.map(({ standing }) => standing), [[], ["a"], ["a", "b"], ["b"], ["b"], ["a"]])
  })
})

describe("the queue that every program has", () => {
  it.live("is missed in a group without a runner only by who uses it", () =>
    Effect.gen(function*() {
      let looks = 0
      let waiting = 0
      const store = yield* JobStore
      const watched = JobStore.of({
        ...store,
        queues: Effect.suspend(() => {
          looks++
          return store.queues
        }),
        depth: () => Effect.sync(() => [0, 0, waiting, 0])
      })
      const context = yield* Layer.build(
        layer.pipe(
          Layer.provide(Queues.layer([])),
          Layer.provide([
            Layer.succeed(JobStore, watched),
            Layer.mock(Owners, { reach: () => "cluster", tell: () => false, cancelHere: () => undefined }),
            Layer.succeed(
              Hosts,
              Hosts.of({
                isHere: () => false,
                isElsewhere: () => false,
                unreachedAt: () => undefined
              })
            ),
            Layer.succeed(LookEvery, "5 millis"),
            Logger.layer([])
          ])
        )
      )
      const { reasons } = Context.get(context, Unserved)
      yield* until(Effect.sync(() => looks > 3))
      assert.deepStrictEqual(reasons(), [])
      waiting = 1
      yield* until(Effect.sync(() => reasons().length > 0))
      assert.match(reasons().join(), /group "default" of the queue "default"/)
    }).pipe(Effect.scoped, Effect.provide(MemoryJobStore.layer)))
})

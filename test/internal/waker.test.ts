/**
 * Wakes on their way to other processes: no owner holds up another's, none is lost that can be announced.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { Owners, type Reach } from "../../src/internal/owners.ts"
import { Queues } from "../../src/internal/queues.ts"
import * as Waker from "../../src/internal/waker.ts"
import * as JobQueue from "../../src/JobQueue.ts"
import { JobStore, type Ready } from "../../src/JobStore.ts"
import { until } from "../utils/runtime.ts"

const ready = (partition: number, seq: number): Ready => ({ queueId: 7, partition, lane: 2, tenant: "=", seq })

const known = {
  queue: JobQueue.make("work"),
  row: { ...JobQueue.defaultLayout, queueId: 7, name: "work", shardGroup: 0, layout: 1 },
  isDeclared: true
}

/** A waker whose owners are all reached in this way; `answer`: what a message to a partition comes to. */
const make = Effect.fnUntraced(function*(reach: Reach, answer: (partition: number) => Effect.Effect<boolean>) {
  const sent: Array<ReadonlyArray<Ready>> = []
  const announced: Array<ReadonlyArray<Ready>> = []
  const context = yield* Layer.build(Waker.layer.pipe(Layer.provide([
    Layer.mock(Owners, {
      reach: () => reach,
      tell: () => false,
      cancelHere: () => undefined,
      wake: ({ partition }, ready) => {
        sent.push(ready)
        return answer(partition)
      }
    }),
    Layer.mock(Queues, { byId: () => Effect.succeedSome(known), declared: [known], partOf: ({ queue }) => queue }),
    Layer.mock(JobStore, {
      announce: (all) => Effect.sync(() => void announced.push(all)),
      handlerServices: Context.empty()
    })
  ])))
  return { sent, announced, wake: Context.get(context, Waker.Waker).wake }
})

describe("wakes", () => {
  it.live("of a partition whose owner does not answer do not delay those of others, and the next of its own follow it", () =>
    Effect.gen(function*() {
      const frozen = yield* Latch.make(false)
      const { announced, sent, wake } = yield* make(
        "cluster",
        (partition) => partition === 0 ? Effect.as(frozen.await, true) : Effect.succeed(true)
      )
      wake([ready(0, 1)])
      yield* until(Effect.sync(() => sent.length === 1))
      wake([ready(0, 3), ready(1, 4)])
      wake([ready(0, 2)])
      yield* until(Effect.sync(() => sent.length === 2))
      assert.deepStrictEqual(sent, [[ready(0, 1)], [ready(1, 4)]])
      yield* frozen.open
      yield* until(Effect.sync(() => sent.length === 3))
      assert.deepStrictEqual(sent[2], [ready(0, 2)])
      assert.deepStrictEqual(announced, [])
    }).pipe(Effect.scoped))

  it.live("that nobody has heard are announced", () =>
    Effect.gen(function*() {
      const { announced, sent, wake } = yield* make("cluster", () => Effect.succeed(false))
      wake([ready(0, 1)])
      yield* until(Effect.sync(() => announced.length === 1))
      assert.deepStrictEqual(announced, sent)
    }).pipe(Effect.scoped))

  it.live("that are under way when the process ends are sent before it does, and what an owner does not hear is announced", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const { announced, sent, wake } = yield* make("cluster", (partition) => Effect.succeed(partition === 0)).pipe(
        Scope.provide(scope)
      )
      wake([ready(0, 1)])
      wake([ready(1, 2)])
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(sent, [[ready(0, 1)], [ready(1, 2)]])
      assert.deepStrictEqual(announced, [[ready(1, 2)]])
    }))

  it.live("for owners out of reach are announced together", () =>
    Effect.gen(function*() {
      const { announced, sent, wake } = yield* make("database", () => Effect.succeed(true))
      wake([ready(0, 1), ready(1, 2)])
      yield* until(Effect.sync(() => announced.length === 1))
      assert.deepStrictEqual(announced, [[ready(0, 1), ready(1, 2)]])
      assert.deepStrictEqual(sent, [])
    }).pipe(Effect.scoped))
})

/**
 * Batches: whoever hands something over is answered once, whatever happens at that moment.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import * as Batches from "../src/internal/batches.ts"

const options: Parameters<typeof Batches.make<number, number, never>>[0] = {
  run: (items: ReadonlyArray<number>) => Effect.succeed(items),
  maxBatch: 10,
  maxInFlight: 1
}

describe("Batches", () => {
  for (const operations of [3, 4, 5]) {
    it.live(`an item that comes while its sender gives way at its very end is sent, giving way every ${operations} steps`, () =>
      Effect.gen(function*() {
        const push = yield* Effect.provideService(Batches.make(options), References.MaxOpsBeforeYield, operations)
        for (let gap = 0; gap < 40; gap++) {
          const answered = yield* Deferred.make<void>()
          push(0, () => {})
          yield* Effect.forEach(Array.from({ length: gap }), () => Effect.yieldNow, { discard: true })
          push(1, () => Deferred.doneUnsafe(answered, Effect.void))
          yield* Deferred.await(answered)
        }
      }).pipe(Effect.scoped))
  }

  it.live("nobody is left waiting when the scope closes: what is under way, what waits, and what comes too late is told so", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const sent = yield* Deferred.make<void>()
      const run = () => Effect.andThen(Deferred.succeed(sent, undefined), Effect.never)
      const push = yield* Scope.provide(Batches.make<number, number, never>({ ...options, run }), scope)
      const told: Array<string> = []
      const tell = (name: string) => (exit: Exit.Exit<number>) => {
        told.push(`${name} ${Exit.isFailure(exit) ? "was cut off" : "was sent"}`)
      }
      push(0, tell("under way"))
      yield* Deferred.await(sent)
      push(1, tell("waiting"))
      yield* Scope.close(scope, Exit.void)
      push(2, tell("late"))
      assert.deepStrictEqual(told.toSorted(), ["late was cut off", "under way was cut off", "waiting was cut off"])
    }))
})

/**
 * Joins what arrives while an operation is under way into the next one: at once when idle, in batches under load, never by a timer.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberSet from "effect/FiberSet"
import type * as Scope from "effect/Scope"

/** Hands over one item, to be sent with whatever travels at the same time. `done` is called once, synchronously, with its own answer. */
export type Push<A, B, E> = (item: A, done: (exit: Exit.Exit<B, E>) => void) => void

/**
 * `run` gets at most `maxBatch` items in their order of arrival and answers in the same order. At most `maxInFlight` run at a time. What
 * arrives in one turn of the event loop travels together. `done` must not throw. When the scope closes, whoever still waits is told of an
 * interruption.
 */
export const make = <A, B, E>(options: {
  readonly run: (items: ReadonlyArray<A>) => Effect.Effect<ReadonlyArray<B>, E>
  readonly maxBatch: number
  readonly maxInFlight: number
}): Effect.Effect<Push<A, B, E>, never, Scope.Scope> =>
  Effect.gen(function*() {
    // Of the fibers whose items it sends nothing gets through.
    const fork = yield* FiberSet.runtime(yield* FiberSet.make<void>())()
    const waiting: Array<{ readonly item: A; readonly done: (exit: Exit.Exit<B, E>) => void }> = []
    let inFlight = 0
    let isClosed = false
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        isClosed = true
        for (const { done } of waiting.splice(0)) done(Exit.interrupt())
      })
    )

    const flush: Effect.Effect<void> = Effect.gen(function*() {
      yield* Effect.yieldNow
      while (waiting.length > 0) {
        const batch = waiting.splice(0, options.maxBatch)
        const answerAll = (exit: Exit.Exit<ReadonlyArray<B>, E>) =>
          batch.forEach(({ done }, index) => {
            if (Exit.isFailure(exit)) return done(Exit.failCause(exit.cause))
            const value = exit.value[index]
            done(value === undefined ? Exit.die(new Error("batches: no answer")) : Exit.succeed(value))
          })
        // A run that is cut off with its scope leaves nobody waiting either.
        yield* Effect.suspend(() => options.run(batch.map(({ item }) => item))).pipe(
          Effect.onExit((exit) => Effect.sync(() => answerAll(exit))),
          Effect.exit
        )
      }
      // In the same breath as it is seen that nothing waits: what comes in between would be sent by nobody.
      inFlight--
    })

    return (item, done) => {
      if (isClosed) return done(Exit.interrupt())
      waiting.push({ item, done })
      if (inFlight >= options.maxInFlight) return
      inFlight++
      fork(flush)
    }
  })

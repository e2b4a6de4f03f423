/**
 * Joins what arrives while an operation is under way into the next one: at once when idle, in batches under load, never by a timer.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"

/** Sends one item with whatever travels at the same time, and waits for its own answer. */
export type Coalescer<A, B, E> = (item: A) => Effect.Effect<B, E>

/**
 * `run` gets at most `maxBatch` items in their order of arrival and answers in the same order. At most `maxInFlight` run at a time.
 * A caller that is interrupted stops waiting; its item is sent all the same. When the scope closes, whoever still waits is interrupted.
 */
export const make = <A, B, E>(options: {
  readonly run: (items: ReadonlyArray<A>) => Effect.Effect<ReadonlyArray<B>, E>
  readonly maxBatch: number
  readonly maxInFlight: number
}): Effect.Effect<Coalescer<A, B, E>, never, Scope.Scope> =>
  Effect.gen(function*() {
    const scope = yield* Effect.scope
    const waiting: Array<{ readonly item: A; readonly answer: Deferred.Deferred<B, E> }> = []
    let inFlight = 0
    let isClosed = false
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        isClosed = true
        for (const { answer } of waiting.splice(0)) Deferred.doneUnsafe(answer, Effect.interrupt)
      })
    )

    const flush: Effect.Effect<void> = Effect.gen(function*() {
      while (waiting.length > 0) {
        const batch = waiting.splice(0, options.maxBatch)
        const answerAll = (exit: Exit.Exit<ReadonlyArray<B>, E>) =>
          batch.forEach(({ answer }, index) => {
            if (Exit.isFailure(exit)) return void Deferred.doneUnsafe(answer, Effect.failCause(exit.cause))
            const value = exit.value[index]
            Deferred.doneUnsafe(
              answer,
              value === undefined ? Effect.die("coalescer: no answer") : Effect.succeed(value)
            )
          })
        // A run that is cut off with its scope leaves nobody waiting either.
        yield* Effect.suspend(() => options.run(batch.map(({ item }) => item))).pipe(
          Effect.onExit((exit) => Effect.sync(() => answerAll(exit))),
          Effect.exit
        )
      }
    })

    return (item) =>
      Effect.suspend(() => {
        if (isClosed) return Effect.interrupt
        const answer = Deferred.makeUnsafe<B, E>()
        waiting.push({ item, answer })
        if (inFlight >= options.maxInFlight) return Deferred.await(answer)
        inFlight++
        const started = Effect.forkIn(Effect.ensuring(flush, Effect.sync(() => inFlight--)), scope)
        return Effect.andThen(started, Deferred.await(answer))
      })
  })

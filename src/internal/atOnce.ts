/**
 * Going on at once where the answer is there already: an effect that is an `Exit` is its own answer, and costs no fiber and no wait.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"

/** Whether an effect is its own answer, so that nothing has to be waited for. */
export const isDone = <A, E>(effect: Effect.Effect<A, E>): effect is Exit.Exit<A, E> => Exit.isExit(effect)

/**
 * Goes on at once where the answer is there already: jobs are made by the thousand, and few of them have to wait for anything.
 */
export const andThen = <A, B, E>(
  effect: Effect.Effect<A, E>,
  next: (value: A) => Effect.Effect<B, E>
): Effect.Effect<B, E> =>
  isDone(effect)
    ? Exit.isSuccess(effect) ? next(effect.value) : Exit.failCause(effect.cause)
    : Effect.flatMap(effect, next)

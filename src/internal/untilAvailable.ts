/**
 * Waits out what the store cannot answer, by the real clock.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type { StoreError } from "../JobStore.ts"
import { liveClock, onLiveClock } from "./time/liveClock.ts"

/** Tries until it succeeds, ever more rarely, and says so; `what` begins the log line. */
export const untilAvailable = <A, E>(effect: Effect.Effect<A, E>, what: string): Effect.Effect<A> =>
  effect.pipe(
    Effect.tapError((error) => Effect.logWarning(`${what}: waiting for the database`, error)),
    Effect.retry(Schedule.min([Schedule.exponential("100 millis"), Schedule.spaced("5 seconds")])),
    Effect.orDie,
    onLiveClock
  )

/** Asks until the store answers, or this ownership is over: `isStopped`. */
export const untilAnswered = <A, E>(
  effect: Effect.Effect<A, E>,
  isStopped: () => boolean
): Effect.Effect<Option.Option<A>> =>
  Effect.suspend(() => {
    let pause = 50
    const attempt: Effect.Effect<Option.Option<A>> = Effect.suspend(() =>
      Effect.matchEffect(effect, {
        onSuccess: (value) => Effect.succeedSome(value),
        onFailure: () => {
          if (isStopped()) return Effect.succeedNone
          pause = Math.min(pause * 2, 5_000)
          return Effect.andThen(onLiveClock(Effect.sleep(Duration.millis(pause))), attempt)
        }
      })
    )
    return attempt
  })

/** Tells of a store that does not answer; `what` begins the log line. */
export type Troubled = (what: string, error: StoreError) => Effect.Effect<void>

/** A database that is away is told of once in a while, not at every try. */
export const makeTroubled = (): Troubled => {
  let troubledAt = 0
  return (what, error) =>
    Effect.suspend(() => {
      const now = liveClock.currentTimeMillisUnsafe()
      if (now - troubledAt < 30_000) return Effect.void
      troubledAt = now
      return Effect.logWarning(`${what}: trying again until the database answers (${error.message})`)
    })
}

/**
 * Waits out what the store cannot answer, by the real clock.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type { Outage } from "./outage.ts"
import { onLiveClock } from "./time/liveClock.ts"

/** Tries until it succeeds, ever more rarely, and has it told of; `what` begins the log line. */
export const untilAvailable = <A, E>(effect: Effect.Effect<A, E>, what: string, outage: Outage): Effect.Effect<A> =>
  effect.pipe(
    outage.watch(what),
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

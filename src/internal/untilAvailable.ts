/**
 * Waits out what the store cannot answer, by the real clock.
 */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { onLiveClock } from "./time/liveClock.ts"

/** Tries until it succeeds, ever more rarely, and says so; `what` begins the log line. */
export const untilAvailable = <A, E>(effect: Effect.Effect<A, E>, what: string): Effect.Effect<A> =>
  effect.pipe(
    Effect.tapError((error) => Effect.logWarning(`${what}: waiting for the database`, error)),
    Effect.retry(Schedule.min([Schedule.exponential("100 millis"), Schedule.spaced("5 seconds")])),
    Effect.orDie,
    onLiveClock
  )

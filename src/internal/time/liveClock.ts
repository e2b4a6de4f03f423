/**
 * The system's clock, whatever Clock a caller has: for waiting on the database and the cluster, which no test clock moves.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"

/** The real Clock. */
export const liveClock: Clock.Clock = Clock.Clock.defaultValue()

/** Runs an effect on the real Clock. */
export const onLiveClock = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.provideService(effect, Clock.Clock, liveClock)

/** Milliseconds since some moment: for how long ago something was, which no correction of the system's clock changes. */
export const monotonicMillis = (): number => Number(liveClock.monotonicTimeNanosUnsafe()) / 1e6

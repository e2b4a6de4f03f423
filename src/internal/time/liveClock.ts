/**
 * The system's clock, whatever Clock a caller has: for waiting on the database and the cluster, which no test clock moves.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"

/** The real Clock. */
export const liveClock: Clock.Clock = Clock.Clock.defaultValue()

/** Runs an effect on the real Clock. */
export const onLiveClock = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.provideService(effect, Clock.Clock, liveClock)

/**
 * Waits for an effect, but not for longer than this: it goes on by itself then. For what may hang where nothing can be interrupted; a
 * failure of it is nobody's.
 */
export const atMost = (millis: number, effect: Effect.Effect<unknown, unknown>): Effect.Effect<void> =>
  Effect.flatMap(
    Effect.forkDetach(effect, { startImmediately: true }),
    (fiber) =>
      fiber.pollUnsafe() !== undefined
        ? Effect.void
        : Effect.raceFirst(
          Effect.asVoid(Fiber.await(fiber)),
          onLiveClock(Effect.sleep(Duration.millis(Math.max(millis, 0))))
        )
  )

/** Milliseconds since some moment: for how long ago something was, which no correction of the system's clock changes. */
export const monotonicMillis = (): number => Number(liveClock.monotonicTimeNanosUnsafe()) / 1e6

/**
 * How running attempts end at a shutdown: they may go on for a while, then they are interrupted, and their rows stay for the successor.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { Attempts } from "./attempts.ts"
import type { Run } from "./run.ts"
import { monotonicMillis, onLiveClock } from "./time/liveClock.ts"

/** Handlers that leave within this time of each other leave together, as at a shutdown, and share one grace period. */
export const togetherMs = 2_000

/** Whose end it is. */
export interface Ending {
  readonly attempts: Attempts
  readonly choose: (run: Run) => boolean
  /** Runs before those that are left are interrupted. */
  readonly onGraceOver?: Effect.Effect<void>
  /** Says that `count` attempts are waited for, up to `most`: asked once that takes a moment. */
  readonly tell: (most: string, count: number) => Effect.Effect<void>
}

/** Ends the chosen attempts. */
export type End = (ending: Ending) => Effect.Effect<void>

/** Grace lasts only while the partition is surely ours: `lockLost` ends it at once. */
export const make = (options: {
  readonly graceMs: number
  readonly lockLost: Effect.Effect<void>
}): End => {
  let usedMs = 0
  let endedAt = -Infinity
  return ({ attempts, choose, onGraceOver = Effect.void, tell }) =>
    Effect.suspend(() => {
      const begunAt = monotonicMillis()
      const used = begunAt - endedAt < togetherMs ? usedMs : 0
      const left = Duration.millis(Math.max(options.graceMs - used, 0))
      const ended = Effect.raceFirst(
        Effect.raceFirst(attempts.awaitEnd(choose), options.lockLost),
        onLiveClock(Effect.sleep(left))
      )
      // Most end at once, and there is nothing to tell of.
      const waiting = onLiveClock(Effect.sleep("500 millis")).pipe(
        Effect.andThen(Effect.suspend(() => tell(Duration.format(left), attempts.count(choose)))),
        Effect.andThen(Effect.never)
      )
      return Effect.raceFirst(ended, waiting).pipe(
        Effect.interruptible,
        Effect.andThen(onGraceOver),
        Effect.andThen(attempts.stop(choose)),
        Effect.ensuring(Effect.sync(() => {
          endedAt = monotonicMillis()
          usedMs = used + endedAt - begunAt
        }))
      )
    })
}

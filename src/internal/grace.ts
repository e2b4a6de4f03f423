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

/** Ends the chosen attempts. Answers by when everything else has to be over: what hangs is not waited for any longer. */
export type End = (ending: Ending) => Effect.Effect<number>

/** What those that leave together share. */
export interface Together {
  /** How much of the grace period they have used. */
  usedMs: number
  endedAt: number
  /** When it was over: all that follows has one deadline. */
  overAt: number | undefined
}

/** Nothing has left yet. */
export const together = (): Together => ({ usedMs: 0, endedAt: -Infinity, overAt: undefined })

/**
 * All that follows the grace period takes as long, at most: interrupting, abandoning, writing outcomes, handing over. What the process closes
 * after that, its locks and its connections, has the rest of 5 seconds.
 */
const afterwardsMs = 3_000
/** Of that, until what is under way goes on alone. */
const stoppingMs = 2_600
/** Of that, for handlers that have been interrupted. */
const abandoningMs = 2_200
/** Those that leave one after another share a deadline for as long. */
const chainMs = 10_000
/** What comes late, behind others that have used all of it, has this at least. */
const leastMs = 100

/** For how long what closes now may be waited for: for the rest of the grace period, and what follows it. */
export const leftMs = ({ endedAt, overAt, usedMs }: Together, graceMs: number): number => {
  const now = monotonicMillis()
  if (now - endedAt >= togetherMs) return graceMs + afterwardsMs
  return overAt === undefined
    ? Math.max(graceMs - usedMs, 0) + afterwardsMs
    : Math.max(overAt + afterwardsMs - now, 2 * leastMs)
}

/** Grace lasts only while the partition is surely ours: `lockLost` ends it at once. */
export const make = (options: {
  readonly graceMs: number
  readonly abandonAfterMs: number
  readonly lockLost: Effect.Effect<void>
  /** Those that this one leaves together with. */
  readonly together: () => Together
}): End =>
({ attempts, choose, onGraceOver = Effect.void, tell }) =>
  Effect.suspend(() => {
    const shared = options.together()
    const begunAt = monotonicMillis()
    const areTogether = begunAt - shared.endedAt < togetherMs
    const used = areTogether ? shared.usedMs : 0
    if (!areTogether || begunAt - (shared.overAt ?? begunAt) > chainMs) shared.overAt = undefined
    const left = Duration.millis(Math.max(options.graceMs - used, 0))
    const ended = Effect.raceFirst(
      Effect.raceFirst(attempts.awaitEnd(choose), options.lockLost),
      onLiveClock(Effect.sleep(left))
    )
    // Most end at once, and there is nothing to tell of.
    const waiting = onLiveClock(Effect.sleep("500 millis")).pipe(
      Effect.andThen(Effect.suspend(() =>
        tell(Duration.format(Duration.seconds(Math.round(Duration.toSeconds(left)))), attempts.count(choose))
      )),
      Effect.andThen(Effect.never)
    )
    const stopped = Effect.suspend(() => {
      const now = monotonicMillis()
      const isUsed = used + now - begunAt >= options.graceMs - 20
      const overAt = isUsed ? shared.overAt ??= now : now
      const abandonAt = Math.max(overAt + Math.min(options.abandonAfterMs, abandoningMs), now + leastMs)
      const endBy = Math.max(overAt + stoppingMs, abandonAt + leastMs)
      return Effect.as(
        attempts.stop(choose, { abandonAt, endBy }),
        Math.max(overAt + afterwardsMs, endBy + leastMs)
      )
    })
    return Effect.raceFirst(ended, waiting).pipe(
      Effect.interruptible,
      Effect.andThen(onGraceOver),
      Effect.andThen(stopped),
      Effect.ensuring(Effect.sync(() => {
        shared.endedAt = monotonicMillis()
        shared.usedMs = used + shared.endedAt - begunAt
      }))
    )
  })

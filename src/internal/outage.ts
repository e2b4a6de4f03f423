/**
 * Tells of what the database keeps this process from doing: once when it begins, seldom while it lasts, and once when it is over.
 *
 * Whatever is tried again until it works says here how it went, and one trouble is told of once, however many partitions have it. Causes that
 * explain themselves (no connection, a server that stops) come as words; of others, which somebody has to look into, everything is shown.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import { isInterruption, unanswered } from "./sql/unanswered.ts"
import { inWords } from "./time/inWords.ts"
import { monotonicMillis } from "./time/liveClock.ts"
import { told } from "./told.ts"
import { read } from "./words/safely.ts"

/** Hears how it goes. `what` says what is tried, and begins the log line. */
export interface Outage {
  /** It failed, and is tried again. */
  readonly failed: (what: string, error: unknown) => Effect.Effect<void>
  /** It worked. */
  readonly worked: (what: string) => Effect.Effect<void>
  /** Says of each run of an effect how it went. */
  readonly watch: (what: string) => <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  /** For what is tried on behalf of `whom`, only as long as the scope is open. */
  readonly within: (scope: Scope.Scope, whom: string) => Effect.Effect<Outage>
  /** Whether a trouble is told of now, or was over only a moment ago. */
  readonly isTold: () => boolean
}

/** How often one that lasts is told of. */
const againMs = 30_000
/** What has not failed again by then is not tried any more: everything is tried more often. */
const forgottenMs = 60_000
/** Its consequences come a while after it. */
const aftermathMs = 15_000

/** How many that come and go are told of in that time. */
const maxBegins = 3

/** `now`: milliseconds that only go forward. */
export const make = (now: () => number = monotonicMillis): Outage => {
  /** What fails, and since when last. */
  const failing = new Map<string, number>()
  /** When each was told of: one entry for all that explains itself, one for each other message. */
  const toldAt = new Map<string, number>()
  /** When the latest began: one that comes and goes is told of a few times, then as seldom as one that lasts. */
  let begins: ReadonlyArray<number> = []
  let begunAt = 0
  let overAt = -Infinity
  let isOpen = false
  let isAway = false
  let isBeginTold = false

  // Whoever happens to tell of it is not the only one concerned.
  const line = (log: Effect.Effect<void>) => told(Effect.provideService(log, References.CurrentLogAnnotations, {}))

  const isDue = (key: string, at: number): boolean => {
    for (const [other, last] of toldAt) if (at - last >= againMs) toldAt.delete(other)
    if (toldAt.has(key)) return false
    toldAt.set(key, at)
    return true
  }

  const forget = (at: number) => {
    for (const [what, last] of failing) if (at - last >= forgottenMs) failing.delete(what)
  }

  const failed: Outage["failed"] = (what, error) =>
    Effect.suspend(() => {
      const at = now()
      forget(at)
      // It says nothing of the database: who has given the question up says why, and it is asked again.
      if (!isOpen && isInterruption(error)) return Effect.void
      if (!isOpen) {
        isOpen = true
        isAway = false
        isBeginTold = false
        begunAt = at
        begins = [...begins.filter((began) => at - began < againMs), at]
        if (begins.length <= maxBegins) toldAt.clear()
      }
      failing.set(what, at)
      const because = unanswered(error)
      if (because === undefined) {
        if (!isDue(read(() => String(error)) ?? "", at)) return Effect.void
        isBeginTold = true
        return line(Effect.logWarning(`${what}: trying again`, error))
      }
      isAway = true
      // Not the message: the same outage says first that the server stops, then that nobody listens.
      if (!isDue("", at)) return Effect.void
      isBeginTold = true
      const lasts = at - begunAt < 1_000 ? "" : `, for ${inWords(at - begunAt)}`
      return line(Effect.logWarning(`${what}: waiting for the database${lasts} (${because})`))
    })

  const worked: Outage["worked"] = (what) =>
    Effect.suspend(() => {
      if (!isOpen) return Effect.void
      const at = now()
      failing.delete(what)
      forget(at)
      if (failing.size > 0) return Effect.void
      isOpen = false
      overAt = at
      if (!isBeginTold) return Effect.void
      const after = `after ${inWords(at - begunAt)}`
      return line(Effect.logInfo(isAway ? `The database answers again, ${after}` : `${what}: works again, ${after}`))
    })

  const telling = (whom: string, isClosed: () => boolean): Outage => {
    const named = (what: string) => `${what}${whom}`
    const own: Pick<Outage, "failed" | "worked"> = {
      failed: (what, error) => isClosed() ? Effect.void : failed(named(what), error),
      worked: (what) => isOpen ? worked(named(what)) : Effect.void
    }
    return {
      ...own,
      watch: (what) => (effect) =>
        effect.pipe(Effect.tapError((error) => own.failed(what, error)), Effect.tap(() => own.worked(what))),
      within: (scope, name) => {
        const suffix = ` of ${name}`
        let isClosed = false
        const drop = Effect.sync(() => {
          isClosed = true
          // Whatever works next says that it is over, if this was the last that failed.
          for (const what of [...failing.keys()].filter((what) => what.endsWith(suffix))) failing.delete(what)
        })
        return Effect.as(Scope.addFinalizer(scope, drop), telling(suffix, () => isClosed))
      },
      isTold: () => isOpen || now() - overAt < aftermathMs
    }
  }
  return telling("", () => false)
}

/** That of this runtime; where there is none (a part that runs alone), one of the process. */
export const Outage = Context.Reference<Outage>("millrace/internal/Outage", { defaultValue: () => make() })

/** A runtime's own. */
export const layer: Layer.Layer<never> = Layer.effect(Outage, Effect.sync(() => make()))

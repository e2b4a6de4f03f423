/**
 * Sees that this process stood still: it was suspended, starved, or something kept its event loop. By the monotonic clock.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { monotonicMillis } from "./liveClock.ts"

/** What is known of it. */
export interface Standstill {
  /** To be called every `everyMs`. Answers for how long it stood still since the last time, beyond that. */
  readonly tick: () => number
  /** Whether it stands still, or did a moment ago: what fails now may have failed by that. Also before the first tick after it. */
  readonly isRecent: () => boolean
  /** For how long it stood still since a time of the monotonic clock, the standstill that it wakes up from included. */
  readonly stoodSince: (since: number) => number
}

/** How often it is looked for. */
export const watchMs = 100

/** Timers are late by as much on a machine that is merely busy. */
const busyMs = 1_000
/** By then all that was overdue has been noticed. */
const wakingMs = 5_000
const maxRemembered = 20

interface Stood {
  readonly from: number
  readonly until: number
}

/** Watches from now on. */
export const make = (everyMs: number, now: () => number = monotonicMillis): Standstill => {
  let tickedAt = now()
  let stoodAt = -Infinity
  let isWatched = false
  let remembered: ReadonlyArray<Stood> = []
  return {
    tick: () => {
      const at = now()
      const stood = Math.max(at - tickedAt - everyMs, 0)
      if (stood > busyMs) {
        stoodAt = at
        remembered = [...remembered.slice(1 - maxRemembered), { from: tickedAt, until: at }]
      }
      tickedAt = at
      isWatched = true
      return stood
    },
    isRecent: () => {
      const at = now()
      return at - tickedAt > everyMs + busyMs || at - stoodAt < wakingMs
    },
    stoodSince: (since) => {
      const until = now()
      const isWaking = isWatched && until - tickedAt > everyMs + busyMs
      const all = isWaking ? [...remembered, { from: tickedAt, until }] : remembered
      return all.reduce((sum, stood) => sum + Math.max(stood.until - Math.max(stood.from, since), 0), 0)
    }
  }
}

/** That of this runtime, which the watch over its shard locks keeps. Where there is none nobody knows of a standstill. */
export const Current = Context.Reference<Standstill>("millrace/internal/Standstill", {
  defaultValue: () => make(watchMs)
})

/** A runtime's own. */
export const layer: Layer.Layer<never> = Layer.effect(Current, Effect.sync(() => make(watchMs)))

/**
 * Sees that this process stood still: it was suspended, starved, or something kept its event loop. By the monotonic clock.
 */
import { monotonicMillis } from "./time/liveClock.ts"

/** What is known of it. */
export interface Standstill {
  /** To be called every `everyMs`. Answers for how long it stood still since the last time, beyond that. */
  readonly tick: () => number
  /** Whether it stands still, or did a moment ago: what fails now may have failed by that. Also before the first tick after it. */
  readonly isRecent: () => boolean
}

/** Timers are late by as much on a machine that is merely busy. */
const busyMs = 1_000
/** By then all that was overdue has been noticed. */
const wakingMs = 5_000

/** Watches from now on. */
export const make = (everyMs: number, now: () => number = monotonicMillis): Standstill => {
  let tickedAt = now()
  let stoodAt = -Infinity
  return {
    tick: () => {
      const at = now()
      const stood = Math.max(at - tickedAt - everyMs, 0)
      tickedAt = at
      if (stood > busyMs) stoodAt = at
      return stood
    },
    isRecent: () => {
      const at = now()
      return at - tickedAt > everyMs + busyMs || at - stoodAt < wakingMs
    }
  }
}

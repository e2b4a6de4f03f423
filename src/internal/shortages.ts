/**
 * Tells that handlers get no connection: once when it begins, and once when it is over. Health says so as long as it is so.
 *
 * A crash leaves nothing behind.
 */
import * as Effect from "effect/Effect"
import { capitalize } from "effect/String"
import { inWords } from "./time/inWords.ts"
import { monotonicMillis } from "./time/liveClock.ts"
import { told } from "./told.ts"

/** Follows one process. */
export interface Shortages {
  /** To be run at each look: why they get none, or nothing. */
  readonly tell: (reason: string | undefined) => Effect.Effect<void>
}

/** One that is back by then was never over: handlers that wait longer than is usual do so one after another. */
const overMs = 10_000

/** `now`: milliseconds that only go forward. */
export const make = (now: () => number = monotonicMillis): Shortages => {
  let begunAt: number | undefined
  let lastAt = 0
  let isTold = false
  return {
    tell: (reason) =>
      Effect.suspend(() => {
        const at = now()
        if (reason !== undefined) {
          const isFirst = begunAt === undefined
          begunAt ??= at
          lastAt = at
          // What two looks find: after an outage who has waited for long gets a connection at once.
          if (isFirst || isTold) return Effect.void
          isTold = true
          return told(Effect.logWarning(capitalize(reason)))
        }
        if (begunAt === undefined || isTold && at - lastAt < overMs) return Effect.void
        const lasted = lastAt - begunAt
        const wasTold = isTold
        begunAt = undefined
        isTold = false
        return wasTold ? told(Effect.logInfo(`Handlers get connections again, after ${inWords(lasted)}`)) : Effect.void
      })
  }
}

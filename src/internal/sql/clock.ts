/**
 * The store's time: Effect's Clock, corrected by how far the database's clock is off, so that processes with wrong clocks agree. Clocks drift:
 * it is measured again with each purge. Clocks are set, and machines sleep: it is measured again as soon as this one has gone another way than
 * the monotonic one. Under a Clock of somebody's own (a test's) there is no correction.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type { StoreError } from "../../JobStore.ts"
import { liveClock, monotonicMillis } from "../time/liveClock.ts"
import type { Database } from "./database.ts"

/** Beyond this somebody should look after the machine's clock. */
const warnMs = 1_000

/** How far the database is ahead of this process, in whole milliseconds; `former` where that is within the measurement's own error. */
const measureOffset = (db: Database, former: number): Effect.Effect<number, StoreError> =>
  Effect.gen(function*() {
    const before = liveClock.currentTimeMillisUnsafe()
    const [row] = yield* db.run<{ readonly now: number }>(
      "now",
      "select (extract(epoch from clock_timestamp()) * 1000)::float8 as now",
      []
    )
    const after = liveClock.currentTimeMillisUnsafe()
    const offset = row === undefined ? 0 : Math.round(row.now - (before + after) / 2)
    if (Math.abs(offset) > warnMs) {
      yield* Effect.logWarning(
        `The clocks of this process and of PostgreSQL are ${offset} ms apart; due times follow the database's.`
      )
    }
    return Math.abs(offset - former) <= (after - before) / 2 + 1 ? former : offset
  })

/** More than clocks that are slewed gain in a few minutes. */
const jumpMs = 250

/** How far the system's clock is ahead of the monotonic one. */
const lead = () => liveClock.currentTimeMillisUnsafe() - monotonicMillis()

/** Measures once. `measure` does it again: fails, and leaves the time as it was, when the database does not answer. */
export const make = (db: Database) =>
  Effect.gen(function*() {
    const scope = yield* Effect.scope
    let known = lead()
    let offset = yield* measureOffset(db, 0)
    let isMeasuring = false
    const measure = Effect.suspend(() => {
      const before = lead()
      return Effect.map(measureOffset(db, offset), (again) => {
        known = before
        offset = again
      })
    })
    const measureSoon = Effect.suspend(() => {
      if (isMeasuring) return Effect.void
      isMeasuring = true
      return measure.pipe(
        Effect.ignore,
        Effect.ensuring(Effect.sync(() => {
          isMeasuring = false
        })),
        Effect.forkIn(scope)
      )
    })
    const now: Effect.Effect<number> = Clock.clockWith((clock) => {
      const time = Math.floor(clock.currentTimeMillisUnsafe())
      if (clock.constructor !== liveClock.constructor) return Effect.succeed(time)
      const jumped = lead() - known
      // Until the database has told, nothing has happened: a due time that is missed comes a moment late.
      return Math.abs(jumped) < jumpMs
        ? Effect.succeed(time + offset)
        : Effect.as(measureSoon, Math.floor(time - jumped) + offset)
    })
    return { measure, now }
  })

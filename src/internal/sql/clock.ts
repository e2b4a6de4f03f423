/**
 * The store's time: Effect's Clock, corrected by how far the database's clock is off, so that processes with wrong clocks agree. Clocks drift
 * and are set: it is measured again with each purge. Under a Clock of somebody's own (a test's) there is no correction.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type { StoreError } from "../../JobStore.ts"
import { liveClock } from "../time/liveClock.ts"
import type { Database } from "./database.ts"

/** Beyond this somebody should look after the machine's clock. */
const warnMs = 1_000

/** How far the database is ahead of this process, in whole milliseconds; 0 where that is less than the measurement's own error. */
const measureOffset = (db: Database): Effect.Effect<number, StoreError> =>
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
    return Math.abs(offset) <= (after - before) / 2 + 1 ? 0 : offset
  })

/** Measures once. `measure` does it again: fails, and leaves the time as it was, when the database does not answer. */
export const make = (db: Database) =>
  Effect.map(measureOffset(db), (measured) => {
    let offset = measured
    const now: Effect.Effect<number> = Clock.clockWith((clock) => {
      const isLive = clock.constructor === liveClock.constructor
      return Effect.sync(() => Math.floor(clock.currentTimeMillisUnsafe()) + (isLive ? offset : 0))
    })
    const measure = Effect.map(measureOffset(db), (again) => {
      offset = again
    })
    return { measure, now }
  })

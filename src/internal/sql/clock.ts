/**
 * The store's time: the database's, as far as this process knows it. Between two measurements the monotonic clock goes on from the last one,
 * so that processes with wrong clocks agree, and setting a clock moves nothing. Clocks drift: it is measured again with each purge. Machines
 * sleep, and the monotonic clock with them: it is measured again as soon as the system's clock has gone another way. Under a Clock of
 * somebody's own (a test's) that one is the time.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type { StoreError } from "../../JobStore.ts"
import { liveClock, monotonicMillis } from "../time/liveClock.ts"
import type { Database } from "./database.ts"

type Asked = Pick<Database, "run">

/** Beyond this somebody should look after the machine's clock. */
const warnMs = 1_000

/** More than clocks that are slewed gain in a few minutes. */
const jumpMs = 250

/** How far the system's clock is ahead of the monotonic one. */
const systemLead = () => liveClock.currentTimeMillisUnsafe() - monotonicMillis()

/** How far the database's is; `former` where that is within the measurement's own error. */
const measureLead = (db: Asked, former: number): Effect.Effect<number, StoreError> =>
  Effect.gen(function*() {
    const before = monotonicMillis()
    const [row] = yield* db.run<{ readonly now: number }>(
      "now",
      "select (extract(epoch from clock_timestamp()) * 1000)::float8 as now",
      []
    )
    const after = monotonicMillis()
    const lead = row === undefined ? former : row.now - (before + after) / 2
    const apart = Math.round(lead - systemLead())
    if (Math.abs(apart) > warnMs) {
      yield* Effect.logWarning(
        `The clocks of this process and of PostgreSQL are ${apart} ms apart; due times follow the database's.`
      )
    }
    return Math.abs(lead - former) <= (after - before) / 2 + 1 ? former : lead
  })

/** Measures once. `measure` does it again: fails, and leaves the time as it was, when the database does not answer. */
export const make = (db: Asked) =>
  Effect.gen(function*() {
    const scope = yield* Effect.scope
    let known = systemLead()
    let lead = yield* measureLead(db, known)
    let isMeasuring = false
    const measure = Effect.suspend(() => {
      const before = systemLead()
      return Effect.map(measureLead(db, lead), (again) => {
        known = before
        lead = again
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
      if (clock.constructor !== liveClock.constructor) return Effect.succeed(Math.floor(clock.currentTimeMillisUnsafe()))
      const time = Math.floor(monotonicMillis() + lead)
      // Until the database has told, nothing has happened: a due time that is missed comes a moment late.
      return Math.abs(systemLead() - known) < jumpMs ? Effect.succeed(time) : Effect.as(measureSoon, time)
    })
    return { measure, now }
  })

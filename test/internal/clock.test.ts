import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as StoreClock from "../../src/internal/sql/clock.ts"
import type { Database, Run } from "../../src/internal/sql/database.ts"

const minute = 60_000
const realNow = Date.now

/** A database that has the right time, and which something happens to while it is asked. */
const databaseOf = (meanwhile: { during: () => void }): Pick<Database, "run"> => {
  const run: Run = () =>
    Effect.sync((): ReadonlyArray<any> => {
      const now = realNow()
      meanwhile.during()
      return [{ now }]
    })
  return { run }
}

const setting = (ms: number) => () => {
  Date.now = () => realNow() + ms
}

const scopedClock = Effect.addFinalizer(() =>
  Effect.sync(() => {
    Date.now = realNow
  })
)

describe("the store's time", () => {
  for (const off of [-2 * minute, 2 * minute]) {
    it.live(`is not half a jump off when the clock is set by ${off / minute} minutes while the database is asked`, () =>
      Effect.gen(function*() {
        yield* scopedClock
        const meanwhile = { during: setting(off) }
        const clock = yield* StoreClock.make(databaseOf(meanwhile))
        assert.closeTo(yield* clock.now, realNow(), minute / 2)
        meanwhile.during = setting(0)
        yield* clock.measure
        assert.closeTo(yield* clock.now, realNow(), minute / 2)
      }).pipe(Effect.scoped))
  }
})

import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as StoreClock from "../../src/internal/sql/clock.ts"

const minute = 60_000
const realNow = Date.now

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
        // A database that has the right time, and what happens while it is asked.
        let meanwhile = setting(off)
        const ask = Effect.sync(() => {
          meanwhile()
          return realNow()
        })
        const clock = yield* StoreClock.make(ask)
        assert.closeTo(yield* clock.now, realNow(), minute / 2)
        meanwhile = setting(0)
        yield* clock.measure
        assert.closeTo(yield* clock.now, realNow(), minute / 2)
      }).pipe(Effect.scoped))
  }
})

/**
 * For how long the process stood still, of a time that something in it took.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Standstill from "../../src/internal/time/standstill.ts"

/** By the test's clock: `run` ticks as it should for so long, `stand` does not. */
const make = () => {
  let now = 0
  const watch = Standstill.make(Standstill.watchMs, () => now)
  return {
    watch,
    run: (millis: number) => {
      for (const end = now + millis; now < end;) {
        now += Standstill.watchMs
        watch.tick()
      }
    },
    stand: (millis: number) => {
      now += millis
    }
  }
}

describe("a time in which the process stood still", () => {
  it("is known before the watch itself has woken up, and after", () => {
    const { run, stand, watch } = make()
    run(1_000)
    stand(9_000)
    assert.strictEqual(watch.stoodSince(500), 9_000)
    run(1_000)
    assert.strictEqual(watch.stoodSince(500), 9_100)
  })

  it("counts only from when it is asked for, and all of several", () => {
    const { run, stand, watch } = make()
    run(1_000)
    stand(5_000)
    run(1_000)
    stand(3_000)
    run(1_000)
    assert.isAtLeast(watch.stoodSince(0), 8_000)
    assert.strictEqual(watch.stoodSince(4_000), 2_100 + 3_100)
    assert.strictEqual(watch.stoodSince(10_500), 0)
  })

  it("is none where a busy machine is late, nor where nobody watches", () => {
    const { run, stand, watch } = make()
    stand(60_000)
    assert.strictEqual(watch.stoodSince(0), 0)
    run(100)
    stand(900)
    run(100)
    assert.strictEqual(watch.stoodSince(60_100), 0)
  })
})

import { assert, it } from "@effect/vitest"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import { TestClock } from "effect/testing"
import * as UuidV7 from "../../src/internal/uuidV7.ts"

/** Bytes that tell where they were drawn: 1, 2, 3 and so on, over all draws. */
const counting = () => {
  let next = 0
  let draws = 0
  const random = SecureRandom.make((size) => {
    draws++
    return Uint8Array.from({ length: size }, () => ++next % 256)
  })
  return { random, draws: () => draws }
}

const version7 = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/

it.effect("ids sort in the order they were made, also when the clock stands still or goes back, and none comes twice", () =>
  Effect.gen(function*() {
    const make = UuidV7.make(counting().random)
    const ids: Array<string> = []
    for (const time of [1000, 1000, 2000, 1500, 3000]) {
      yield* TestClock.setTime(time)
      ids.push(...yield* make(1000), ...yield* make(1))
    }
    for (const id of ids) assert.match(id, version7)
    assert.deepStrictEqual(ids, ids.toSorted())
    assert.strictEqual(new Set(ids).size, 5005)
  }))

it.effect("an id begins with the time it was made at and ends with random bits of its own", () =>
  Effect.gen(function*() {
    yield* TestClock.setTime(0x0123_4567_89ab)
    const [first, second] = yield* UuidV7.make(counting().random)(2)
    assert.strictEqual(first?.slice(0, 13), "01234567-89ab")
    assert.strictEqual(first?.slice(-8), "0708090a")
    assert.strictEqual(second?.slice(-8), "0b0c0d0e")
  }))

it.effect("random bytes are drawn once for many ids, and none is used twice", () =>
  Effect.gen(function*() {
    const { draws, random } = counting()
    const make = UuidV7.make(random)
    const tails: Array<string | undefined> = []
    for (let n = 0; n < 60; n++) tails.push((yield* make(1))[0]?.slice(-8))
    assert.strictEqual(draws(), 1)
    assert.strictEqual(new Set(tails).size, 60)
    assert.strictEqual((yield* make(5000)).length, 5000)
    assert.strictEqual(draws(), 2)
  }))

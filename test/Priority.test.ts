import { assert, describe, it } from "@effect/vitest"
import { Option, Result, Schema } from "effect"
import * as Priority from "../src/Priority.ts"

const laneOf = (priority: Priority.Lane | number) => Option.getOrUndefined(Priority.laneOf(priority))

describe("Priority", () => {
  it("a stored lane never changes its number, threshold or default weight unnoticed", () => {
    assert.deepStrictEqual(
      Priority.lanes.map((lane) => [lane.index, lane.name, lane.minimum, lane.weight]),
      [[0, "critical", 75, 8], [1, "high", 50, 4], [2, "normal", 25, 2], [3, "low", 0, 1]]
    )
    assert.deepStrictEqual(Priority.defaultWeights, { critical: 8, high: 4, normal: 2, low: 1 })
  })

  it("a number on a threshold belongs to the lane above it", () => {
    assert.deepStrictEqual(
      [100, 75, 74.9, 74, 50, 49, 25, 24, 0, -0].map(laneOf),
      ["critical", "critical", "high", "high", "high", "normal", "normal", "low", "low", "low"]
    )
  })

  it("a priority that is no number from 0 to 100 is never rounded into a lane", () => {
    for (const priority of [-1, -0.1, 100.1, 101, NaN, Infinity, -Infinity]) {
      assert.isTrue(Option.isNone(Priority.laneOf(priority)), String(priority))
    }
  })

  it.prop(
    "a higher number never falls into a less urgent lane",
    [
      Schema.Finite.check(Schema.isBetween({ minimum: 0, maximum: 100 })),
      Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 100 }))
    ],
    ([a, b]) => {
      const index = (n: number) => Priority.laneIndex(Option.getOrThrow(Priority.laneOf(n)))
      assert.isTrue(index(Math.max(a, b)) <= index(Math.min(a, b)))
    }
  )

  it("a name, its index and its priority agree", () => {
    for (const { index, minimum, name } of Priority.lanes) {
      assert.strictEqual(laneOf(name), name)
      assert.strictEqual(laneOf(minimum), name)
      assert.strictEqual(Priority.laneIndex(name), index)
      assert.strictEqual(Priority.laneName(index), name)
    }
  })

  it("a lane that does not exist is refused, not mistaken for another", () => {
    for (const index of [-1, 4, 0.5, NaN]) assert.throws(() => Priority.laneName(index), RangeError)
    for (const name of ["urgent", "Critical", "", "toString"]) {
      assert.isFalse(Schema.is(Priority.Lane)(name))
      // @ts-expect-error what plain JavaScript may pass
      assert.isTrue(Option.isNone(Priority.laneOf(name)))
    }
  })

  it("a weight that would starve a lane, or is out of range, is refused", () => {
    const isWeights = (u: unknown) => Result.isSuccess(Priority.makeWeights(u))
    assert.isTrue(isWeights(Priority.defaultWeights))
    assert.isTrue(isWeights({ critical: 1000, high: 1, normal: 1, low: 1 }))
    for (const low of [0, -1, 1.5, 1001, NaN, Infinity, "1", null, undefined]) {
      assert.isFalse(isWeights({ critical: 8, high: 4, normal: 2, low }), String(low))
    }
    assert.isFalse(isWeights({ critical: 8, high: 4, normal: 2 }))
    assert.isFalse(isWeights(null))
  })
})

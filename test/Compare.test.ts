/**
 * The verdict of `npm run bench -- --against`: the interval of a median ratio, and what counts as no worse.
 */
import { describe, expect, it } from "@effect/vitest"
import { compared, costOf, interval, sentence, unproven, verdict } from "../scripts/bench/compare.ts"
import { median, ratiosOf, type Sample } from "../scripts/bench/measure.ts"

const sample = (value: number, isMoreBetter = false): Sample => ({
  metric: "cost",
  value,
  unit: "us a job",
  isMoreBetter,
  jobs: 1
})

const rounds = (...values: ReadonlyArray<Sample>) => new Map(values.map((value, index) => [index + 1, value]))

/** Nine ratios around a middle one. */
const around = (middle: number, spread: number) => [-4, 3, -2, 1, 0, -1, 2, -3, 4].map((step) => middle + step * spread)

const row = {
  scenario: "drain",
  metric: "cost",
  system: "millrace@abc1234",
  median: 1,
  min: 1,
  max: 1,
  unit: "us a job",
  rounds: 9,
  jobs: 1,
  ratio: 1
}

describe("the cost of a sample", () => {
  it("is Node and database microseconds a job together", () => {
    const rate = { ...sample(9, true), metric: "rate", extra: { "node us a job": 20, "database us a job": 30, "x": 1 } }
    expect(costOf(rate)).toEqual(sample(50))
  })

  it("is unknown when either half is unknown", () => {
    expect(costOf({ ...sample(1), extra: { "node us a job": 20 } })).toBeUndefined()
    expect(costOf({ ...sample(1), extra: { "database us a job": 20 } })).toBeUndefined()
    expect(costOf(sample(1))).toBeUndefined()
  })
})

describe("the ratio of a round", () => {
  it("is above 1 when the working tree costs less", () => {
    expect(ratiosOf(rounds(sample(60)), rounds(sample(50)))).toEqual([1.2])
  })

  it("is above 1 when the working tree has the higher rate", () => {
    expect(ratiosOf(rounds(sample(50, true)), rounds(sample(60, true)))).toEqual([1.2])
  })

  it("compares measurements of the same round only", () => {
    const earlier = new Map([[1, sample(10)], [3, sample(30)]])
    const now = new Map([[2, sample(1)], [3, sample(10)]])
    expect(ratiosOf(earlier, now)).toEqual([3])
  })
})

describe("the 90 % interval of a median", () => {
  it("is the interpolation of Hettmansperger and Sheather", () => {
    // By hand, for nine: 492/512 between the 2nd and the 8th, 420/512 between the 3rd and the 7th.
    const excess = (492 / 512 - 0.9) / (72 / 512)
    const weight = 7 * excess / (2 + 5 * excess)
    const [low, high] = interval([9, 1, 8, 2, 7, 3, 6, 4, 5]) ?? []
    expect(low).toBeCloseTo(2 + weight, 12)
    expect(high).toBeCloseTo(8 - weight, 12)
    // For five: 30/32 between the extremes, 20/32 between the 2nd and the 4th.
    const few = (30 / 32 - 0.9) / (10 / 32)
    expect(interval([10, 20, 30, 40, 50])?.[0]).toBeCloseTo(10 + 10 * 4 * few / (1 + 3 * few), 12)
  })

  it("does not exist for fewer than five values", () => {
    expect(interval([])).toBeUndefined()
    expect(interval([1, 2, 3, 4])).toBeUndefined()
    expect(interval([1, 2, 3, 4, 5])).toBeDefined()
  })

  it("does not depend on the order of the values, and ignores one outlier among nine", () => {
    expect(interval(around(1, 0.01).toReversed())).toEqual(interval(around(1, 0.01)))
    expect(interval(around(1, 0.01).with(8, 40))).toEqual(interval(around(1, 0.01)))
  })

  it("holds the true median of skewed samples in about 90 % of the cases", () => {
    // A linear congruential generator (Numerical Recipes), so that the test repeats.
    let state = 1
    const random = () => {
      state = (state * 1_664_525 + 1_013_904_223) % 2 ** 32
      return (state + 0.5) / 2 ** 32
    }
    const trials = 4_000
    let holding = 0
    for (let trial = 0; trial < trials; trial++) {
      const [low = 0, high = 0] = interval(Array.from({ length: 9 }, () => -Math.log(random()))) ?? []
      if (low <= Math.LN2 && Math.LN2 <= high) holding++
    }
    expect(holding / trials).toBeGreaterThan(0.88)
    expect(holding / trials).toBeLessThan(0.92)
  })
})

describe("the verdict", () => {
  it("is no worse when the interval contains 1 and the median is at least 0.97", () => {
    expect(verdict(around(1, 0.01))).toBe("no worse")
    expect(verdict(around(0.98, 0.01))).toBe("no worse")
    expect(verdict(around(0.97, 0.02))).toBe("no worse")
  })

  it("is no worse when the interval lies above 1", () => {
    expect(verdict(around(1.2, 0.01))).toBe("no worse")
  })

  it("is worse when the interval lies below 1, however close the median is", () => {
    expect(median(around(0.99, 0.001))).toBeGreaterThan(0.97)
    expect(verdict(around(0.99, 0.001))).toBe("worse")
  })

  it("is worse when the median is below 0.97, however wide the interval is", () => {
    expect(interval(around(0.96, 0.05))?.[1]).toBeGreaterThan(1)
    expect(verdict(around(0.96, 0.05))).toBe("worse")
  })

  it("is undecided with fewer than five rounds", () => {
    expect(verdict([2, 2, 2, 2])).toBe("undecided")
    expect(verdict([])).toBe("undecided")
  })

  it("stands on the row of the deciding metric only, and every row has its interval", () => {
    const ratios = around(1, 0.01)
    expect(compared(row, ratios, "cost")).toEqual({ ...row, ratios, interval: interval(ratios), verdict: "no worse" })
    expect(compared(row, ratios, "p50")).toEqual({ ...row, ratios, interval: interval(ratios) })
    expect(compared(row, [1], "cost")).toEqual({ ...row, ratios: [1], verdict: "undecided" })
  })

  it("is missing where a scenario has no figure of one commit", () => {
    const rows = [
      { ...row, scenario: "drain", verdict: "no worse" },
      { ...row, scenario: "submit", interval: [0.9, 0.95], verdict: "worse" },
      { ...row, scenario: "latency" }
    ] as const
    expect(unproven(["drain"], rows)).toEqual([])
    expect(unproven(["drain", "submit", "latency"], rows)).toEqual([
      sentence(rows[1]),
      "latency: not compared, one of the two has no figure"
    ])
  })

  it("reads as a sentence with its ratio and interval", () => {
    const interval = [0.951, 0.983] as const
    expect(sentence({ ...row, ratio: 0.96, interval, verdict: "worse" })).toBe(
      "drain: worse than millrace@abc1234, cost ratio 0.960, 90 % interval 0.951 to 0.983 over 9 rounds"
    )
    expect(sentence({ ...row, rounds: 2, verdict: "undecided" })).toBe(
      "drain: undecided, cost ratio 1.000 over 2 rounds; a 90 % interval needs 5 rounds or more"
    )
  })
})

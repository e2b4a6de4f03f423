// What a job's priority means: four lanes, each with a weight, which is its share of the starts while all lanes have work.
// Promise: names, indexes, thresholds and default weights of the lanes stand here and nowhere else.
// Floor 0: pure.
import * as Option from "effect/Option"
import type * as Result from "effect/Result"
import * as Schema from "effect/Schema"

/**
 * The lanes, most urgent first.
 *
 * `index` is what the database stores, so their order never changes. `minimum` is the lowest numeric priority (0..100) of
 * the lane, `weight` its default weight.
 */
export const lanes = [
  { name: "critical", index: 0, minimum: 75, weight: 8 },
  { name: "high", index: 1, minimum: 50, weight: 4 },
  { name: "normal", index: 2, minimum: 25, weight: 2 },
  { name: "low", index: 3, minimum: 0, weight: 1 }
] as const

/** A lane by name: `critical`, `high`, `normal` or `low`. */
export const Lane = Schema.Literals(lanes.map((lane) => lane.name))
export type Lane = typeof Lane.Type

const byName = <K extends "index" | "weight">(key: K) => ({
  critical: lanes[0][key],
  high: lanes[1][key],
  normal: lanes[2][key],
  low: lanes[3][key]
})

const indexes = byName("index")

/** The index under which the database stores a lane: 0 is `critical`, 3 is `low`. */
export const laneIndex = (lane: Lane): number => indexes[lane]

/** The name of a stored lane. Any other index than 0 to 3 is a defect (`RangeError`). */
export const laneName = (index: number): Lane => {
  const lane = lanes[index]
  if (lane === undefined) throw new RangeError(`Priority: a lane's index is 0 to 3, got ${index}`)
  return lane.name
}

/**
 * The lane of a priority: a lane's name, or a number from 0 to 100 (75 and above is `critical`, then 50, 25 and 0).
 *
 * None for anything else, `NaN` included; the caller has the words for that error.
 */
export const laneOf = (priority: Lane | number): Option.Option<Lane> =>
  Option.fromUndefinedOr(
    lanes.find(({ minimum, name }) =>
      typeof priority === "number" ? priority >= minimum && priority <= 100 : priority === name
    )?.name
  )

const Weight = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 1000 }))

/**
 * One weight for each lane, an integer from 1 to 1000.
 *
 * None is 0: such a lane would starve. Pausing is another verb.
 */
export const Weights = Schema.Struct({ critical: Weight, high: Weight, normal: Weight, low: Weight })
export type Weights = typeof Weights.Type

/** 8:4:2:1. */
export const defaultWeights: Weights = byName("weight")

/** Checks weights that came from outside. */
export const makeWeights: (input: unknown) => Result.Result<Weights, Schema.SchemaError> = Schema.decodeUnknownResult(
  Weights
)

/**
 * How much is measured: counts and durations, from the command line.
 */
import * as Context from "effect/Context"

export interface Options {
  readonly isQuick: boolean
  /** Two commits are compared, which needs rounds enough for an interval. */
  readonly isComparison: boolean
  readonly jobs: number | undefined
  readonly rounds: number | undefined
  readonly seconds: number | undefined
}

export class Scale extends Context.Service<Scale, {
  readonly isQuick: boolean
  /** Jobs of a drain. Other scenarios have theirs in proportion. */
  readonly jobs: number
  readonly rounds: number
  /** Samples of a latency, and those before them that do not count. */
  readonly samples: number
  readonly warmUp: number
  /** How long a steady load lasts, and the disturbance within it. */
  readonly loadMillis: number
  readonly heldMillis: number
  /** Runner processes, and partitions of their queue: each of the ones with each of the others. */
  readonly runners: ReadonlyArray<number>
  readonly partitions: ReadonlyArray<number>
}>()("millrace/bench/Scale") {}

export const make = ({ isComparison, isQuick, jobs: given, rounds, seconds }: Options): Scale["Service"] => {
  const jobs = given ?? (isQuick ? 10_000 : 100_000)
  const loadMillis = (seconds ?? (isQuick ? 30 : 300)) * 1_000
  return {
    isQuick,
    jobs,
    rounds: rounds ?? (isComparison ? 9 : isQuick ? 1 : 3),
    samples: Math.max(10, Math.min(500, jobs)),
    warmUp: Math.max(5, Math.min(50, jobs / 10)),
    loadMillis,
    heldMillis: loadMillis * (isQuick ? 0.5 : 0.4),
    runners: isQuick ? [1, 2] : [1, 2, 4],
    partitions: isQuick ? [1, 2] : [1, 2, 4, 8, 16]
  }
}

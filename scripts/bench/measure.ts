/**
 * Figures out of measurements: percentiles, medians, and ratios that are taken round by round, since machines drift between rounds.
 */
import type { Row } from "./results.ts"

/** What one measurement of one system says, for one metric. */
export interface Sample {
  /** Names the figure within its scenario: `rate`, `p99`. */
  readonly metric: string
  readonly value: number
  readonly unit: string
  readonly isMoreBetter: boolean
  readonly jobs: number
  /** Where Millrace is measured against itself: the value of the undisturbed case, taken in the same round. */
  readonly reference?: number
  /** Secondary figures. */
  readonly extra?: Readonly<Record<string, number>>
}

/** The secondary figures that hold processor time. */
export const costs = { node: "node us a job", database: "database us a job" } as const

/** The value below which `part` of the sorted values lie. */
export const percentile = (values: ReadonlyArray<number> | Float64Array, part: number): number => {
  const sorted = Float64Array.from(values).sort()
  return sorted[Math.min(Math.floor(sorted.length * part), sorted.length - 1)] ?? Number.NaN
}

/** The middle one; of an even number the mean of the two in the middle. */
export const median = (values: ReadonlyArray<number>): number => {
  const sorted = values.toSorted((left, right) => left - right)
  const middle = sorted.length / 2
  return ((sorted[Math.ceil(middle) - 1] ?? Number.NaN) + (sorted[Math.floor(middle)] ?? Number.NaN)) / 2
}

const better = (sample: Sample, value: number, than: number) => sample.isMoreBetter ? value / than : than / value

/** One system's samples, by round; a round in which it failed is not there. */
export type Rounds = ReadonlyMap<number, Sample>

/** How many times better Millrace is, for each round that has both. */
export const ratiosOf = (rounds: Rounds, millrace: Rounds): ReadonlyArray<number> =>
  [...rounds].flatMap(([round, sample]) => {
    const own = millrace.get(round)
    if (own === undefined) return []
    return [
      own === sample
        ? sample.reference === undefined ? 1 : better(sample, sample.value, sample.reference)
        : better(own, own.value, sample.value)
    ]
  })

/** A row out of one system's samples of one metric, beside Millrace's of the same rounds. */
export const summarize = (scenario: string, system: string, rounds: Rounds, millrace: Rounds): Row | undefined => {
  const samples = [...rounds.values()]
  const [first] = samples
  if (first === undefined) return undefined
  const values = samples.map(({ value }) => value)
  const extra = Object.fromEntries(
    Object.keys(first.extra ?? {}).map((
      name
    ) => [name, median(samples.flatMap((sample) => sample.extra?.[name] ?? []))])
  )
  return {
    scenario,
    metric: first.metric,
    system,
    median: median(values),
    min: Math.min(...values),
    max: Math.max(...values),
    unit: first.unit,
    rounds: samples.length,
    jobs: first.jobs,
    ratio: median(ratiosOf(rounds, millrace)),
    ...(first.extra === undefined ? {} : { extra })
  }
}

/**
 * The working tree beside an earlier commit: what is compared, how certain the ratio is, and the verdict.
 */
import { costs, median, type Sample } from "./measure.ts"
import type { Row } from "./results.ts"

export type Verdict = NonNullable<Row["verdict"]>

/** The lowest median ratio that counts as no worse. */
const leastRatio = 0.97

/** The part of all samples whose interval holds the true median. */
const coverage = 0.9

/** Node + database microseconds a job, of a sample that has both. */
export const costOf = ({ extra, jobs }: Sample): Sample | undefined => {
  const node = extra?.[costs.node]
  const database = extra?.[costs.database]
  return node === undefined || database === undefined
    ? undefined
    : { metric: "cost", value: node + database, unit: "us a job", isMoreBetter: false, jobs }
}

/** How often at most `successes` of `trials` tosses of a coin are heads. */
const binomial = (successes: number, trials: number): number => {
  let term = 0.5 ** trials
  let sum = 0
  for (let heads = 0; heads <= successes; heads++) {
    sum += term
    term *= (trials - heads) / (heads + 1)
  }
  return sum
}

/**
 * The 90 % confidence interval of the median, from order statistics: no assumption about the distribution, and no random numbers.
 *
 * The interval from the k-th smallest to the k-th largest of n values holds the median with probability 1 - 2 P(B <= k - 1), B binomial
 * (n, 1/2): 96 % or 82 % with nine values. Between the two it is interpolated, after T. P. Hettmansperger and S. J. Sheather, "Confidence
 * intervals based on interpolated order statistics", Statistics & Probability Letters 4 (1986), 75-79; the same as `median_cihs` of
 * scipy.stats.mstats. `undefined` with fewer than five values: even the smallest and the largest hold the median less often.
 */
export const interval = (values: ReadonlyArray<number>): readonly [low: number, high: number] | undefined => {
  const count = values.length
  const covered = (k: number) => 1 - 2 * binomial(k - 1, count)
  if (covered(1) < coverage) return undefined
  let k = 1
  while (covered(k + 1) >= coverage) k++
  const excess = (covered(k) - coverage) / (covered(k) - covered(k + 1))
  const weight = (count - k) * excess / (k + (count - 2 * k) * excess)
  const bound = (sorted: ReadonlyArray<number>) =>
    (1 - weight) * (sorted[k - 1] ?? Number.NaN) + weight * (sorted[k] ?? Number.NaN)
  const ascending = values.toSorted((left, right) => left - right)
  return [bound(ascending), bound(ascending.toReversed())]
}

/**
 * No worse: the median ratio is at least 0.97, and its 90 % interval contains 1 or lies above. `ratios`: how many times better the working
 * tree is, by round. Without an interval nothing is decided.
 */
export const verdict = (ratios: ReadonlyArray<number>): Verdict => {
  const bounds = interval(ratios)
  if (bounds === undefined) return "undecided"
  return median(ratios) >= leastRatio && bounds[1] >= 1 ? "no worse" : "worse"
}

/** The row of the earlier commit with its ratios and their interval, and with the verdict where its metric decides. */
export const compared = (row: Row, ratios: ReadonlyArray<number>, decidedBy: string): Row => {
  const bounds = interval(ratios)
  return {
    ...row,
    ratios,
    ...(bounds === undefined ? {} : { interval: bounds }),
    ...(row.metric === decidedBy ? { verdict: verdict(ratios) } : {})
  }
}

/** The verdict of a scenario in a sentence. */
export const sentence = ({ interval, metric, ratio, rounds, scenario, system, verdict }: Row): string => {
  const figures = `${metric} ratio ${ratio.toFixed(3)}`
  const over = `over ${rounds} ${rounds === 1 ? "round" : "rounds"}`
  if (interval === undefined) {
    return `${scenario}: undecided, ${figures} ${over}; a 90 % interval needs 5 rounds or more`
  }
  const bounds = interval.map((bound) => bound.toFixed(3)).join(" to ")
  return `${scenario}: ${verdict} than ${system}, ${figures}, 90 % interval ${bounds} ${over}`
}

/** The scenarios that are worse, undecided or were not compared, in words. */
export const unproven = (scenarios: ReadonlyArray<string>, rows: ReadonlyArray<Row>): ReadonlyArray<string> =>
  scenarios.flatMap((scenario) => {
    const row = rows.find((row) => row.scenario === scenario && row.verdict !== undefined)
    if (row === undefined) return [`${scenario}: not compared, one of the two has no figure`]
    return row.verdict === "no worse" ? [] : [sentence(row)]
  })

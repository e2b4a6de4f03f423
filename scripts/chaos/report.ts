/**
 * The result of a run, for people and for machines.
 */
import type { Verdict } from "./checker/check.ts"
import type { Stall } from "./checker/stalls.ts"
import type { Counts } from "./faults.ts"

export interface Report extends Verdict {
  readonly faults: Counts
  readonly seed: number
  readonly minutes: number
  readonly runners: number
  readonly runtime: string
}

/** So many breaches are told of one by one. */
const shown = 20

const stall = ({ longestStallAt, longestStallMs, stallWithoutOutageMs }: Stall) =>
  `${longestStallMs} ms at ${(longestStallAt / 1_000).toFixed(1)} s, ${stallWithoutOutageMs} ms without outages`

const figures = (report: Report): ReadonlyArray<readonly [string, string | number]> => [
  ["jobs", report.jobs],
  ["acknowledged", report.acknowledged],
  ["handlers started", report.starts],
  ["lost", report.lost],
  ["duplicated", report.duplicated],
  ["unfinished", report.unfinished],
  ["attempts burnt", report.burnt],
  ["batches torn", report.torn],
  ["out of order", report.outOfOrder],
  ["illegal histories", report.illegal],
  ["server kills", report.serverKills],
  ["given up for crashes of others", report.innocents],
  ["of those beside a killer, though suspect", report.besideKillers],
  [
    "failover after kill -9",
    report.meanFailoverMs === undefined
      ? "-"
      : `${report.meanFailoverMs} ms in the mean of ${report.failovers} partitions, at most ${report.longestFailoverMs} ms`
  ],
  ["longest stall", stall(report)],
  [
    "of one partition",
    report.worstPartition === undefined
      ? "-"
      : `${stall(report.worstPartition)}, ${report.worstPartition.name}`
  ]
]

const table = (rows: ReadonlyArray<readonly [string, string | number]>): ReadonlyArray<string> => {
  const width = Math.max(...rows.map(([name]) => name.length))
  return rows.map(([name, value]) => `  ${name.padEnd(width)}  ${value}`)
}

/** As text. */
export const show = (report: Report): string => {
  const faults = Object.entries(report.faults).toSorted(([, a], [, b]) => b - a)
  const breaches = report.breaches.slice(0, shown).map(({ detail, of, rule }) => `  ${rule}: ${of} ${detail}`)
  const more = report.breaches.length - breaches.length
  return [
    `seed ${report.seed}, ${report.minutes} minutes, ${report.runners} runners (${report.runtime})`,
    "",
    ...table(figures(report)),
    ...report.worstPartition === undefined ? [] : [`  (meanwhile: ${report.worstPartition.meanwhile.join(", ")})`],
    "",
    "work",
    ...table(Object.entries(report.work)),
    "",
    "faults",
    ...table(faults.length === 0 ? [["none", 0]] : faults),
    "",
    report.breaches.length === 0 ? "Every promise was kept." : `${report.breaches.length} BREACHES`,
    ...breaches,
    ...more > 0 ? [`  and ${more} more`] : []
  ].join("\n")
}

/** So many breaches fit into the last line. */
const inLine = 100

/** As one line of JSON. */
export const line = (report: Report): string =>
  JSON.stringify({ ...report, breaches: report.breaches.slice(0, inLine), breachCount: report.breaches.length })

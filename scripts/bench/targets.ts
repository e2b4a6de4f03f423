/**
 * What is aimed at, as data: ratios of one run, and a few bounds on Millrace's own figures.
 */
import type { Row } from "./results.ts"

type Target =
  & {
    readonly scenario: string
    readonly metric: string
    /** `best peer`: the one that comes closest to Millrace, whichever it is; `bare` is none. */
    readonly system: string
  }
  & ({ readonly ratio: number; readonly words?: string } | { readonly atMost: number })

const rates = (scenario: string, ratios: Readonly<Record<string, number>>): ReadonlyArray<Target> =>
  Object.entries(ratios).map(([system, ratio]) => ({ scenario, metric: "rate", system, ratio }))

const itself = (
  scenario: string,
  metric: string,
  bound: { readonly ratio: number; readonly words: string } | { readonly atMost: number }
): Target => ({
  scenario,
  metric,
  system: "millrace",
  ...bound
})

const targets: ReadonlyArray<Target> = [
  ...rates("submit", { bullmq: 1.5, "pg-boss": 8 }),
  ...rates("submitBatch", { bare: 0.6, "best peer": 1.3 }),
  ...rates("drain", { bare: 0.8, "pg-boss": 1.3, "graphile-worker": 1, bullmq: 2, "effect-mq": 40 }),
  ...rates("drainTx", { bare: 1.05, "graphile-worker": 1.05, "pg-boss": 10 }),
  ...rates("drainGrouped", { "pg-boss": 1.6 }),
  { scenario: "latency", metric: "p50", system: "best peer", ratio: 1 },
  { scenario: "latency", metric: "p99", system: "best peer", ratio: 1 },
  itself("backlog", "rate", { ratio: 0.9, words: "of the small case" }),
  itself("neighbour", "p99", { ratio: 1 / 5, words: "of the quiet part: below 5 times its p99" }),
  itself("neighbour", "backlog left", { atMost: 0 }),
  itself("neighbour", "dead tuples", { atMost: 1.2 }),
  itself("lanes", "p99", { ratio: 1 / 3, words: "of an idle queue: below 3 times its p99" }),
  itself("startup", "running server", { atMost: 500 }),
  itself("memory", "peak", { atMost: 150 }),
  itself("memory", "growth", { atMost: 1.1 })
]

/** The row that a target is about, if it was measured. */
const rowOf = (target: Target, rows: ReadonlyArray<Row>): Row | undefined => {
  const measured = rows.filter(({ metric, scenario }) => scenario === target.scenario && metric === target.metric)
  if (target.system !== "best peer") return measured.find(({ system }) => system === target.system)
  const peers = measured.filter(({ system }) => system !== "millrace" && system !== "bare")
  return peers.toSorted((left, right) => left.ratio - right.ratio)[0]
}

const check = (target: Target, row: Row): Pick<Row, "target" | "isMet"> => {
  if ("atMost" in target) return { target: `at most ${target.atMost} ${row.unit}`, isMet: row.median <= target.atMost }
  const whom = target.system === "best peer" ? "best peer" : target.words ?? ""
  return { target: `ratio >= ${Number(target.ratio.toFixed(2))} ${whom}`.trim(), isMet: row.ratio >= target.ratio }
}

/** The rows of a scenario, each with its target where it has one. Of two targets the best peer's stands behind the peer's own. */
export const withTargets = (rows: ReadonlyArray<Row>): ReadonlyArray<Row> => {
  const found = targets.map((target) => ({ target, row: rowOf(target, rows) }))
  return rows.map((row) => {
    const own = found.find((entry) => entry.row === row)
    return own === undefined ? row : { ...row, ...check(own.target, row) }
  })
}

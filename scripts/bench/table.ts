/**
 * Rows as people read them.
 */
import { sentence } from "./compare.ts"
import type { Row } from "./results.ts"

/** Three significant digits, thousands apart. */
export const figure = (value: number): string =>
  Math.abs(value) >= 100
    ? Math.round(value).toLocaleString("en-US")
    : Number(value.toPrecision(3)).toLocaleString("en-US", { maximumFractionDigits: 6 })

interface Column {
  readonly head: string
  readonly cell: (row: Row) => string
  readonly isNumber?: boolean
}

const shared: ReadonlyArray<Column> = [
  { head: "metric", cell: ({ metric }) => metric },
  { head: "system", cell: ({ system }) => system },
  { head: "median", cell: ({ median }) => figure(median), isNumber: true },
  { head: "min", cell: ({ min }) => figure(min), isNumber: true },
  { head: "max", cell: ({ max }) => figure(max), isNumber: true },
  { head: "unit", cell: ({ unit }) => unit },
  { head: "rounds", cell: ({ rounds }) => String(rounds), isNumber: true },
  { head: "jobs", cell: ({ jobs }) => figure(jobs), isNumber: true }
]

const beside: ReadonlyArray<Column> = [
  { head: "ratio", cell: ({ ratio }) => ratio.toFixed(2), isNumber: true },
  { head: "target", cell: ({ target }) => target ?? "" },
  { head: "met", cell: ({ isMet }) => isMet === undefined ? "" : isMet ? "yes" : "NO" }
]

/** A commit's ratios are close to 1. */
const against: ReadonlyArray<Column> = [
  { head: "ratio", cell: ({ ratio }) => ratio.toFixed(3), isNumber: true },
  { head: "90 % interval", cell: ({ interval }) => interval?.map((bound) => bound.toFixed(3)).join(" to ") ?? "" },
  { head: "verdict", cell: ({ verdict }) => verdict ?? "" }
]

const secondary = ({ extra, metric, system }: Row): ReadonlyArray<string> =>
  extra === undefined
    ? []
    : [`${system}, ${metric}: ${Object.entries(extra).map(([name, value]) => `${name} ${figure(value)}`).join(", ")}`]

/** One scenario's rows, and below them what each measurement cost and the verdict. */
export const show = (scenario: string, what: string, rows: ReadonlyArray<Row>): string => {
  const decided = rows.filter(({ verdict }) => verdict !== undefined)
  const columns = [...shared, ...decided.length > 0 ? against : beside]
  const lines = [columns.map(({ head }) => head), ...rows.map((row) => columns.map(({ cell }) => cell(row)))]
  const widths = columns.map((_, column) => Math.max(...lines.map((line) => line[column]?.length ?? 0)))
  const text = (line: ReadonlyArray<string>) =>
    line.map((cell, column) => {
      const width = widths[column] ?? 0
      return columns[column]?.isNumber === true ? cell.padStart(width) : cell.padEnd(width)
    }).join("  ").trimEnd()
  return [
    `\n${scenario}: ${what}`,
    ...[...lines.map(text), ...rows.flatMap(secondary), ...decided.map(sentence)].map((line) => `  ${line}`)
  ].join("\n")
}

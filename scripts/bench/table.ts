/**
 * Rows as people read them.
 */
import type { Row } from "./results.ts"

/** Three significant digits, thousands apart. */
export const figure = (value: number): string =>
  Math.abs(value) >= 100
    ? Math.round(value).toLocaleString("en-US")
    : Number(value.toPrecision(3)).toLocaleString("en-US", { maximumFractionDigits: 6 })

const heads = ["metric", "system", "median", "min", "max", "unit", "rounds", "jobs", "ratio", "target", "met"]

const cells = (row: Row): ReadonlyArray<string> => [
  row.metric,
  row.system,
  figure(row.median),
  figure(row.min),
  figure(row.max),
  row.unit,
  String(row.rounds),
  figure(row.jobs),
  row.ratio.toFixed(2),
  row.target ?? "",
  row.isMet === undefined ? "" : row.isMet ? "yes" : "NO"
]

const isNumber = new Set(["median", "min", "max", "rounds", "jobs", "ratio"])

const secondary = ({ extra, metric, system }: Row): ReadonlyArray<string> =>
  extra === undefined
    ? []
    : [`${system}, ${metric}: ${Object.entries(extra).map(([name, value]) => `${name} ${figure(value)}`).join(", ")}`]

/** One scenario's rows, and below them what each measurement cost. */
export const show = (scenario: string, what: string, rows: ReadonlyArray<Row>): string => {
  const lines = [heads, ...rows.map(cells)]
  const widths = heads.map((_, column) => Math.max(...lines.map((line) => line[column]?.length ?? 0)))
  const text = (line: ReadonlyArray<string>) =>
    line.map((cell, column) => {
      const width = widths[column] ?? 0
      return isNumber.has(heads[column] ?? "") ? cell.padStart(width) : cell.padEnd(width)
    }).join("  ").trimEnd()
  return [`\n${scenario}: ${what}`, ...[...lines.map(text), ...rows.flatMap(secondary)].map((line) => `  ${line}`)]
    .join("\n")
}

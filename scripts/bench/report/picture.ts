/**
 * The results as an SVG: bars of throughput for each scenario, and start latencies on a logarithmic scale. It has a ground of its own, so it
 * reads the same on light and dark pages.
 */
import type { Row, Run } from "../results.ts"
import { figure } from "../table.ts"

const width = 860
const margin = 24
const labelWidth = 130
const valueWidth = 175
const barHeight = 16
const gap = 4
const plotWidth = width - 2 * margin - labelWidth - valueWidth

/** Told apart also by people who do not see all colours (Okabe and Ito), Millrace darkest. */
const colours = ["#0072b2", "#999999", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"]

const escaped = (text: string) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;")

const text = (x: number, y: number, words: string, options = "") =>
  `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${options}>${escaped(words)}</text>`

/** A piece of the picture, drawn from a height downwards. */
interface Piece {
  readonly height: number
  readonly draw: (top: number) => string
}

const heading = (words: string): Piece => ({
  height: 40,
  draw: (top) => text(margin, top + 28, words, "font-size=\"16\" font-weight=\"600\"")
})

const bars = (scenario: string, rows: ReadonlyArray<Row>, colourOf: (system: string) => string): Piece => {
  const most = Math.max(...rows.map(({ median }) => median))
  return {
    height: 28 + rows.length * (barHeight + gap) + 8,
    draw: (top) =>
      [
        text(margin, top + 18, `${scenario}, ${rows[0]?.unit ?? ""}`, "font-weight=\"600\""),
        ...rows.map(({ median, ratio, system }, index) => {
          const y = top + 28 + index * (barHeight + gap)
          const length = Math.max(1, median / most * plotWidth)
          const beside = system === "millrace" ? "" : `  (Millrace: ${ratio.toFixed(2)} x)`
          return [
            text(margin + labelWidth - 8, y + 12, system, "text-anchor=\"end\""),
            `<rect x="${margin + labelWidth}" y="${y}" width="${
              length.toFixed(1)
            }" height="${barHeight}" rx="2" fill="${colourOf(system)}"/>`,
            text(margin + labelWidth + length + 6, y + 12, `${figure(median)}${beside}`)
          ].join("")
        })
      ].join("\n")
  }
}

const percentiles = ["p50", "p90", "p99"]

/** One line a system: from its p50 over its p90 to its p99. */
const latencies = (rows: ReadonlyArray<Row>, colourOf: (system: string) => string): Piece => {
  const systems = [...new Set(rows.map(({ system }) => system))]
  const values = rows.map(({ median }) => median)
  const from = Math.floor(Math.log10(Math.min(...values)))
  const to = Math.max(Math.ceil(Math.log10(Math.max(...values))), from + 1)
  const x = (value: number) => margin + labelWidth + (Math.log10(value) - from) / (to - from) * plotWidth
  const rowHeight = 28
  const height = systems.length * rowHeight
  return {
    height: height + 40,
    draw: (top) => {
      const ticks = Array.from({ length: to - from + 1 }, (_, index) => 10 ** (from + index)).flatMap((value) => [
        `<line x1="${x(value).toFixed(1)}" x2="${x(value).toFixed(1)}" y1="${top}" y2="${
          top + height
        }" stroke="#d0d7de"/>`,
        text(x(value), top + height + 16, `${value} ms`, "text-anchor=\"middle\"")
      ])
      const lines = systems.map((system, index) => {
        const y = top + index * rowHeight + 16
        const found = percentiles.flatMap((name) =>
          rows.find(({ metric, system: other }) => metric === name && other === system) ?? []
        )
        const [first] = found
        const last = found.at(-1)
        if (first === undefined || last === undefined) return ""
        return [
          text(margin + labelWidth - 8, y + 4, system, "text-anchor=\"end\""),
          `<line x1="${x(first.median).toFixed(1)}" x2="${x(last.median).toFixed(1)}" y1="${y}" y2="${y}" stroke="${
            colourOf(system)
          }" stroke-width="3"/>`,
          ...found.map(({ median, metric }) =>
            `<circle cx="${x(median).toFixed(1)}" cy="${y}" r="${metric === "p90" ? 3 : 5}" fill="${
              colourOf(system)
            }"/>`
          ),
          text(x(last.median) + 10, y + 4, found.map(({ median }) => figure(median)).join(" / "))
        ].join("")
      })
      return [...ticks, ...lines].join("\n")
    }
  }
}

/** The whole picture. */
export const picture = (run: Run, rows: ReadonlyArray<Row>): string => {
  const names = run.systems.map(({ name }) => name)
  const colourOf = (system: string) => colours[names.indexOf(system) % colours.length] ?? "#999999"
  const rates = rows.filter(({ metric, scenario }) =>
    metric === "rate" && rows.some((row) => row.scenario === scenario && row.system !== "millrace")
  )
  const latency = rows.filter(({ metric, scenario }) => scenario === "latency" && percentiles.includes(metric))
  const pieces = [
    ...(rates.length === 0 ? [] : [heading("Throughput: more is better")]),
    ...[...new Set(rates.map(({ scenario }) => scenario))].map((scenario) =>
      bars(scenario, rates.filter((row) => row.scenario === scenario), colourOf)
    ),
    ...(latency.length === 0
      ? []
      : [
        heading("Start latency on an idle queue, p50 / p90 / p99 in ms: less is better"),
        latencies(latency, colourOf)
      ])
  ]
  let height = margin / 2
  const drawn = pieces.map((piece) => {
    const top = height
    height += piece.height
    return piece.draw(top)
  })
  const foot = `${
    run.date.slice(0, 10)
  }, ${run.machine.cpu}, ${run.machine.cores} cores, Node ${run.node}, PostgreSQL ${run.postgres}`
  const all = height + 36
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${all}" width="${width}" height="${all}" role="img" aria-label="Throughput and start latency of the systems measured" font-family="system-ui, sans-serif" font-size="12" fill="#1f2328">
<rect x="0.5" y="0.5" width="${width - 1}" height="${all - 1}" rx="8" fill="#ffffff" stroke="#d0d7de"/>
${drawn.join("\n")}
${text(margin, height + 20, foot, "fill=\"#59636e\"")}
</svg>
`
}

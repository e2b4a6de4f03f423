/**
 * The results as Markdown, in the layout that dprint gives tables.
 */
import type { Row, Run } from "../results.ts"
import { figure } from "../table.ts"

const millrace = "millrace"

const table = (heads: ReadonlyArray<string>, lines: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = heads.map((head, column) =>
    Math.max(3, head.length, ...lines.map((line) => line[column]?.length ?? 0))
  )
  const text = (cells: ReadonlyArray<string>) =>
    `| ${cells.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(" | ")} |`
  return [text(heads), text(widths.map((width) => "-".repeat(width))), ...lines.map(text)].join("\n")
}

/** `scenario, metric` once each, in the order measured. */
const figuresOf = (
  rows: ReadonlyArray<Row>
) => [...new Map(rows.map((row) => [`${row.scenario} ${row.metric}`, row])).values()]

const label = ({ metric, scenario, unit }: Row) =>
  metric === "rate" ? `\`${scenario}\`, ${unit}` : `\`${scenario}\` ${metric}, ${unit}`

/** Rates and latencies, a column for each system. */
const beside = (run: Run, rows: ReadonlyArray<Row>): string => {
  const shared = figuresOf(rows).filter(({ metric, scenario }) =>
    rows.some((row) => row.scenario === scenario && row.metric === metric && row.system !== millrace)
  )
  const systems = run.systems.map(({ name }) => name)
  return table(
    ["", ...systems],
    shared.map((one) => [
      label(one),
      ...systems.map((system) => {
        const row = rows.find((row) =>
          row.scenario === one.scenario && row.metric === one.metric && row.system === system
        )
        if (row === undefined) return "-"
        return system === millrace ? `**${figure(row.median)}**` : `${figure(row.median)} (${row.ratio.toFixed(2)})`
      })
    ])
  )
}

const range = ({ max, median, min }: Row) =>
  min === max ? figure(median) : `${figure(median)} (${figure(min)} to ${figure(max)})`

/** What was aimed at. */
const aims = (rows: ReadonlyArray<Row>): string =>
  table(
    ["", "beside", "Millrace, min to max", "ratio", "aim", "reached"],
    rows.flatMap((row) => {
      if (row.target === undefined) return []
      const own = rows.find(({ metric, scenario, system }) =>
        scenario === row.scenario && metric === row.metric && system === millrace
      )
      return [[
        label(row),
        row.system === millrace ? "itself" : row.system,
        range(own ?? row),
        row.system === millrace && row.ratio === 1 ? "" : row.ratio.toFixed(2),
        row.target,
        row.isMet === true ? "yes" : "**no**"
      ]]
    })
  )

/** What a job cost, where it was measured. */
const costs = (rows: ReadonlyArray<Row>): string => {
  const drains = rows.filter(({ extra, scenario }) => scenario.startsWith("drain") && extra !== undefined)
  const names = [...new Set(drains.flatMap(({ extra }) => Object.keys(extra ?? {})))]
  return table(
    ["", "system", ...names],
    drains.map(({ extra, scenario, system }) => [
      `\`${scenario}\``,
      system,
      ...names.map((name) => extra?.[name] === undefined ? "-" : figure(extra[name]))
    ])
  )
}

/** Several processes on one queue, and nothing where that was not measured. */
const several = (rows: ReadonlyArray<Row>): ReadonlyArray<string> => {
  const cases = rows.filter(({ scenario }) => scenario === "scale")
  if (cases.length === 0) return []
  const names = [...new Set(cases.flatMap(({ extra }) => Object.keys(extra ?? {})))]
  const lines = cases.map((row) => [
    row.metric,
    range(row),
    row.ratio.toFixed(2),
    ...names.map((name) => row.extra?.[name] === undefined ? "-" : figure(row.extra[name]))
  ])
  return [
    "Several processes on one queue, runners x partitions:",
    table(["`scale`", cases[0]?.unit ?? "", "times 1 x 1", ...names], lines)
  ]
}

const versions = (packages: Run["packages"]) =>
  Object.entries(packages).map(([name, version]) => `${name} ${version}`).join(", ")

const head = (run: Run): string => {
  const { cores, cpu, memoryGb, os } = run.machine
  const server = run.isOwnServer
    ? "embedded, with default settings: fsync and synchronous_commit on"
    : "a server that was given"
  const flush = run.flushMs === undefined ? "" : `; a small write and its flush take ${figure(run.flushMs)} ms`
  return [
    `Measured on ${run.date.slice(0, 10)}${
      run.commit === undefined ? "" : ` at commit ${run.commit}`
    }: ${cpu}, ${cores} cores, ${memoryGb} GB, ${os}.`,
    `Node ${run.node}, PostgreSQL ${run.postgres} (${server}${flush}), ${versions(run.packages)}.`,
    `Medians of ${run.rounds} ${run.rounds === 1 ? "round" : "rounds"}, ${figure(run.jobs)} jobs a drain${
      run.isQuick ? ", `--quick`" : ""
    }.`,
    "In brackets: how many times better Millrace is, from the rounds' own ratios; above 1 is good for Millrace."
  ].join(" ")
}

const leftOut = (run: Run): string =>
  [
    "What the figures leave out:",
    "",
    ...[
      "Everything runs on one machine: database, Redis and worker share its cores, and no network lies between them.",
      "One worker process each, but in `scale`, where several share the cores of one machine. Nothing is said about many queues.",
      "Handlers do nothing, or write one row. The longer real ones take, the smaller the differences.",
      "Payloads are 100 bytes of JSON.",
      "The systems do not promise the same. What they keep, and what a crash costs them, is in their descriptions above and their documentation. Redis wrote nothing to disk.",
      "Peak RSS is of workers that read their own TypeScript, about 20 MB for peers and 50 MB for Millrace; `memory` is of the built package. Redis's processor time is not in the database's.",
      ...(run.fewer.length === 0
        ? []
        : [`Where the full count would take hours, a system had fewer jobs: ${run.fewer.join("; ")}.`]),
      ...run.leftOut.map(({ because, system }) => `Without ${system}: ${because.split("\n")[0]}`),
      ...run.failures.map(({ message, scenario, system }) =>
        `${system} failed in \`${scenario}\`: ${message.split("\n")[0]}`
      )
    ].map((line) => `- ${line}`)
  ].join("\n")

/** All of it. `image` is the picture's path from the page. */
export const page = (run: Run, rows: ReadonlyArray<Row>, image: string): string =>
  [
    head(run),
    `![Throughput and start latency of the systems measured](${image})`,
    beside(run, rows),
    run.systems.map(({ description, name }) => `- **${name}**: ${description}`).join("\n"),
    "What was aimed at:",
    aims(rows),
    "What a job cost:",
    costs(rows),
    ...several(rows),
    leftOut(run)
  ].join("\n\n")

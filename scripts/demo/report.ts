/**
 * What happened, as text: the table of files, and the history of one job.
 */
import type { Jobs } from "../../src/index.ts"
import type { IndexedFile } from "./Runs.ts"

const grouped = (value: number): string => value.toLocaleString("en")

const seconds = (millis: number): string => `${(millis / 1_000).toFixed(3)} s`

type Cell = string | number

/** Columns as wide as they need to be; numbers to the right. */
const table = (header: ReadonlyArray<string>, rows: ReadonlyArray<ReadonlyArray<Cell>>): string => {
  const texts = rows.map((row) => row.map((cell) => typeof cell === "number" ? grouped(cell) : cell))
  const widths = header.map((title, at) => Math.max(title.length, ...texts.map((row) => row[at]?.length ?? 0)))
  const isNumber = header.map((_, at) => typeof rows[0]?.[at] === "number")
  const line = (cells: ReadonlyArray<string>) =>
    "  " +
    cells.map((cell, at) => isNumber[at] === true ? cell.padStart(widths[at] ?? 0) : cell.padEnd(widths[at] ?? 0)).join(
      "  "
    ).trimEnd()
  return [line(header), line(widths.map((width) => "─".repeat(width))), ...texts.map(line)].join("\n")
}

/** How often the handler was started, in all lives of the job. */
export const attempts = (status: Jobs.JobStatus | undefined): number =>
  status?.history.filter(({ move }) => move === "started").length ?? 0

/** A row of the table, with the attempts it took. */
export interface Attempted extends IndexedFile {
  readonly attempts: number
}

const most = 30

/** The indexed files. Of many only the first, and those that took more than one attempt. */
export const filesTable = (files: ReadonlyArray<Attempted>): string => {
  const hard = files.filter(({ attempts }) => attempts > 1).slice(0, most)
  const easy = files.filter(({ attempts }) => attempts <= 1).slice(0, most - hard.length)
  const isShown = new Set([...hard, ...easy])
  const shown = files.filter((file) => isShown.has(file))
  const rest = files.length - shown.length
  const body = table(
    ["file", "lines", "words", "sha256", "attempts"],
    shown.map(({ attempts, lines, path, sha256, words }) => [path, lines, words, sha256.slice(0, 12), attempts])
  )
  return rest === 0 ? body : `${body}\n  ... and ${grouped(rest)} more in the table demo.files`
}

/** One sentence on all of them. */
export const summary = (files: ReadonlyArray<IndexedFile>, total: number): string => {
  const lines = files.reduce((sum, file) => sum + file.lines, 0)
  const words = files.reduce((sum, file) => sum + file.words, 0)
  const distinct = new Set(files.map(({ path }) => path)).size
  const twice = files.length === distinct ? "none" : grouped(files.length - distinct)
  return `${grouped(files.length)} rows for ${grouped(total)} files, ${twice} of them twice. ${grouped(lines)} lines, ${
    grouped(words)
  } words.`
}

/** Every move of a job since it was submitted. */
export const history = (status: Jobs.JobStatus): string =>
  table(
    ["after", "move", "state", "attempt", "what"],
    status.history.map(({ at, attempt, dueAt, failure, move, to }) => [
      seconds(at - status.submittedAt),
      move,
      to,
      attempt === undefined ? "" : String(attempt),
      failure !== undefined
        ? `${failure.tag}: ${failure.message}${dueAt === undefined ? "" : `; again in ${seconds(dueAt - at)}`}`
        : ""
    ])
  )

/**
 * What happened, as text: the table of files, and the history of one job.
 */
import type { Jobs } from "../../src/index.ts"
import type { IndexedFile } from "./Runs.ts"

const grouped = (value: number): string => value.toLocaleString("en")

type Cell = string | number

/** Columns as wide as they need to be; numbers to the right. */
const table = (header: ReadonlyArray<string>, rows: ReadonlyArray<ReadonlyArray<Cell>>): string => {
  const texts = rows.map((row) => row.map((cell) => typeof cell === "number" ? grouped(cell) : cell))
  const widths = header.map((title, at) => Math.max(title.length, ...texts.map((row) => row[at]?.length ?? 0)))
  const isNumber = header.map((_, at) => typeof rows[0]?.[at] === "number")
  const line = (cells: ReadonlyArray<string>) =>
    "  " + cells.map((cell, at) => isNumber[at] === true ? cell.padStart(widths[at] ?? 0) : cell.padEnd(widths[at] ?? 0)).join("  ").trimEnd()
  return [line(header), line(widths.map((width) => "─".repeat(width))), ...texts.map(line)].join("\n")
}

const most = 30

/** The indexed files. Of many only the first, and those that took more than one attempt. */
export const filesTable = (files: ReadonlyArray<IndexedFile>): string => {
  const hard = files.filter(({ attempt }) => attempt > 1).slice(0, most)
  const easy = files.filter(({ attempt }) => attempt === 1).slice(0, most - hard.length)
  const shown = files.filter((file) => hard.includes(file) || easy.includes(file))
  const rest = files.length - shown.length
  const body = table(
    ["file", "lines", "words", "sha256", "attempts"],
    shown.map(({ attempt, lines, path, sha256, words }) => [path, lines, words, sha256.slice(0, 12), attempt])
  )
  return rest === 0 ? body : `${body}\n  ... and ${grouped(rest)} more in the table demo.files`
}

/** One sentence on all of them. */
export const summary = (files: ReadonlyArray<IndexedFile>, total: number): string => {
  const lines = files.reduce((sum, file) => sum + file.lines, 0)
  const words = files.reduce((sum, file) => sum + file.words, 0)
  const distinct = new Set(files.map(({ path }) => path)).size
  return `${grouped(files.length)} rows for ${grouped(total)} files, ${grouped(files.length - distinct)} of them twice: ` +
    `${grouped(lines)} lines, ${grouped(words)} words.`
}

/** Every move of a job since it was submitted. */
export const history = (status: Jobs.JobStatus): string =>
  table(
    ["after", "move", "state", "attempt", "what"],
    status.history.map(({ at, attempt, dueAt, failure, move, to }) => [
      `${Math.round(at - status.submittedAt)} ms`,
      move,
      to,
      attempt === undefined ? "" : String(attempt),
      failure !== undefined
        ? `${failure.tag}: ${failure.message}${dueAt === undefined ? "" : `; again in ${Math.round(dueAt - at)} ms`}`
        : ""
    ])
  )

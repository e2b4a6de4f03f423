/**
 * What a job has been through.
 */
import type { Entry, Row } from "../evidence.ts"
import { attemptsOf, crashesOf, isCounted, isGivenUp, isOpen, isWhole, rerunsOf, type Rule, slackMs } from "./rule.ts"

/** How a run ends, or a job that is queued or retrying. */
const ends = ["completed", "retried", "dead-lettered", "put back", "interrupted", "crashed", "cancelled"]
/** A queued one may also expire before it is started. */
const queued = [...ends, "expired"]

/** What may follow what, by outcome or kind; `""` is the submission. */
const followers: Readonly<Record<string, ReadonlyArray<string>>> = {
  "": queued,
  retried: ends,
  "put back": queued,
  interrupted: queued,
  crashed: queued,
  "dead-lettered": ["replayed"],
  replayed: ends,
  completed: [],
  cancelled: [],
  expired: []
}

/** How a history ends for each final state. */
const lastOf: Readonly<Record<string, string>> = {
  completed: "completed",
  failed: "dead-lettered",
  cancelled: "cancelled",
  expired: "expired"
}

/** What an entry is called in the table above. */
const nameOf = ({ kind, outcome }: Entry) => kind === "attempt" ? outcome ?? "" : kind

const illegalities = (row: Row): string | undefined => {
  let before = ""
  let time = Number.NEGATIVE_INFINITY
  let attempt = 0
  for (const entry of row.history) {
    const name = nameOf(entry)
    const from = entry.startedAt ?? entry.at ?? Number.NaN
    const to = entry.endedAt ?? entry.at ?? Number.NaN
    if (followers[before]?.includes(name) !== true) return `${name} follows ${before || "the submission"}`
    if (!(to + slackMs >= from && from + slackMs >= time)) return `${name} at ${from} comes after ${time}`
    if (name === "replayed") attempt = 0
    if (isCounted(entry)) {
      attempt += 1
      if (entry.attempt !== attempt) return `attempt ${entry.attempt} comes where ${attempt} is due`
    } else if ((name === "interrupted" || name === "crashed") && entry.attempt !== attempt + 1) {
      return `${name} with attempt ${entry.attempt} comes where ${attempt + 1} is due`
    }
    before = name
    time = to
  }
  const expected = lastOf[row.state]
  if (expected !== undefined && before !== expected) return `is ${row.state} and its history ends with ${before}`
  if (attemptsOf(row).length !== row.attempt) {
    return `counts ${row.attempt} attempts, its history has ${attemptsOf(row).length}`
  }
  if (crashesOf(row).length !== row.crashes) {
    return `counts ${row.crashes} crashes, its history has ${crashesOf(row).length}`
  }
  if (rerunsOf(row).length > row.reruns) return `counts ${row.reruns} reruns, its history has ${rerunsOf(row).length}`
  return undefined
}

/** A history is complete and tells of moves that are allowed. */
export const legal: Rule = ({ rows }) =>
  rows.flatMap((row) => {
    const detail = isWhole(row) ? illegalities(row) : undefined
    return detail === undefined ? [] : [{ rule: "legal", of: row.id, detail }]
  })

/** A replay happens once, and the history before it stays. */
export const replayed: Rule = ({ calls, rows, terms }) => {
  const asked = Map.groupBy(calls.filter(({ op }) => op === "replay"), ({ job }) => job)
  return rows.flatMap((row) => {
    const count = row.history.filter(({ kind }) => kind === "replayed").length
    const own = asked.get(row.id) ?? []
    const acknowledged = own.filter(({ answer }) => answer === "ack").length
    const say = (detail: string) => [{ rule: "replayed", of: row.id, detail }]
    if (count < acknowledged || count > acknowledged + own.filter(isOpen).length) {
      return say(`was replayed ${count} times, ${acknowledged} were acknowledged`)
    }
    const first = row.history.findIndex(({ kind }) => kind === "replayed")
    const before = row.history.slice(0, Math.max(first, 0))
    const hasAll = before.some(isGivenUp) || before.filter(isCounted).length === terms.maxAttempts
    return first < 0 || hasAll ? [] : say("has lost the attempts before its replay")
  })
}

/** A job is cancelled when somebody asked for it, and then it is. */
export const cancelled: Rule = ({ calls, rows }) => {
  const asked = Map.groupBy(calls.filter(({ op }) => op === "cancel"), ({ job }) => job)
  return rows.flatMap((row) => {
    const own = asked.get(row.id) ?? []
    const isAcknowledged = own.some(({ answer }) => answer === "ack")
    const isPossible = isAcknowledged || own.some(isOpen)
    const isCancelled = row.state === "cancelled"
    if (isCancelled === isAcknowledged || (isCancelled && isPossible)) return []
    const detail = isCancelled
      ? "is cancelled and nobody asked for it"
      : `is ${row.state} and its cancel was acknowledged`
    return [{ rule: "cancelled", of: row.id, detail }]
  })
}

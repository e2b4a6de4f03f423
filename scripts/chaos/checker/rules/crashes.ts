/**
 * What counts as a crash, and for whom.
 */
import type { Breach, Event, Evidence, Row, Sample } from "../evidence.ts"
import { type Rule, slackMs } from "./rule.ts"

/**
 * What may take a partition from its owner without a word: what ran there then is counted as crashed, whether its process died or not. A
 * process that stood still wakes up late and may take over once more.
 */
const isUnclean = ({ is, kind = "", what }: Event) =>
  (what === "runner" && (is === "killed" || is === "stood")) ||
  (what === "database" && is === "down") ||
  (what === "fault" &&
    ["freeze", "cut", "stall", "peerCut", "peerStall", "unplug", "refuse", "terminate"].includes(kind))

/** When it began and ended. */
const spanOf = (event: Event) => {
  const { at, forMs = 0, what } = event
  // A fault is told of before, what stood still after.
  return what === "fault" ? { from: at, to: at + forMs } : { from: at - forMs, to: at }
}

/** How often a partition has changed hands, by the monitor. */
const changesOf = (samples: ReadonlyArray<Sample>, partition: string, from: number, to: number): number => {
  const seen = samples.flatMap(({ at, epochs }) =>
    epochs?.[partition] === undefined ? [] : [{ at, epoch: epochs[partition] }]
  )
  const before = seen.findLast(({ at }) => at <= from)?.epoch ?? 0
  return (seen.findLast(({ at }) => at <= to)?.epoch ?? before) - before
}

/**
 * A job is blamed for a crash only when its partition changed hands uncleanly, once each time, and given up only for as many crashes as it
 * takes. (An innocent job may be: one that long enough ran in one dying process after the other. See innocents.)
 */
export const blameless: Rule = ({ events, rows, samples, terms }) => {
  const breaches: Array<Breach> = []
  const byId = new Map(rows.map((row) => [row.id, row]))
  const seen = new Map<string, { readonly count: number; readonly at: number }>()
  for (const { at, crashes = {} } of samples) {
    for (const [job, count] of Object.entries(crashes)) {
      if (count > (seen.get(job)?.count ?? 0)) seen.set(job, { count, at })
    }
  }
  const unclean = [
    ...events.filter(isUnclean).map(spanOf),
    ...samples.flatMap(({ at, stood }) => stood === undefined ? [] : [{ from: at - stood, to: at }])
  ]
  for (const [job, { at, count }] of seen) {
    const row = byId.get(job)
    if (row === undefined) continue
    const changes = changesOf(samples, `${row.queue}/${row.partition}`, row.createdAt, at)
    const ends = unclean.filter(({ from, to }) => to >= row.createdAt - slackMs && from <= at).length
    if (count > Math.min(changes, ends)) {
      breaches.push({
        rule: "blameless",
        of: job,
        detail: `${row.type} in ${row.queue}/${row.partition}: ${count} crashes at ${at}; since ${row.createdAt} ` +
          `its partition changed hands ${changes} times, and something failed ${ends} times`
      })
    }
  }
  for (const { crashes, errorTag, id } of rows) {
    if (errorTag === "CrashLoop" && crashes !== terms.crashLimit) {
      breaches.push({ rule: "blameless", of: id, detail: `was given up after ${crashes} crashes` })
    }
  }
  return breaches
}

const isInnocent = ({ errorTag, type }: Row) => errorTag === "CrashLoop" && type !== "Die"

/** How many jobs were given up although it was not they who killed their processes. */
export const innocents = ({ rows }: Evidence): number => rows.filter(isInnocent).length

/** Crashes before a job runs alone in its process. */
const aloneAfter = 2

/**
 * How many of them had a job that kills its process start beside them when they were to run alone. Hardly any: a job waits for that no longer
 * than half a minute, so that others which hang, as with the database away, may last longer.
 */
export const besideKillers = ({ rows, starts, terms }: Evidence): number => {
  const killers = new Set(rows.flatMap(({ id, type }) => type === "Die" ? [id] : []))
  const theirs = starts.filter(({ job }) => killers.has(job))
  return rows.filter(isInnocent).filter(({ endedAt = Infinity, id }) => {
    const own = starts.filter(({ job }) => job === id).toSorted((one, other) => one.at - other.at)
    const alone = own.slice(aloneAfter - terms.crashLimit)
    return alone.some(({ at, incarnation, runner }, index) =>
      theirs.some((killer) =>
        killer.runner === runner && killer.incarnation === incarnation && killer.at > at &&
        killer.at < (alone[index + 1]?.at ?? endedAt)
      )
    )
  }).length
}

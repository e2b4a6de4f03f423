/**
 * What counts as a crash, and for which jobs.
 */
import { type Cause, causesOf, causesOfRun, mayCrash, within } from "../causes.ts"
import type { Breach, Evidence, Row } from "../evidence.ts"
import { crashesOf, isCrashed, isKiller, isWhole, type Rule } from "./rule.ts"

/**
 * A crash has a cause that was noted within its run, and one run is one crash at most. A job is dead-lettered as a crash loop only for as
 * many crashes as it takes. (An innocent job may be: see `spared`.)
 */
export const blameless: Rule = (evidence) => {
  const { rows, samples, terms } = evidence
  const breaches: Array<Breach> = []
  const causes = causesOfRun(evidence)
  for (const row of rows) {
    const say = (detail: string) => breaches.push({ rule: "blameless", of: row.id, detail: `${row.type}: ${detail}` })
    if (row.errorTag === "CrashLoop" && row.crashes !== terms.crashLimit) {
      say(`was dead-lettered as a crash loop after ${row.crashes} crashes`)
    }
    const crashed = row.history.filter(isCrashed)
    for (const [index, entry] of crashed.entries()) {
      if (crashed[index - 1]?.startedAt === entry.startedAt) {
        say(`the run from ${entry.startedAt} on counts as two crashes`)
      }
      if (!causes(row, entry).some(mayCrash(row))) {
        say(`crashed from ${entry.startedAt} to ${entry.endedAt}, and nothing was noted that it could crash of`)
      }
    }
  }
  // The same by what the monitor saw, which no history can leave out.
  const byId = new Map(rows.map((row) => [row.id, row]))
  const seen = new Map<string, { readonly count: number; readonly at: number }>()
  for (const { at, crashes = {} } of samples) {
    for (const [job, count] of Object.entries(crashes)) {
      if (count > (seen.get(job)?.count ?? 0)) seen.set(job, { count, at })
    }
  }
  for (const [job, { at, count }] of seen) {
    const row = byId.get(job)
    if (row === undefined) continue
    const life = within(causesOf(evidence), row.createdAt, Math.min(at, row.endedAt ?? at))
    const noted = life.filter(({ job: only }) => only === undefined || only === job).filter(mayCrash(row)).length
    if (count > noted) {
      breaches.push({
        rule: "blameless",
        of: job,
        detail: `${row.type}: ${count} crashes at ${at}; since ${row.createdAt} something failed ${noted} times`
      })
    }
  }
  return breaches
}

/** It crashed of others: the dead letter of a job that ends no process and no session. */
const isInnocent = (row: Row) => row.errorTag === "CrashLoop" && !isKiller(row) && row.type !== "Cut"

/** How many jobs were dead-lettered as crash loops although they neither killed their processes nor ended their sessions. */
export const innocents = ({ rows }: Evidence): number => rows.filter(isInnocent).length

/** How often all sessions of the server were ended without a word. */
export const serverKills = (evidence: Evidence): number =>
  causesOf(evidence).filter(({ isServerKill }) => isServerKill).length

/** The promise: so many jobs have one innocent among them at most, with so many server kills. */
const jobsAnInnocent = 50_000
const killsAnInnocent = 25

const ofServerKills = (causes: ReadonlyArray<Cause>) => causes.some(({ isServerKill }) => isServerKill)

/** Innocents that a server kill has contributed to. What befalls one in other ways, in processes that die, no server kill makes worse. */
const victims = (evidence: Evidence): ReadonlyArray<Row> => {
  const causes = causesOfRun(evidence)
  return evidence.rows.filter(isInnocent).filter((row) =>
    !isWhole(row) || crashesOf(row).some((entry) => ofServerKills(causes(row, entry)))
  )
}

/** Server kills dead-letter an innocent job as a crash loop at most once in 50,000 jobs with 25 kills, and proportionally. */
export const spared: Rule = (evidence) => {
  const jobs = new Set(evidence.rows.map(({ id }) => id)).size
  const kills = serverKills(evidence)
  const allowed = Math.floor(Math.ceil(jobs / jobsAnInnocent) * Math.max(1, kills / killsAnInnocent))
  const found = victims(evidence)
  return found.length <= allowed ? [] : found.map(({ id, type }) => ({
    rule: "spared",
    of: id,
    detail:
      `${type}: one of ${found.length} innocent jobs that are crash loops, of ${jobs} with ${kills} server kills; ` +
      `${allowed} may be`
  }))
}

/** Crashes before a job runs alone in its process. */
const aloneAfter = 2

/**
 * How many innocents had a job that kills its process or backend start beside them when they were to run alone. Hardly any: a job waits for
 * that no longer than half a minute, so that others which hang, as with the database away, may last longer.
 */
export const besideKillers = ({ rows, starts, terms }: Evidence): number => {
  const killers = new Set(rows.flatMap((row) => isKiller(row) ? [row.id] : []))
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

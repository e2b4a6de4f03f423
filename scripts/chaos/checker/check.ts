/**
 * `node check.ts <url> <folder> <file>`: judges a run from outside and writes the verdict as JSON.
 */
import { writeFileSync } from "node:fs"
import type { Breach, Call, Evidence, Row } from "./evidence.ts"
import { failovers } from "./failover.ts"
import { load } from "./load.ts"
import { rules } from "./rules.ts"
import { besideKillers, innocents, serverKills } from "./rules/crashes.ts"
import { stalls } from "./stalls.ts"

/** How much of each kind of work there was: a promise about what never happened is worth nothing. */
const workOf = ({ calls, effects, rows }: Evidence) => {
  const rowsWith = (is: (row: Row) => boolean) => rows.filter(is).length
  const callsWith = (is: (call: Call) => boolean) => calls.filter(is).length
  const refs = new Map(rows.map(({ id, ref }) => [id, ref]))
  return {
    completed: rowsWith(({ state }) => state === "completed"),
    retried: rowsWith(({ history }) => history.some(({ outcome }) => outcome === "retried")),
    deadLettered: rowsWith(({ state }) => state === "failed"),
    crashed: rowsWith(({ crashes }) => crashes > 0),
    crashLoops: rowsWith(({ errorTag }) => errorTag === "CrashLoop"),
    rerun: rowsWith(({ reruns }) => reruns > 0),
    timedOut: rowsWith(({ errorTag }) => errorTag === "JobTimeout"),
    replayed: rowsWith(({ history }) => history.some(({ kind }) => kind === "replayed")),
    cancelledWaiting: rowsWith(({ history }) => history.some(({ kind }) => kind === "cancelled")),
    cancelledRunning: rowsWith(({ history }) => history.some(({ outcome }) => outcome === "cancelled")),
    batches: callsWith(({ answer, isBatch }) => isBatch && answer === "ack"),
    duplicates: callsWith(({ answer, ids, op, orders }) =>
      op === "submit" && answer === "ack" && orders[0]?.dedupe !== undefined && refs.get(ids[0] ?? "") !== orders[0].ref
    ),
    inOrder: effects.filter(({ key }) => key !== undefined && key !== null).length,
    unknown: callsWith(({ answer }) => answer === "unknown" || answer === "none"),
    refused: callsWith(({ answer }) => answer === "refused")
  }
}

/** How the run was, in figures, and what broke a promise. */
export const judge = (evidence: Evidence) => {
  const breaches: ReadonlyArray<Breach> = Object.values(rules).flatMap((rule) => rule(evidence))
  const of = (rule: keyof typeof rules) => breaches.filter((breach) => breach.rule === rule).length
  const excess = new Map<string, number>()
  for (const { job } of evidence.effects) excess.set(job, (excess.get(job) ?? -1) + 1)
  for (const { id } of evidence.rows) excess.set(`row of ${id}`, (excess.get(`row of ${id}`) ?? -1) + 1)
  return {
    jobs: new Set(evidence.rows.map(({ id }) => id)).size,
    acknowledged: new Set(
      evidence.calls.flatMap(({ answer, ids, op }) => op === "submit" && answer === "ack" ? ids : [])
    ).size,
    starts: evidence.starts.length,
    work: workOf(evidence),
    /** Acknowledged, and nowhere. */
    lost: of("present"),
    /** Effects beyond the first of a job, and jobs in two places. */
    duplicated: [...excess.values()].reduce((sum, count) => sum + count, 0),
    ...stalls(evidence),
    ...failovers(evidence),
    unfinished: of("final"),
    burnt: of("unburnt"),
    torn: of("whole"),
    outOfOrder: of("ordered"),
    illegal: of("legal"),
    serverKills: serverKills(evidence),
    /** Dead-lettered as crash loops, by bad luck. */
    innocents: innocents(evidence),
    /** Of those how many were to be alone when a killer started beside them. */
    besideKillers: besideKillers(evidence),
    breaches
  }
}

export type Verdict = ReturnType<typeof judge>

if (import.meta.main) {
  const [url, folder, file] = process.argv.slice(2)
  if (url === undefined || folder === undefined || file === undefined) {
    throw new Error("usage: check.ts <url> <folder> <file>")
  }
  writeFileSync(file, JSON.stringify(judge(await load(url, folder))))
}

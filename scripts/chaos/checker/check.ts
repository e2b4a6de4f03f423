/**
 * `node check.ts <url> <folder> <file>`: judges a run from outside and writes the verdict as JSON.
 */
import { writeFileSync } from "node:fs"
import type { Breach, Evidence } from "./evidence.ts"
import { load } from "./load.ts"
import { innocents, rules } from "./rules.ts"
import { stalls } from "./stalls.ts"

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
    /** Acknowledged, and nowhere. */
    lost: of("present"),
    /** Effects beyond the first of a job, and jobs in two places. */
    duplicated: [...excess.values()].reduce((sum, count) => sum + count, 0),
    ...stalls(evidence),
    unfinished: of("final"),
    burnt: of("unburnt"),
    torn: of("whole"),
    outOfOrder: of("ordered"),
    illegal: of("legal"),
    /** Given up as killers of their processes, by bad luck. */
    innocents: innocents(evidence),
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

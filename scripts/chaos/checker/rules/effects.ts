/**
 * Exactly once in the database, at least once outside of it.
 */
import type { Breach } from "../evidence.ts"
import { type Rule } from "./rule.ts"

/** Whether its effects are part of its completion. */
const isTransactional = ({ type }: { readonly type: string }) => type !== "Plain"

/** What a transactional handler wrote is there once if its job completed, and not at all if not. */
export const exactlyOnce: Rule = ({ effects, rows }) => {
  const written = Map.groupBy(effects, ({ job }) => job)
  const breaches: Array<Breach> = []
  const known = new Map(rows.map((row) => [row.id, row]))
  for (const row of known.values()) {
    const count = written.get(row.id)?.length ?? 0
    const expected = isTransactional(row) && row.state === "completed" ? 1 : 0
    if (count !== expected) {
      breaches.push({ rule: "exactlyOnce", of: row.id, detail: `is ${row.state} and has ${count} effects` })
    }
  }
  for (const job of written.keys()) {
    if (!known.has(job)) breaches.push({ rule: "exactlyOnce", of: job, detail: "is nowhere and has effects" })
  }
  return breaches
}

/** What completed has run. */
export const atLeastOnce: Rule = ({ rows, starts }) => {
  const started = new Set(starts.map(({ job }) => job))
  return rows.filter(({ id, state }) => state === "completed" && !started.has(id)).map(({ id }) => ({
    rule: "atLeastOnce",
    of: id,
    detail: "is completed and never ran"
  }))
}

/** Of two runs of one job only the later one may have written: nobody commits behind a successor. */
export const fenced: Rule = ({ effects, samples }) => {
  const breaches: Array<Breach> = []
  const highest = new Map<string, number>()
  for (const { epochs = {} } of samples) {
    for (const [partition, epoch] of Object.entries(epochs)) {
      const before = highest.get(partition) ?? 0
      if (epoch < before) {
        breaches.push({ rule: "fenced", of: partition, detail: `went from epoch ${before} back to ${epoch}` })
      }
      highest.set(partition, Math.max(before, epoch))
    }
  }
  for (const [job, written] of Map.groupBy(effects, ({ job }) => job)) {
    const runners = new Set(written.map(({ incarnation, runner }) => `${runner}.${incarnation}`))
    if (runners.size > 1) {
      breaches.push({ rule: "fenced", of: job, detail: `runners ${[...runners].join(" and ")} have both committed it` })
    }
  }
  return breaches
}

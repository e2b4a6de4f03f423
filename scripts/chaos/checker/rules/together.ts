/**
 * Batches, dedupe keys, and the order of keys.
 */
import type { Breach, Effect } from "../evidence.ts"
import { type Rule, slackMs, submits } from "./rule.ts"

/** A batch is there as a whole, or not at all. */
export const whole: Rule = (evidence) => {
  const refs = Map.groupBy(evidence.rows, ({ ref }) => ref)
  const batches = Map.groupBy(evidence.rows.filter(({ batchId }) => batchId !== undefined), ({ batchId }) => batchId)
  const breaches: Array<Breach> = []
  for (const { batchId, call, orders, isBatch, answer } of submits(evidence)) {
    if (!isBatch) continue
    if (answer === "ack") {
      const stored = new Set((batches.get(batchId) ?? []).map(({ ref }) => ref))
      const missing = orders.filter(({ ref }) => !stored.has(ref)).length
      if (missing > 0 || stored.size !== orders.length) {
        breaches.push({
          rule: "whole",
          of: batchId ?? call,
          detail: `${orders.length} jobs were acknowledged, ${stored.size} are stored, ${missing} of them are missing`
        })
      }
    } else {
      const count = orders.filter(({ ref }) => refs.has(ref)).length
      if (count > 0 && count < orders.length) {
        breaches.push({ rule: "whole", of: call, detail: `${count} of ${orders.length} jobs are stored` })
      }
    }
  }
  return breaches
}

/** One live job a dedupe key, and a duplicate is answered with one that was live meanwhile. */
export const deduped: Rule = (evidence) => {
  const breaches: Array<Breach> = []
  const byKey = Map.groupBy(evidence.rows.filter(({ dedupe }) => dedupe !== undefined), ({ dedupe }) => dedupe)
  for (const [key, rows] of byKey) {
    const lives = rows.toSorted((a, b) => a.createdAt - b.createdAt)
    for (const [at, row] of lives.entries()) {
      const next = lives[at + 1]
      if (next !== undefined && (row.endedAt ?? Number.POSITIVE_INFINITY) > next.createdAt + slackMs) {
        breaches.push({ rule: "deduped", of: key ?? "", detail: `${row.id} lived still when ${next.id} was stored` })
      }
    }
  }
  const rows = new Map(evidence.rows.map((row) => [row.id, row]))
  for (const { answer, answeredAt, at, ids, orders } of submits(evidence)) {
    const [order] = orders
    const row = ids[0] === undefined ? undefined : rows.get(ids[0])
    if (answer !== "ack" || order?.dedupe === undefined || row === undefined || row.ref === order.ref) continue
    const wasLive = row.createdAt <= answeredAt + slackMs && (row.endedAt ?? Number.POSITIVE_INFINITY) >= at - slackMs
    if (row.dedupe !== order.dedupe || !wasLive) {
      breaches.push({
        rule: "deduped",
        of: order.dedupe,
        detail: `was answered with ${row.id}, which was not live then`
      })
    }
  }
  for (const key of new Set(evidence.samples.flatMap(({ twice = [] }) => twice))) {
    breaches.push({ rule: "deduped", of: key, detail: "had two live jobs at once" })
  }
  return breaches
}

/** Jobs of a key take effect in the order of their submission, one at a time, but for an attempt that ran beside an abandoned run. */
export const ordered: Rule = ({ effects, rows }) => {
  const breaches: Array<Breach> = []
  const beside = new Map(
    rows.map(({ history, id }) => [id, new Set(history.flatMap(({ alongside }) => alongside ?? []))])
  )
  const areBeside = (one: Effect, other: Effect) =>
    beside.get(one.job)?.has(other.job) === true || beside.get(other.job)?.has(one.job) === true
  for (
    const [key, line] of Map.groupBy(effects.filter(({ key }) => key !== undefined && key !== null), ({ key }) => key)
  ) {
    const inTime = line.toSorted((a, b) => a.began - b.began)
    for (const [at, one] of inTime.entries()) {
      const next = inTime[at + 1]
      if (next === undefined || areBeside(one, next)) continue
      if ((one.n ?? 0) > (next.n ?? 0)) {
        breaches.push({ rule: "ordered", of: key ?? "", detail: `${next.n} ran after ${one.n}` })
      } else if (next.began < one.at) {
        breaches.push({ rule: "ordered", of: key ?? "", detail: `${next.n} began before ${one.n} had ended` })
      }
    }
  }
  return breaches
}

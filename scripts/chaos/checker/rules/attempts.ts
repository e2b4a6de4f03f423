/**
 * What counts as an attempt.
 */
import { causesOfRun } from "../causes.ts"
import type { Breach } from "../evidence.ts"
import { isCounted, isWhole, rerunsAnAttempt, type Rule, submits } from "./rule.ts"

/** Types of which the order says how their attempts end. The others: see `bounded`. */
const isPlanned = (type: string) => ["Tx", "Grouped", "Plain", "Keyed", "Cut"].includes(type)

/**
 * Only these count as attempts: failures that were planned, sessions of the handler that were terminated one by one while the server worked,
 * and every 20th rerun. No shutdown, lost lock or outage does.
 */
export const unburnt: Rule = (evidence) => {
  const orders = new Map(submits(evidence).flatMap(({ orders }) => orders.map((order) => [order.ref, order])))
  const causes = causesOfRun(evidence)
  const breaches: Array<Breach> = []
  for (const row of evidence.rows) {
    const order = orders.get(row.ref)
    if (order === undefined || !isPlanned(row.type) || !isWhole(row)) continue
    const say = (detail: string) => breaches.push({ rule: "unburnt", of: row.id, detail })
    let isMended = false
    let left = Math.floor(row.reruns / rerunsAnAttempt)
    for (const entry of row.history) {
      if (entry.kind === "replayed") isMended = true
      if (!isCounted(entry)) continue
      const { attempt = 0, failure, outcome } = entry
      const mustFail = !isMended && attempt <= order.fails
      if (outcome === "completed") {
        if (mustFail) say(`completed at attempt ${attempt}, and ${order.fails} failures were planned`)
      } else if (failure?.tag === "Boom") {
        if (!mustFail) say(`attempt ${attempt} failed with Boom, and ${order.fails} failures were planned`)
      } else if (row.type === "Plain" || !causes(row, entry).some(({ isTermination }) => isTermination)) {
        if (left-- <= 0) {
          say(`attempt ${attempt} failed with ${failure?.tag}, and nothing of the kind was planned or noted`)
        }
      }
      if (outcome === "dead-lettered" && attempt !== evidence.terms.maxAttempts) {
        say(`is a dead letter after ${attempt} attempts`)
      }
    }
  }
  return breaches
}

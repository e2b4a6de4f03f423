/**
 * What counts as an attempt.
 */
import type { Breach } from "../evidence.ts"
import { isGivenUp, type Rule, submits } from "./rule.ts"

/** Only failures that were planned count: no shutdown, lost lock or outage burns an attempt. */
export const unburnt: Rule = (evidence) => {
  const orders = new Map(submits(evidence).flatMap(({ orders }) => orders.map((order) => [order.ref, order])))
  const breaches: Array<Breach> = []
  for (const row of evidence.rows) {
    const order = orders.get(row.ref)
    // Given up for crashes, now or before it was replayed: blameless has judged that.
    if (order === undefined || row.history.some(isGivenUp)) continue
    const say = (detail: string) => breaches.push({ rule: "unburnt", of: row.id, detail })
    const strange = row.history.find(({ failure, kind }) =>
      kind === "attempt" && failure !== undefined && failure.tag !== "Boom"
    )
    if (strange !== undefined) {
      say(`attempt ${strange.attempt} failed with ${strange.failure?.tag}, which nobody planned`)
      continue
    }
    const wasReplayed = row.history.some(({ kind }) => kind === "replayed")
    const failures = wasReplayed ? 0 : order.fails
    if (row.state === "completed" && row.attempt !== failures + 1) {
      say(`completed at attempt ${row.attempt} after ${failures} planned failures`)
    } else if (row.state === "failed" && row.attempt !== evidence.terms.maxAttempts) {
      say(`is a dead letter after ${row.attempt} attempts`)
    } else if (row.state === "failed" && failures < evidence.terms.maxAttempts) {
      say("is a dead letter and should have completed")
    } else if (row.state === "cancelled" && row.attempt > failures) {
      say(`was cancelled after ${row.attempt} failures, ${failures} were planned`)
    }
  }
  return breaches
}

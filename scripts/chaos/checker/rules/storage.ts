/**
 * Nothing is lost, and nothing is there that nobody asked for.
 */
import type { Breach } from "../evidence.ts"
import { isOpen, type Rule, submits } from "./rule.ts"

/** What was acknowledged is there, in one place, and at the end of its way. */
export const present: Rule = (evidence) => {
  const places = Map.groupBy(evidence.rows, ({ id }) => id)
  const breaches: Array<Breach> = []
  for (const { ids } of submits(evidence).filter(({ answer }) => answer === "ack")) {
    for (const id of ids) {
      if (!places.has(id)) breaches.push({ rule: "present", of: id, detail: "was acknowledged and is nowhere" })
    }
  }
  return breaches
}

/** A job lies in one place, and one submission is one job. */
export const single: Rule = (evidence) => {
  const breaches: Array<Breach> = []
  for (const [id, found] of Map.groupBy(evidence.rows, ({ id }) => id)) {
    if (found.length > 1) {
      breaches.push({ rule: "single", of: id, detail: `is in ${found.map(({ place }) => place).join(" and in ")}` })
    }
  }
  const rows = Map.groupBy(evidence.rows, ({ ref }) => ref)
  const calls = Map.groupBy(
    submits(evidence).flatMap((call) => call.orders.map((order, at) => ({ call, order, id: call.ids[at] }))),
    ({ order }) => order.ref
  )
  for (const [ref, found] of rows) {
    const ids = new Set(found.map(({ id }) => id))
    const asked = calls.get(ref)
    if (asked === undefined) {
      breaches.push({ rule: "single", of: ref, detail: "was never asked for" })
      continue
    }
    const acknowledged = new Set(asked.flatMap(({ call, id }) => call.answer === "ack" && id !== undefined ? [id] : []))
    const unsaid = [...ids].filter((id) => !acknowledged.has(id)).length
    const open = asked.filter(({ call }) => isOpen(call)).length
    if (unsaid > open) {
      breaches.push({
        rule: "single",
        of: ref,
        detail: `${unsaid} jobs that nobody acknowledged, of ${open} calls whose outcome is unknown`
      })
    }
  }
  return breaches
}

/** Nothing waits any more when everything has had its time. */
export const final: Rule = ({ events, rows }) => {
  const ended = events.findLast(({ what }) => what === "quiet")?.at ?? Number.POSITIVE_INFINITY
  return rows.filter(({ dueAt = 0, place }) => place === "jobs" && dueAt <= ended).map((
    { id, queue, state, partition }
  ) => ({
    rule: "final",
    of: id,
    detail: `is ${state} in ${queue}/${partition} still`
  }))
}

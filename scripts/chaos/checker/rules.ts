/**
 * The promises, each as a pure function from the evidence to what breaks it. Written from DESIGN section 4 alone.
 */
import type { Breach, Call, Entry, Event, Evidence, Row, Sample } from "./evidence.ts"

/** Times of several clocks are compared: of processes, and the database's. Beyond this they contradict each other. */
const slackMs = 1_500

export type Rule = (evidence: Evidence) => ReadonlyArray<Breach>

const groupBy = <A, K>(all: Iterable<A>, key: (one: A) => K): ReadonlyMap<K, ReadonlyArray<A>> => {
  const groups = new Map<K, Array<A>>()
  for (const one of all) {
    const group = groups.get(key(one))
    if (group === undefined) groups.set(key(one), [one])
    else group.push(one)
  }
  return groups
}

const submits = ({ calls }: Evidence) => calls.filter(({ op }) => op === "submit")

/** Calls that may have stored something without saying so. */
const isOpen = ({ answer }: Call) => answer === "unknown" || answer === "none"

/** Whether its effects are part of its completion. */
const isTransactional = ({ type }: { readonly type: string }) => type !== "Plain"

// ---------------------------------------------------------------------------------------------------- nothing is lost

/** 1: what was acknowledged is there, in one place, and at the end of its way. */
export const present: Rule = (evidence) => {
  const places = groupBy(evidence.rows, ({ id }) => id)
  const breaches: Array<Breach> = []
  for (const { ids } of submits(evidence).filter(({ answer }) => answer === "ack")) {
    for (const id of ids) {
      if (!places.has(id)) breaches.push({ rule: "present", of: id, detail: "was acknowledged and is nowhere" })
    }
  }
  return breaches
}

/** 1: a job lies in one place, and one submission is one job. */
export const single: Rule = (evidence) => {
  const breaches: Array<Breach> = []
  for (const [id, found] of groupBy(evidence.rows, ({ id }) => id)) {
    if (found.length > 1) {
      breaches.push({ rule: "single", of: id, detail: `is in ${found.map(({ place }) => place).join(" and in ")}` })
    }
  }
  const rows = groupBy(evidence.rows, ({ ref }) => ref)
  const calls = groupBy(
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

/** 1: nothing waits any more when everything has had its time. */
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

// ---------------------------------------------------------------------------------------------------- exactly once

/** 2: what a transactional handler wrote is there once if its job completed, and not at all if not. */
export const exactlyOnce: Rule = ({ effects, rows }) => {
  const written = groupBy(effects, ({ job }) => job)
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

/** 3: what completed has run. */
export const atLeastOnce: Rule = ({ rows, starts }) => {
  const started = new Set(starts.map(({ job }) => job))
  return rows.filter(({ id, state }) => state === "completed" && !started.has(id)).map(({ id }) => ({
    rule: "atLeastOnce",
    of: id,
    detail: "is completed and never ran"
  }))
}

/** 11: of two runs of one job only the later one may have written: nobody commits behind a successor. */
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
  for (const [job, written] of groupBy(effects, ({ job }) => job)) {
    const runners = new Set(written.map(({ incarnation, runner }) => `${runner}.${incarnation}`))
    if (runners.size > 1) {
      breaches.push({ rule: "fenced", of: job, detail: `runners ${[...runners].join(" and ")} have both committed it` })
    }
  }
  return breaches
}

// ---------------------------------------------------------------------------------------------------- batches and keys

/** 4: a batch is there as a whole, or not at all. */
export const whole: Rule = (evidence) => {
  const refs = groupBy(evidence.rows, ({ ref }) => ref)
  const batches = groupBy(evidence.rows.filter(({ batchId }) => batchId !== undefined), ({ batchId }) => batchId)
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

/** 5: one live job a dedupe key, and a duplicate is answered with one that was live meanwhile. */
export const deduped: Rule = (evidence) => {
  const breaches: Array<Breach> = []
  const byKey = groupBy(evidence.rows.filter(({ dedupe }) => dedupe !== undefined), ({ dedupe }) => dedupe)
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

/** 8: jobs of a key take effect in the order of their submission, one at a time. */
export const ordered: Rule = ({ effects }) => {
  const breaches: Array<Breach> = []
  for (const [key, line] of groupBy(effects.filter(({ key }) => key !== undefined && key !== null), ({ key }) => key)) {
    const inTime = line.toSorted((a, b) => a.began - b.began)
    for (const [at, one] of inTime.entries()) {
      const next = inTime[at + 1]
      if (next === undefined) continue
      if ((one.n ?? 0) > (next.n ?? 0)) {
        breaches.push({ rule: "ordered", of: key ?? "", detail: `${next.n} ran after ${one.n}` })
      } else if (next.began < one.at) {
        breaches.push({ rule: "ordered", of: key ?? "", detail: `${next.n} began before ${one.n} had ended` })
      }
    }
  }
  return breaches
}

// ---------------------------------------------------------------------------------------------------- attempts

/** Entries of finished runs, in order, since the job was last replayed. */
const attemptsOf = ({ history }: Row): ReadonlyArray<Entry> =>
  history.slice(history.findLastIndex(({ kind }) => kind === "replayed") + 1).filter(isCounted)

/** A run that counts as an attempt: it succeeded or it failed. */
const isCounted = ({ kind, outcome }: Entry) =>
  kind === "attempt" && (outcome === "completed" || outcome === "retried" || outcome === "dead-lettered")

/** Given up because its process had died too often: no attempt failed. */
const isGivenUp = ({ failure }: Entry) => failure?.tag === "CrashLoop"

/** 6: only failures that were planned count: no shutdown, lost lock or outage burns an attempt. */
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

/** What may take a partition from its owner without a word: what ran there then is counted as crashed, whether its process died or not. */
const isUnclean = ({ is, kind = "", what }: Event) =>
  (what === "runner" && is === "killed") ||
  (what === "database" && is === "down") ||
  (what === "fault" && ["freeze", "cut", "stall", "peerCut", "peerStall", "refuse", "terminate"].includes(kind))

/** How often a partition has changed hands, by the monitor. */
const changesOf = (samples: ReadonlyArray<Sample>, partition: string, from: number, to: number): number => {
  const seen = samples.flatMap(({ at, epochs }) =>
    epochs?.[partition] === undefined ? [] : [{ at, epoch: epochs[partition] }]
  )
  const before = seen.findLast(({ at }) => at <= from)?.epoch ?? 0
  return (seen.findLast(({ at }) => at <= to)?.epoch ?? before) - before
}

/**
 * 7: a job is blamed for a crash only when its partition changed hands uncleanly, once each time, and given up only for as many crashes as it
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
  const unclean = events.filter(isUnclean)
  for (const [job, { at, count }] of seen) {
    const row = byId.get(job)
    if (row === undefined) continue
    const changes = changesOf(samples, `${row.queue}/${row.partition}`, row.createdAt, at)
    const ends = unclean.filter((event) => event.at >= row.createdAt - slackMs && event.at <= at).length
    if (count > Math.min(changes, ends)) {
      breaches.push({
        rule: "blameless",
        of: job,
        detail: `has ${count} crashes, ${changes} times its partition changed hands, ${ends} times something failed`
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

/** How many jobs were given up although it was not they who killed their processes. */
export const innocents = ({ rows }: Evidence): number =>
  rows.filter(({ errorTag, type }) => errorTag === "CrashLoop" && type !== "Die").length

// ---------------------------------------------------------------------------------------------------- histories

/** What may follow what, by outcome or kind; `""` is the submission. */
const followers: Readonly<Record<string, ReadonlyArray<string>>> = {
  "": ["completed", "retried", "dead-lettered", "put back", "cancelled", "expired"],
  retried: ["completed", "retried", "dead-lettered", "put back", "cancelled"],
  "put back": ["completed", "retried", "dead-lettered", "put back", "cancelled", "expired"],
  "dead-lettered": ["replayed"],
  replayed: ["completed", "retried", "dead-lettered", "put back", "cancelled"],
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

/** So many entries are kept in full; what lies between the first and the last of a longer history is not. */
const keptInFull = 40

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
    }
    before = name
    time = to
  }
  const expected = lastOf[row.state]
  if (expected !== undefined && before !== expected) return `is ${row.state} and its history ends with ${before}`
  if (attemptsOf(row).length !== row.attempt) {
    return `counts ${row.attempt} attempts, its history has ${attemptsOf(row).length}`
  }
  return undefined
}

/** 9: a history is complete and tells of moves that are allowed. */
export const legal: Rule = ({ rows }) =>
  rows.flatMap((row) => {
    const detail = row.history.length >= keptInFull ? undefined : illegalities(row)
    return detail === undefined ? [] : [{ rule: "legal", of: row.id, detail }]
  })

/** 10: a replay happens once, and the history before it stays. */
export const replayed: Rule = ({ calls, rows, terms }) => {
  const asked = groupBy(calls.filter(({ op }) => op === "replay"), ({ job }) => job)
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
  const asked = groupBy(calls.filter(({ op }) => op === "cancel"), ({ job }) => job)
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

/** All of them. */
export const rules = {
  present,
  single,
  final,
  exactlyOnce,
  atLeastOnce,
  fenced,
  whole,
  deduped,
  ordered,
  unburnt,
  blameless,
  legal,
  replayed,
  cancelled
} as const satisfies Record<string, Rule>

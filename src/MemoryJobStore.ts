/**
 * The job store in memory: the model that PostgreSQL is compared with, and what `Testing` gives to users.
 *
 * Promise: every verb answers as PgJobStore's does. But there is no transaction to join and no row lock: `transact`
 * answers `Pending`, nothing is ever busy. A crash of the process leaves nothing behind.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import { declareQueue, groupNumber, leftovers, partitionOf } from "./internal/memory/layout.ts"
import { depth, find, heads, intake, payload, reread, waiting } from "./internal/memory/reading.ts"
import {
  dayOf,
  dedupeKeyOf,
  fenceKey,
  readyOf,
  refused,
  refuseJson,
  refuseText,
  type Row,
  Tables
} from "./internal/memory/tables.ts"
import { append, type Entry, processDied } from "./JobHistory.ts"
import type { BatchId, JobId } from "./JobId.ts"
import {
  type Crashes,
  JobStore,
  type NewJob,
  noShortage,
  type Owner,
  type PartitionKey,
  type Ready,
  type RunNote,
  type Settlement,
  type StoreError,
  type Submitted,
  type TenantKey
} from "./JobStore.ts"

/** Whether its id is stored already, and not by an earlier sending that its dedupe key tells of. */
const isKnown = (tables: Tables, job: NewJob): boolean => {
  const key = dedupeKeyOf(job)
  return tables.ended.has(job.id) ||
    (tables.live.has(job.id) && (key === undefined || tables.holders.get(key) !== job.id))
}

const refuseJob = (tables: Tables) => (job: NewJob): Effect.Effect<void, StoreError> =>
  Effect.all([
    refuseJson("submit", job.payload),
    refuseJson("submit", job.context),
    refuseText("submit", job.type),
    refuseText("submit", job.tenant),
    refuseText("submit", job.dedupeKey),
    isKnown(tables, job) ? Effect.fail(refused("submit", "23505", `job ${job.id} is stored already`)) : Effect.void
  ], { discard: true })

const refuseSettlement = (settlement: Settlement): Effect.Effect<void, StoreError> =>
  settlement._tag === "Finish" ? refuseJson("settle", settlement.result) : Effect.void

// ------------------------------------------------------------------------------------------------ verbs

const submit = (
  tables: Tables,
  jobs: ReadonlyArray<NewJob>,
  { batchId, now }: { readonly batchId: BatchId | undefined; readonly now: number }
): ReadonlyArray<Submitted> =>
  jobs.map((job) => {
    const key = dedupeKeyOf(job)
    const holder = key === undefined ? undefined : tables.holders.get(key)
    // Its own row: an earlier sending had arrived.
    if (holder === job.id) {
      const { partition = job.partition, seq = 0 } = tables.live.get(holder) ?? {}
      return { id: holder, isNew: true, seq, partition }
    }
    if (holder !== undefined) return { id: holder, isNew: false, seq: 0 }
    const seq = tables.nextSeq()
    const state: Row["state"] = job.dueAt !== undefined && job.dueAt > now ? "scheduled" : "queued"
    const placed = job.place === undefined ? {} : { partition: partitionOf(tables, job) }
    const row = {
      ...job,
      ...placed,
      state,
      seq,
      version: 0,
      attempt: 0,
      crashes: 0,
      reruns: 0,
      batchId,
      createdAt: now,
      history: []
    }
    tables.put(row)
    return { id: job.id, isNew: true, seq, ...placed }
  })

const takeOver = (
  tables: Tables,
  { partition, queueId }: PartitionKey,
  { now, owner: name, unwritten = [] }: Parameters<JobStore["Service"]["takeOver"]>[1]
) => {
  const before = tables.fences.get(fenceKey({ queueId, partition }))
  const owner = { queueId, partition, epoch: (before?.epoch ?? 0) + 1 }
  const isAgain = before?.owner === name
  const isCareful = isAgain ? before.isCareful : before?.owner !== undefined
  if (isAgain) forgetNotes(tables, { queueId, partition, epoch: before.epoch })
  tables.fences.set(fenceKey(owner), { epoch: owner.epoch, owner: name, isCareful })
  for (const rerun of unwritten) {
    if (tables.notes.get(rerun.id)?.version !== rerun.version) settle(tables, owner, rerun, now)
  }
  return { owner, isCareful, former: before?.owner }
}

/** What one ownership has noted. */
const forgetNotes = (tables: Tables, owner: Owner): void => {
  for (const note of tables.notes.values()) {
    if (fenceKey(note) === fenceKey(owner) && note.epoch === owner.epoch) tables.notes.delete(note.id)
  }
}

const handOver = (tables: Tables, owner: Owner): boolean => {
  forgetNotes(tables, owner)
  const fence = tables.fences.get(fenceKey(owner))
  if (fence?.epoch !== owner.epoch) return false
  tables.fences.set(fenceKey(owner), { ...fence, owner: undefined })
  return true
}

const countCrashes = (
  tables: Tables,
  owner: Owner,
  held: ReadonlyArray<JobId>,
  { now, runner }: { readonly runner: string; readonly now: number }
): Crashes => {
  if (!tables.owns(owner)) return { counted: [], busy: [] }
  const counted = [...tables.notes.values()]
    .filter((note) => fenceKey(note) === fenceKey(owner) && note.epoch < owner.epoch && !held.includes(note.id))
    .flatMap((note) => {
      tables.notes.delete(note.id)
      const row = tables.at(note.id, note.version)
      if (row === undefined) return []
      const { attempt, startedAt } = note
      const history = append(row.history, {
        kind: "attempt",
        attempt,
        startedAt,
        endedAt: now,
        runner,
        outcome: "crashed",
        failure: processDied
      })
      const crashed = { ...row, crashes: row.crashes + 1, version: row.version + 1, history }
      tables.put(crashed)
      return [{ id: row.id, version: crashed.version, crashes: crashed.crashes, attempt: row.attempt, type: row.type }]
    })
  return { counted, busy: [] }
}

const noteRunning = (tables: Tables, owner: Owner, notes: ReadonlyArray<RunNote>): ReadonlyArray<JobId> => {
  if (!tables.owns(owner) || tables.fences.get(fenceKey(owner))?.owner === undefined) return []
  return notes.map((note) => {
    const before = tables.notes.get(note.id)
    const kept = before?.version === note.version ? before : undefined
    const progress = note.progress ?? kept?.progress
    tables.notes.set(note.id, { ...note, ...owner, progress, message: note.message ?? kept?.message })
    return note.id
  })
}

const settle = (tables: Tables, owner: Owner, settlement: Settlement, now: number): boolean => {
  const row = tables.owns(owner) ? tables.at(settlement.id, settlement.version) : undefined
  if (row === undefined) return false
  const history = append(row.history, settlement.entry)
  const version = row.version + 1
  switch (settlement._tag) {
    case "Finish": {
      const { outcome, purgeAt, result } = settlement
      const attempt = row.attempt + (outcome === "completed" ? 1 : 0)
      const ended = { ...row, attempt, history }
      tables.end({ _tag: "Finished", row: ended, endedAt: now, outcome, result, purgeOn: dayOf(purgeAt) })
      return true
    }
    case "Retry": {
      const reruns = row.reruns + (settlement.isRerun === true ? 1 : 0)
      tables.put({
        ...row,
        state: "retrying",
        dueAt: settlement.dueAt,
        attempt: row.attempt + 1,
        reruns,
        version,
        history
      })
      return true
    }
    case "PutBack": {
      if (row.key !== undefined) {
        tables.put({ ...row, state: "retrying", dueAt: settlement.dueAt, version, history })
        return true
      }
      // To the end: rows are in the order of their seq.
      tables.live.delete(row.id)
      tables.put({ ...row, state: "scheduled", seq: tables.nextSeq(), dueAt: settlement.dueAt, version, history })
      return true
    }
    case "DeadLetter": {
      const attempt = row.attempt + (settlement.isAttempt ? 1 : 0)
      const reruns = row.reruns + (settlement.isRerun === true ? 1 : 0)
      tables.end({ _tag: "Dead", row: { ...row, attempt, reruns, history }, endedAt: now, failure: settlement.failure })
      return true
    }
    case "Rerun": {
      const { isCrash } = settlement
      tables.put({
        ...row,
        crashes: row.crashes + (isCrash ? 1 : 0),
        reruns: row.reruns + (isCrash ? 0 : 1),
        version,
        history
      })
      return true
    }
  }
}

const promote = (tables: Tables, owner: Owner, now: number, limit: number): ReadonlyArray<Ready> => {
  if (!tables.owns(owner)) return []
  return waiting(tables, owner).filter(({ dueAt }) => dueAt <= now).slice(0, limit).map((row) => {
    const partition = row.state === "scheduled" && row.place !== undefined ? partitionOf(tables, row) : row.partition
    const isMoved = partition !== row.partition
    // To the end: rows are in the order of their seq.
    if (isMoved) tables.live.delete(row.id)
    const ready = { ...row, partition, seq: isMoved ? tables.nextSeq() : row.seq }
    tables.put({ ...ready, state: "queued", dueAt: undefined, version: row.version + 1 })
    return readyOf(ready)
  })
}

const cancel = (
  tables: Tables,
  { entry, id, now, owner, purgeAt, version }: Parameters<JobStore["Service"]["cancel"]>[0]
) => {
  const row = tables.at(id, version)
  if (row === undefined) return false
  const mayTake = owner === undefined
    ? tables.fences.get(fenceKey(row))?.owner === undefined
    : fenceKey(owner) === fenceKey(row) && tables.owns(owner)
  if (row.state === "queued" && !mayTake) return false
  tables.end({
    _tag: "Finished",
    row: { ...row, history: append(row.history, entry) },
    endedAt: now,
    outcome: "cancelled",
    result: undefined,
    purgeOn: dayOf(purgeAt)
  })
  return true
}

const replay = (tables: Tables, id: JobId, tenant: TenantKey, entry: Entry): Option.Option<Ready> | "taken" => {
  const dead = tables.ended.get(id)
  if (dead?._tag !== "Dead" || dead.row.tenant !== tenant) return Option.none()
  const key = dedupeKeyOf(dead.row)
  if (key !== undefined && tables.holders.has(key)) return "taken"
  const again: Row = {
    ...dead.row,
    partition: partitionOf(tables, dead.row),
    state: "queued",
    seq: tables.nextSeq(),
    version: dead.row.version + 1,
    attempt: 0,
    crashes: 0,
    reruns: 0,
    dueAt: undefined,
    expiresAt: undefined,
    history: append(dead.row.history, entry)
  }
  tables.ended.delete(id)
  tables.put(again)
  return Option.some(readyOf(again))
}

const purge = (tables: Tables, now: number): number => {
  const gone = [...tables.ended].flatMap(([id, ended]) =>
    ended._tag === "Finished" && ended.purgeOn < dayOf(now) ? [{ id, purgeOn: ended.purgeOn }] : []
  )
  for (const { id } of gone) tables.ended.delete(id)
  return new Set(gone.map(({ purgeOn }) => purgeOn)).size
}

const refence = (tables: Tables, owner: Owner, id: JobId, version: number): Option.Option<number> => {
  const row = tables.owns(owner) ? tables.at(id, version) : undefined
  if (row === undefined) return Option.none()
  tables.put({ ...row, version: version + 1 })
  return Option.some(version + 1)
}

/** Hears what is offered to `listeners` from now on. */
const listen = <A>(listeners: Set<Queue.Queue<A, StoreError>>) =>
  Effect.acquireRelease(
    Effect.tap(Queue.unbounded<A, StoreError>(), (listener) => Effect.sync(() => listeners.add(listener))),
    (listener) => {
      listeners.delete(listener)
      return Queue.shutdown(listener)
    }
  )

const tell = <A>(listeners: Set<Queue.Queue<A, StoreError>>, what: ReadonlyArray<A>) =>
  Effect.forEach(listeners, (listener) => Queue.offerAll(listener, what), { discard: true })

const transact: JobStore["Service"]["transact"] = (_owner, handler, complete) =>
  Effect.map(Effect.flatMap(handler, complete), ({ settlement }) => ({ _tag: "Pending", settlement }))

const make = (): JobStore["Service"] => {
  const tables = new Tables()
  return {
    now: Clock.currentTimeMillis,
    declareQueue: (name, wanted) => Effect.suspend(() => declareQueue(tables, name, wanted)),
    queues: Effect.sync(() => [...tables.queues.values()]),
    leftovers: Effect.sync(() => leftovers(tables)),
    shardGroups: (names) => Effect.forEach(names, (name) => groupNumber(tables, name)),
    // There is one process only.
    agreeOnShards: ({ shards }) => Effect.sync(() => void (tables.shards = shards)),
    shards: Effect.sync(() => Option.fromUndefinedOr(tables.shards)),
    submit: (jobs, options) =>
      Effect.andThen(
        Effect.forEach(jobs, refuseJob(tables), { discard: true }),
        Effect.sync(() => submit(tables, jobs, options))
      ),
    isInTransaction: Effect.succeed(false),
    afterCommit: (effect) => effect,
    announce: (ready) => ready.length === 0 ? Effect.void : tell(tables.announcedTo, [ready]),
    announcements: listen(tables.announcedTo),
    say: (messages) => tell(tables.saidTo, messages),
    heard: listen(tables.saidTo),
    find: (id) => Effect.sync(() => find(tables, id)),
    takeOver: (partition, options) => Effect.sync(() => takeOver(tables, partition, options)),
    isOwner: (owner) => Effect.sync(() => tables.owns(owner)),
    handOver: (owner) => Effect.sync(() => handOver(tables, owner)),
    countCrashes: (owner, held, of) => Effect.sync(() => countCrashes(tables, owner, held, of)),
    intake: (owner, demand) => Effect.sync(() => intake(tables, owner, demand)),
    heads: (owner, lines) => Effect.sync(() => heads(tables, owner, lines)),
    payload: (id, version) => Effect.sync(() => payload(tables, id, version)),
    reread: (ids) => Effect.sync(() => reread(tables, ids)),
    noteRunning: (owner, notes) => Effect.sync(() => noteRunning(tables, owner, notes)),
    noteDone: (owner, ids) =>
      Effect.sync(() => {
        for (const id of ids) if (tables.notes.get(id)?.epoch === owner.epoch) tables.notes.delete(id)
      }),
    settle: (owner, settlements, now) =>
      Effect.andThen(
        Effect.forEach(settlements, refuseSettlement, { discard: true }),
        Effect.sync(() => new Set(settlements.filter((one) => settle(tables, owner, one, now)).map(({ id }) => id)))
      ),
    transact,
    transactGrouped: transact,
    endTransactions: () => Effect.void,
    handlerServices: Context.empty(),
    shortage: Effect.succeed(noShortage),
    refence: (owner, id, version) => Effect.sync(() => refence(tables, owner, id, version)),
    promote: (owner, now, limit) => Effect.sync(() => promote(tables, owner, now, limit)),
    nextDue: (owner) => Effect.sync(() => Option.fromUndefinedOr(waiting(tables, owner)[0]?.dueAt)),
    cancel: (options) => Effect.sync(() => cancel(tables, options)),
    replay: (id, tenant, entry) => Effect.sync(() => replay(tables, id, tenant, entry)),
    depth: (partition, atMost) => Effect.sync(() => depth(tables, partition, atMost)),
    purge: (now) => Effect.sync(() => purge(tables, now))
  }
}

/** A store of its own for each layer built; nothing of it outlives the layer. */
export const layer: Layer.Layer<JobStore> = Layer.sync(JobStore, make)

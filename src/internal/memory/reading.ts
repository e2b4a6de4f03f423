/**
 * What MemoryJobStore's readers see: the same rows, in the same order, as the statements of `internal/sql` give. Nothing here writes.
 */
import * as Option from "effect/Option"
import type { JobId } from "../../JobId.ts"
import {
  type Demand,
  type Heads,
  inlinePayloadBytes,
  type Intake,
  type JobRecord,
  type Line,
  type LiveRow,
  type Owner,
  type PartitionKey,
  type Ready,
  type ReadyJob,
  type Standing,
  type TenantKey
} from "../../JobStore.ts"
import { lanes } from "../../Priority.ts"
import { byCodePoint, read, readyOf, type Row, type Tables } from "./tables.ts"

/** What every place keeps of a job; what only some keep is absent. */
const recordOf = (row: Row) => ({
  id: row.id,
  queueId: row.queueId,
  partition: row.partition,
  lane: undefined,
  tenant: row.tenant,
  type: row.type,
  version: row.version,
  attempt: row.attempt,
  crashes: row.crashes,
  reruns: row.reruns,
  dedupeKey: undefined,
  key: undefined,
  batchId: row.batchId,
  createdAt: row.createdAt,
  dueAt: undefined,
  endedAt: undefined,
  payload: read(row.payload),
  context: read(row.context),
  result: null,
  failure: undefined,
  history: row.history,
  running: undefined
})

/** What is kept of a job that can still run, now or once replayed. */
const runnableOf = (row: Row) => ({
  ...recordOf(row),
  lane: row.lane,
  dedupeKey: row.dedupeKey,
  key: row.key
})

export const find = (tables: Tables, id: JobId): Option.Option<JobRecord> => {
  const row = tables.live.get(id)
  if (row !== undefined) {
    const note = tables.notes.get(id)
    const running = note?.version === row.version
      ? { startedAt: note.startedAt, progress: note.progress, message: note.message }
      : undefined
    return Option.some({ ...runnableOf(row), state: row.state, dueAt: row.dueAt, running })
  }
  return Option.map(Option.fromUndefinedOr(tables.ended.get(id)), (ended): JobRecord =>
    ended._tag === "Dead"
      ? { ...runnableOf(ended.row), state: "failed", endedAt: ended.endedAt, failure: ended.failure }
      : { ...recordOf(ended.row), state: ended.outcome, endedAt: ended.endedAt, result: read(ended.result) })
}

const isLarge = ({ payload }: Row): boolean => Buffer.byteLength(payload) > inlinePayloadBytes

export const payload = (tables: Tables, id: JobId, version: number): Option.Option<unknown> => {
  const row = tables.live.get(id)
  return row?.version === version ? Option.some(read(row.payload)) : Option.none()
}

/** In front of another of its key: ready, running or between two attempts. */
const holdsKey = ({ key, state }: Row): boolean => key !== undefined && state !== "scheduled"

/** The jobs of a line, in all partitions. Rows are in the order of their seq. */
const lineOf = (tables: Tables, queueId: number, { key, tenant }: Line): ReadonlyArray<Row> =>
  [...tables.live.values()].filter((row) =>
    row.queueId === queueId && row.tenant === tenant && row.key === key && holdsKey(row)
  )

/** Whether a line leaves this partition, or waits here for those of its jobs that lie where a former count of partitions has put it. */
const moveOf = (tables: Tables, { partition, queueId }: Owner, line: ReadonlyArray<Row>): Standing["move"] => {
  const place = line[0]?.place
  const queue = [...tables.queues.values()].find((queue) => queue.queueId === queueId)
  if (place === undefined || queue === undefined) return undefined
  if (place % queue.partitions !== partition) return "leaves"
  const move = tables.moves.get(queueId)
  if (move === undefined || place % move.former === partition) return undefined
  return line.some((row) => row.partition === place % move.former && row.seq < move.barrier) ? "waits" : undefined
}

/** The first of a line that lies here, and may start. */
const headOf = (owner: Owner, line: ReadonlyArray<Row>, move: Standing["move"]): Row | undefined =>
  move === "waits" ? undefined : line.find((row) => row.partition === owner.partition)

const standingOf = (key: string, isHead: boolean, move: Standing["move"]): Standing =>
  move === undefined ? { key, isHead } : { key, isHead, move }

const readyJobOf = (row: Row, standing?: Standing): ReadyJob => ({
  id: row.id,
  lane: row.lane,
  tenant: row.tenant,
  seq: row.seq,
  version: row.version,
  type: row.type,
  attempt: row.attempt,
  crashes: row.crashes,
  reruns: row.reruns,
  createdAt: row.createdAt,
  expiresAt: row.expiresAt,
  isLarge: isLarge(row),
  payload: isLarge(row) || standing?.isHead === false ? null : read(row.payload),
  context: read(row.context),
  ...(standing === undefined ? {} : { standing })
})

export const heads = (tables: Tables, owner: Owner, asked: ReadonlyArray<Line>): Heads => {
  const jobs: Array<ReadyJob> = []
  const elsewhere: Array<Ready> = []
  for (const line of tables.owns(owner) ? asked.map((line) => lineOf(tables, owner.queueId, line)) : []) {
    const [next] = line
    const move = moveOf(tables, owner, line)
    if (next === undefined || move === "waits") continue
    const head = headOf(owner, line, move)
    if (head === undefined) elsewhere.push(readyOf(next))
    else if (head.state === "queued") jobs.push(readyJobOf(head, standingOf(head.key ?? "", true, move)))
  }
  return { jobs, elsewhere }
}

export const intake = (tables: Tables, owner: Owner, { held, isOrdered, lanes, marks }: Demand): Intake => {
  if (!tables.owns(owner)) return { jobs: [], visited: [] }
  const jobs: Array<Row> = []
  const visited: Array<{ readonly lane: number; readonly tenant: TenantKey }> = []
  for (const { after, lane, perTenant, room, tenants } of lanes) {
    const ready = tables.rowsOf(owner).filter((row) =>
      row.lane === lane && row.state === "queued" && byCodePoint(row.tenant, after) > 0
    )
    const turns = [...Map.groupBy(ready, (row) => row.tenant)]
      .sort(([left], [right]) => byCodePoint(left, right))
      .slice(0, tenants)
    let left = room
    for (const [tenant, rows] of turns) {
      if (left <= 0) break
      const low = Math.max(
        0,
        ...marks.filter((mark) => mark.lane === lane && mark.tenant === tenant).map(({ seq }) => seq)
      )
      const taken = rows
        .filter((row) => row.seq > low && !held.includes(row.seq))
        .slice(0, Math.min(perTenant, left))
      jobs.push(...taken)
      visited.push({ lane, tenant })
      // A tenant with nothing new comes back as a row of its own, which takes room.
      left -= Math.max(taken.length, 1)
    }
  }
  return {
    jobs: jobs.map((row) => {
      const { key, tenant } = row
      if (isOrdered !== true || key === undefined) return readyJobOf(row)
      const line = lineOf(tables, owner.queueId, { tenant, key })
      const move = moveOf(tables, owner, line)
      return readyJobOf(row, standingOf(key, headOf(owner, line, move) === row, move))
    }),
    visited
  }
}

export const reread = (tables: Tables, ids: ReadonlyArray<JobId>): ReadonlyArray<LiveRow> =>
  ids.flatMap((id) => {
    const row = tables.live.get(id)
    if (row === undefined) return []
    const { lane, seq, state, tenant, version } = row
    return [{ id, seq, version, state, lane, tenant }]
  })

/** The scheduled and retrying rows of a partition, the next one first. */
export const waiting = (tables: Tables, partition: PartitionKey) =>
  tables.rowsOf(partition)
    .flatMap((row) => row.state === "queued" || row.dueAt === undefined ? [] : [{ ...row, dueAt: row.dueAt }])
    .sort((left, right) => left.dueAt - right.dueAt)

export const depth = (tables: Tables, partition: PartitionKey, atMost: number): ReadonlyArray<number> => {
  const ready = tables.rowsOf(partition).filter((row) => row.state === "queued")
  return lanes.map(({ index }) => Math.min(ready.filter((row) => row.lane === index).length, atMost))
}

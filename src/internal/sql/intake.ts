/**
 * intake: reads ready jobs into the mailbox and writes nothing. What is in hand is known only to the partition's owner, in its memory, so
 * its arguments exclude everything held at the moment it is sent, and only one intake is in flight at a time. A crash leaves no trace.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { JobId } from "../../JobId.ts"
import {
  type Demand,
  inlinePayloadBytes,
  type Intake,
  type JobStore,
  type LiveRow,
  type Owner,
  type Ready,
  type ReadyJob,
  type Standing,
  type StoreError,
  type TenantKey
} from "../../JobStore.ts"
import type { Database } from "./database.ts"
import { int2, int2s, int4, int4s, int8, int8s, millis, texts, uuid, uuids } from "./rows.ts"

// Zero rows for a superseded owner. Visits at most so many tenants a lane after the cursor, gives at most so many jobs a tenant and rows a
// lane. Every tenant visited comes back, with a null id when it has nothing new: the cursor moves to the last tenant named. (Without the
// null rows, tenants whose ready rows are all held would pin the cursor in front of the others for ever.)
// Low-water ($9 lane, $10 tenant, $11 seq): every ready row of that tenant and lane at or below seq is held, or listed in no wake yet.
// $12 names the held seqs above a lowered mark. Serving index: jobs_ready, for the tenants in turn and for each one's rows.
// $1 queue $2 partition $3 epoch $4 lanes $5 cursors $6 tenants $7 per tenant $8 room $9-11 low-water $12 held seqs
//
// In an ordered queue each job with a key says whether it is the head of its line: with no other of its key before it in this partition that is
// ready, running (which is the same in the table) or between two attempts, and with none of them left where a former count of partitions had
// put the key (see layout.ts). The others need no payload, for they are not started. Serving index: jobs_key.
export const intakeSql = (schema: string, isOrdered: boolean) => `
with recursive lane as materialized (
  select l.* from unnest($4, $5, $6, $7, $8) as l(lane, after, tenants, per_tenant, room)
  where exists (select from ${schema}.partitions p where p.queue_id = $1 and p.partition = $2 and p.epoch = $3)
), low as materialized (
  select * from unnest($9, $10, $11) as w(lane, tenant_id, seq)
)${isOrdered ? `, ${countsSql(schema)}` : ""}, turn(lane, tenant_id, n) as (
  select l.lane, f.tenant_id, 1 from lane l cross join lateral (
    select j.tenant_id from ${schema}.jobs j
    where j.queue_id = $1 and j.partition = $2 and j.lane = l.lane and j.tenant_id > l.after collate "C" and j.state = 0
    order by j.tenant_id limit 1) f
  union all
  select t.lane, f.tenant_id, t.n + 1 from turn t join lane l on l.lane = t.lane and t.n < l.tenants cross join lateral (
    select j.tenant_id from ${schema}.jobs j
    where j.queue_id = $1 and j.partition = $2 and j.lane = t.lane and j.tenant_id > t.tenant_id and j.state = 0
    order by j.tenant_id limit 1) f
)
select r.lane, r.tenant_id, r.id, r.seq::float8 as seq, r.version, r.type, r.attempt, r.crashes, r.reruns, r.created_at, r.expires_at, r.is_large, ${
  isOrdered
    ? "case when r.is_head then r.payload end as payload, r.context, r.key, r.is_head, r.leaves"
    : "r.payload, r.context"
}
from lane l cross join lateral (
  select t.lane, t.tenant_id, j.*
  from turn t
  cross join lateral (select coalesce(max(w.seq), 0) as seq from low w where w.lane = t.lane and w.tenant_id = t.tenant_id) w
  left join lateral (
    select j.id, j.seq, j.version, j.type, j.attempt, j.crashes, j.reruns, j.created_at, j.expires_at, j.context::text as context,
      ${payloadSql}${isOrdered ? `, j.key, ${isHeadSql(schema)} as is_head, ${leavesSql} as leaves` : ""}
    from ${schema}.jobs j
    where j.queue_id = $1 and j.partition = $2 and j.lane = t.lane and j.tenant_id = t.tenant_id and j.seq > w.seq and j.state = 0
      and j.seq <> all (select unnest($12))
    order by j.seq limit l.per_tenant) j on true
  where t.lane = l.lane limit l.room) r`

const payloadSql = `j.payload_bytes > ${inlinePayloadBytes} as is_large,
      case when j.payload_bytes <= ${inlinePayloadBytes} then j.payload end as payload`

const countsSql = (schema: string) =>
  `counts as materialized (select partitions, former_partitions, barrier from ${schema}.queues where id = $1)`

/** Whether `j` lies where a former count has put it; null without a place. */
const leavesSql = "mod(j.place, (select partitions from counts)) <> $2"

/**
 * Whether the key of `j`, which is $2's now, has jobs left in the partition that the former count gave it. Nothing is added there, and of all
 * its jobs only those have a seq below the barrier.
 */
const isHeldBackSql = (schema: string) => {
  const formerly = "mod(j.place, (select former_partitions from counts))"
  return `mod(j.place, (select partitions from counts)) = $2 and ${formerly} <> $2 and exists (select from ${schema}.jobs b
        where b.queue_id = $1 and b.tenant_id = j.tenant_id and b.key = j.key and b.seq < (select barrier from counts)
          and b.partition = ${formerly} and b.state in (0, 2))`
}

/** Null: held back. */
const isHeadSql = (schema: string) =>
  `case when j.key is null then true when ${isHeldBackSql(schema)} then null
        else not exists (select from ${schema}.jobs b where b.queue_id = $1 and b.tenant_id = j.tenant_id and b.key = j.key and b.seq < j.seq
          and b.partition = $2 and b.state in (0, 2)) end`

interface JobRow {
  readonly lane: number
  readonly tenant_id: TenantKey
  readonly id: JobId
  readonly seq: number
  readonly version: number
  readonly type: string
  readonly attempt: number
  readonly crashes: number
  readonly reruns: number
  readonly created_at: Date
  readonly expires_at: Date | null
  readonly is_large: boolean
  readonly payload: unknown
  /** JSON text. */
  readonly context: string | null
  /** Of ordered queues. */
  readonly key?: string | null
  readonly is_head?: boolean | null
  readonly leaves?: boolean | null
}

/** A tenant with nothing new has no job. */
type IntakeRow = JobRow | (Omit<JobRow, "id"> & { readonly id: null })

const standingOf = ({ is_head, leaves }: JobRow, key: string): Standing => {
  const isHead = is_head === true
  if (is_head === null) return { key, isHead, move: "waits" }
  return leaves === true ? { key, isHead, move: "leaves" } : { key, isHead }
}

const toJob = (row: JobRow, contextOf: (text: string) => unknown): ReadyJob => ({
  id: row.id,
  lane: row.lane,
  tenant: row.tenant_id,
  seq: row.seq,
  version: row.version,
  type: row.type,
  attempt: row.attempt,
  crashes: row.crashes,
  reruns: row.reruns,
  createdAt: row.created_at.getTime(),
  expiresAt: millis(row.expires_at),
  isLarge: row.is_large,
  payload: row.payload,
  context: row.context === null ? null : contextOf(row.context),
  ...(row.key === undefined || row.key === null ? {} : { standing: standingOf(row, row.key) })
})

const toIntake = (rows: ReadonlyArray<IntakeRow>, contextOf: (text: string) => unknown): Intake => {
  const jobs: Array<ReadyJob> = []
  const visited: Array<{ readonly lane: number; readonly tenant: TenantKey }> = []
  for (const row of rows) {
    const last = visited.at(-1)
    if (last === undefined || last.tenant !== row.tenant_id || last.lane !== row.lane) {
      visited.push({ lane: row.lane, tenant: row.tenant_id })
    }
    if (row.id !== null) jobs.push(toJob(row, contextOf))
  }
  return { jobs, visited }
}

/** Jobs of one submission carry the same context: it is parsed once, and is one object. */
const parsedOnce = () => {
  const parsed = new Map<string, unknown>()
  return (text: string): unknown => {
    const known = parsed.get(text)
    if (known !== undefined) return known
    if (parsed.size >= maxContexts) parsed.clear()
    const value: unknown = JSON.parse(text)
    parsed.set(text, value)
    return value
  }
}

const maxContexts = 256

export const intake = (db: Database) => {
  const plain = intakeSql(db.schema, false)
  const ordered = intakeSql(db.schema, true)
  const contextOf = parsedOnce()
  return (owner: Owner, { held, isOrdered = false, lanes, marks }: Demand): Effect.Effect<Intake, StoreError> =>
    Effect.map(
      db.run<IntakeRow>("intake", isOrdered ? ordered : plain, [
        int4(owner.queueId),
        int2(owner.partition),
        int8(owner.epoch),
        int2s(lanes.map(({ lane }) => lane)),
        texts(lanes.map(({ after }) => after)),
        int4s(lanes.map(({ tenants }) => tenants)),
        int4s(lanes.map(({ perTenant }) => perTenant)),
        int4s(lanes.map(({ room }) => room)),
        int2s(marks.map(({ lane }) => lane)),
        texts(marks.map(({ tenant }) => tenant)),
        int8s(marks.map(({ seq }) => seq)),
        int8s(held)
      ]),
      (rows) => toIntake(rows, contextOf)
    )
}

// The first of each line here, if it is ready: between two attempts it holds back those behind it. Of a line that has left this partition, the
// first where it is now. Serving index: jobs_key; where the line leaves, up to the barrier, behind which it goes on elsewhere.
export const headsSql = (schema: string) => `
with ${countsSql(schema)}
select n.tenant_id, n.key, n.lane as next_lane, n.seq::float8 as next_seq, n.partition as next_partition, w.leaves,
  h.lane, h.id, h.seq::float8 as seq, h.version, h.type, h.attempt, h.crashes, h.reruns, h.created_at, h.expires_at, h.context, h.is_large, h.payload,
  true as is_head
from unnest($4, $5) as k(tenant_id, key) cross join lateral (
  select j.lane, j.tenant_id, j.key, j.seq, j.partition, j.place from ${schema}.jobs j
  where j.queue_id = $1 and j.tenant_id = k.tenant_id collate "C" and j.key = k.key and j.state in (0, 2)
  order by j.seq limit 1) n
cross join lateral (
  select ${leavesSql} as leaves, ${isHeldBackSql(schema)} as is_held_back from (select n.tenant_id, n.key, n.place) j) w
left join lateral (
  select j.lane, j.id, j.seq, j.version, j.type, j.attempt, j.crashes, j.reruns, j.created_at, j.expires_at, j.state, j.context::text as context, ${payloadSql}
  from ${schema}.jobs j
  where j.queue_id = $1 and j.tenant_id = n.tenant_id and j.key = n.key and j.partition = $2 and j.state in (0, 2)
    and j.seq < case when w.leaves then (select barrier from counts) else 9223372036854775807 end
  order by j.seq limit 1) h on true
where w.is_held_back is not true and (h.id is null or h.state = 0)
  and exists (select from ${schema}.partitions p where p.queue_id = $1 and p.partition = $2 and p.epoch = $3)`

/** Of a line that has left, the job's columns are null. */
type HeadRow = (JobRow | { readonly id: null }) & {
  readonly tenant_id: TenantKey
  readonly key: string
  readonly next_partition: number
  readonly next_lane: number
  readonly next_seq: number
}

const toNext = (queueId: number, row: HeadRow): Ready => ({
  queueId,
  partition: row.next_partition,
  lane: row.next_lane,
  tenant: row.tenant_id,
  key: row.key,
  seq: row.next_seq
})

export const heads = (db: Database): JobStore["Service"]["heads"] => {
  const sql = headsSql(db.schema)
  return (owner, lines) =>
    Effect.map(
      db.run<HeadRow>("heads", sql, [
        int4(owner.queueId),
        int2(owner.partition),
        int8(owner.epoch),
        texts(lines.map(({ tenant }) => tenant)),
        texts(lines.map(({ key }) => key))
      ]),
      (rows) => ({
        jobs: rows.flatMap((row) => row.id === null ? [] : [toJob(row, (text): unknown => JSON.parse(text))]),
        elsewhere: rows.flatMap((row) => row.id === null ? [toNext(owner.queueId, row)] : [])
      })
    )
}

// A payload too large to be read ahead, for a job that starts now. Serving index: jobs_pkey.
export const payload = (db: Database) => {
  const sql = `select payload from ${db.schema}.jobs where id = $1 and version = $2`
  return (id: JobId, version: number): Effect.Effect<Option.Option<unknown>, StoreError> =>
    Effect.map(
      db.run<{ readonly payload: unknown }>("payload", sql, [uuid(id), int4(version)]),
      ([row]) => row === undefined ? Option.none() : Option.some(row.payload)
    )
}

interface LiveRecord extends Omit<LiveRow, "state" | "tenant"> {
  readonly state: number
  readonly tenant_id: TenantKey
}

/** The names of `jobs.state`, by their codes. */
export const liveStates = ["queued", "scheduled", "retrying"] as const

/** The state that a row of `jobs` says it is in. */
export const liveState = (code: number): LiveRow["state"] => liveStates[code] ?? "queued"

// After MR001, or for ids that did not come back from a settlement. Gone: someone has its outcome, forget it. scheduled or retrying: forget
// it, promote will bring it. queued: go on under the version given, or lower the mark to seq - 1.
export const reread = (db: Database) => {
  const sql = `select id, seq::float8 as seq, version, state, lane, tenant_id from ${db.schema}.jobs where id = any($1)`
  return (ids: ReadonlyArray<JobId>): Effect.Effect<ReadonlyArray<LiveRow>, StoreError> =>
    Effect.map(
      db.run<LiveRecord>("reread", sql, [uuids(ids)]),
      (rows) =>
        rows.map(({ id, lane, seq, state, tenant_id, version }): LiveRow => ({
          id,
          seq,
          version,
          state: liveState(state),
          lane,
          tenant: tenant_id
        }))
    )
}

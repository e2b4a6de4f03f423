/**
 * takeOver, handOver and the notes between them: who owns a partition, and which runs its crash would count for. From takeOver's return on,
 * no earlier epoch can write anything that misleads this one: the rare writes that could lock the fence row FOR SHARE, and takeOver waits.
 * A crash leaves `owner` set, so the next owner, another process or incarnation, counts crashes and is careful; but not the session that held
 * its lock, so that meanwhile anybody can see that nobody owns the partition.
 */
import * as Effect from "effect/Effect"
import { processDied } from "../../JobHistory.ts"
import type { JobId } from "../../JobId.ts"
import { type Crashes, type JobStore, type Owner, type RunNote, StoreError } from "../../JobStore.ts"
import type { Database } from "./database.ts"
import {
  byId,
  floats,
  int2,
  int2s,
  int4,
  int4s,
  int8,
  storable,
  text,
  texts,
  timestamp,
  timestamps,
  uuids
} from "./rows.ts"
import { countReruns } from "./settle.ts"
import { isShardLockSql } from "./shards.ts"

interface Taken {
  readonly epoch: number
  readonly careful: boolean
}

// Epoch + 1; there is nothing to undo. careful: another owner before left without handOver. A living process that takes its own partition
// again (the database was away, and handOver with it) has not crashed: it stays as careful as it was, and what its former epoch noted is
// forgotten: what of it crashed is counted from what the process remembers ($unwritten). In one transaction, since what stayed behind would count for the next owner; statement by statement, since the last one has to
// see the notes that the second has waited for. The lock is said with the session that holds it at this moment, ours but for a late take-over
// (which ends soon, see partition.ts). Serving indexes: partitions_pkey, running_jobs_owner. $1 queue $2 partition $3 owner $4 now $5 lock
export const takeOver = (db: Database) => {
  const before = `select owner from ${db.schema}.partitions where queue_id = $1 and partition = $2 for update`
  const take = `
insert into ${db.schema}.partitions as p (queue_id, partition, epoch, owner, taken_at, lock, lock_pid, lock_epoch)
values ($1, $2, 1, $3, $4, $5, (select l.pid from pg_locks l where ${isShardLockSql(db.schema)} and l.objid = $5), 1)
on conflict (queue_id, partition) do update set epoch = p.epoch + 1, owner = excluded.owner, taken_at = excluded.taken_at,
  lock = excluded.lock, lock_pid = excluded.lock_pid, lock_epoch = p.epoch + 1,
  careful = case when p.owner = excluded.owner then p.careful else p.owner is not null end
returning epoch::float8 as epoch, careful`
  const forget = `delete from ${db.schema}.running_jobs where queue_id = $1 and partition = $2 and epoch = $3`
  const noRow = new StoreError({ reason: "Conflict", operation: "takeOver", cause: new Error("no row came back") })
  const count = countReruns(db)
  const takeOver: JobStore["Service"]["takeOver"] = ({ partition, queueId }, options) => {
    const { unwritten = [] } = options
    const name = storable(options.owner)
    const key = [int4(queueId), int2(partition)]
    return db.together(
      "takeOver",
      Effect.gen(function*() {
        const [former] = yield* db.run<{ readonly owner: string | null }>("takeOver", before, key)
        const [taken] = yield* db.run<Taken>("takeOver", take, [
          ...key,
          text(name),
          timestamp(options.now),
          int4(options.lock ?? null)
        ])
        if (taken === undefined) return yield* noRow
        const { careful, epoch } = taken
        if (former?.owner === name) yield* db.run("takeOver", forget, [...key, int8(epoch - 1)])
        const owner = { queueId, partition, epoch }
        if (unwritten.length > 0) yield* count(owner, unwritten)
        return { owner, isCareful: careful, former: former?.owner ?? undefined }
      })
    )
  }
  return takeOver
}

/**
 * Whether `p`, a row of partitions, has an owner that lives: one that has not handed over and holds its lock still, in the session that it had
 * then. Of an owner without a lock, or by older code, nobody can tell that it does not.
 */
export const isOwnedSql = (schema: string): string =>
  `p.owner is not null and (p.lock_epoch is distinct from p.epoch or p.lock_pid is null or exists (
    select from pg_locks l where ${isShardLockSql(schema)} and l.objid = p.lock and l.pid = p.lock_pid))`

// Serving index: partitions_pkey.
export const isOwner = (db: Database) => {
  const sql = `select epoch from ${db.schema}.partitions where queue_id = $1 and partition = $2 and epoch = $3`
  return ({ epoch, partition, queueId }: Owner): Effect.Effect<boolean, StoreError> =>
    Effect.map(db.run("isOwner", sql, [int4(queueId), int2(partition), int8(epoch)]), (rows) => rows.length > 0)
}

// After every handler has stopped and every note has returned. Nothing of this epoch is left to count; zero rows: superseded.
// Serving index: running_jobs_owner.
export const handOver = (db: Database) => {
  const sql = `
with gone as (delete from ${db.schema}.running_jobs where queue_id = $1 and partition = $2 and epoch = $3)
update ${db.schema}.partitions set owner = null where queue_id = $1 and partition = $2 and epoch = $3 returning partition`
  return ({ epoch, partition, queueId }: Owner): Effect.Effect<boolean, StoreError> =>
    Effect.map(db.run("handOver", sql, [int4(queueId), int2(partition), int8(epoch)]), (rows) => rows.length > 0)
}

interface Counted {
  readonly how: "counted" | "busy"
  readonly id: JobId
  readonly version: number
  readonly crashes: number
  readonly attempt: number
  readonly type: string
}

// After takeOver, before the first intake. Each run noted by an older epoch and still live at that version counts one crash, once: the note
// goes with the count, and its history says so. busy: the row is locked, that settle is ending just now; do not run that id, ask again until it is not named any more
// (settled) or is counted. $4: ids this epoch has in hand, never counted (their version must not move under them).
// "+ 0" keeps running_jobs_owner out of the last step. Serving indexes: running_jobs_owner, jobs_pkey, running_jobs_pkey.
const countCrashesSql = (schema: string) => `
with fence as materialized (
  select epoch from ${schema}.partitions where queue_id = $1 and partition = $2 and epoch = $3 for share
), noted as materialized (
  select id, version, attempt, started_at from ${schema}.running_jobs
  where queue_id = $1 and partition = $2 and epoch < $3 and not (id = any($4)) and exists (select from fence) order by id
), live as materialized (
  select j.id from noted n join ${schema}.jobs j on j.id = n.id and j.version = n.version
), mine as materialized (
  select j.id, n.attempt, n.started_at from noted n join ${schema}.jobs j on j.id = n.id and j.version = n.version order by j.id for update of j skip locked
), counted as (
  update ${schema}.jobs j set crashes = least(crashes + 1, 32767), version = version + 1,
    history = ${schema}.append_entry(history, jsonb_build_object('kind', 'attempt', 'attempt', m.attempt,
      'startedAt', floor(extract(epoch from m.started_at) * 1000), 'endedAt', $6, 'runner', $5, 'outcome', 'crashed', 'failure', $7::jsonb))
  from mine m where j.id = m.id
  returning j.id, j.version, j.crashes, j.attempt, j.type
), gone as (
  delete from ${schema}.running_jobs r using noted n
  where r.id = n.id and r.epoch + 0 < $3 and (r.id in (select id from mine) or r.id not in (select id from live))
)
select 'counted' as how, id, version, crashes, attempt, type from counted
union all select 'busy', id, null, null, null, null from live where id not in (select id from mine)`

export const countCrashes = (db: Database) => {
  const sql = countCrashesSql(db.schema)
  return (
    { epoch, partition, queueId }: Owner,
    held: ReadonlyArray<JobId>,
    { now, runner }: { readonly runner: string; readonly now: number }
  ): Effect.Effect<Crashes, StoreError> =>
    Effect.map(
      db.run<Counted>("countCrashes", sql, [
        int4(queueId),
        int2(partition),
        int8(epoch),
        uuids(held),
        text(storable(runner)),
        int8(now),
        text(JSON.stringify(processDied))
      ]),
      (rows) => ({
        counted: rows.flatMap(({ attempt, crashes, how, id, type, version }) =>
          how === "counted" ? [{ id, version, crashes, attempt, type }] : []
        ),
        busy: rows.flatMap(({ how, id }) => how === "busy" ? [id] : [])
      })
    )
}

// Start, progress and heartbeat of any number of runs. FOR SHARE, so that no note of an old epoch arrives after takeOver. In careful mode a
// handler starts only when its id has come back. Refused after handOver. Serving index: running_jobs_pkey.
// $4 ids $5 versions $6 attempts $7 started $8 progress $9 message $10 now
const noteRunningSql = (schema: string) => `
with fence as materialized (
  select epoch from ${schema}.partitions where queue_id = $1 and partition = $2 and epoch = $3 and owner is not null for share
)
insert into ${schema}.running_jobs as r (id, version, queue_id, partition, epoch, started_at, attempt, progress, message, heartbeat_at)
select s.id, s.version, $1, $2, $3, s.started_at, s.attempt, s.progress, s.message, $10
from unnest($4, $5, $6, $7, $8, $9) as s(id, version, attempt, started_at, progress, message) where exists (select from fence)
on conflict (id) do update set version = excluded.version, queue_id = excluded.queue_id, partition = excluded.partition, epoch = excluded.epoch,
  started_at = excluded.started_at, attempt = excluded.attempt, progress = coalesce(excluded.progress, case when r.version = excluded.version then r.progress end),
  message = coalesce(excluded.message, case when r.version = excluded.version then r.message end), heartbeat_at = excluded.heartbeat_at
returning id`

export const noteRunning = (db: Database) => {
  const sql = noteRunningSql(db.schema)
  return (
    owner: Owner,
    notes: ReadonlyArray<RunNote>,
    now: number
  ): Effect.Effect<ReadonlyArray<JobId>, StoreError> => {
    // The last note of a run wins: a statement touches each row once.
    const rows = byId([...new Map(notes.map((note) => [note.id, note])).values()])
    return Effect.map(
      db.run<{ readonly id: JobId }>("noteRunning", sql, [
        int4(owner.queueId),
        int2(owner.partition),
        int8(owner.epoch),
        uuids(rows.map(({ id }) => id)),
        int4s(rows.map(({ version }) => version)),
        int2s(rows.map(({ attempt }) => attempt)),
        timestamps(rows.map(({ startedAt }) => startedAt)),
        floats(rows.map(({ progress }) => progress)),
        texts(rows.map(({ message }) => message === undefined ? undefined : storable(message))),
        timestamp(now)
      ]),
      (noted) => noted.map(({ id }) => id)
    )
  }
}

// Only for ids that were noted, after their outcome is confirmed. Forgetting it costs nothing but litter. "+ 0" keeps running_jobs_owner away from the
// planner, which would walk all of it for each id. Serving index: running_jobs_pkey.
export const noteDone = (db: Database) => {
  const sql = `delete from ${db.schema}.running_jobs r using unnest($1) as k(id) where r.id = k.id and r.epoch + 0 = $2`
  return ({ epoch }: Owner, ids: ReadonlyArray<JobId>): Effect.Effect<void, StoreError> =>
    Effect.asVoid(db.run("noteDone", sql, [uuids(ids), int8(epoch)]))
}

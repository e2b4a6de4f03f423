/**
 * replay and cancel: what people do to a job from outside. Each is one statement that moves the row, so it happens at most once.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Entry } from "../../JobHistory.ts"
import type { JobId } from "../../JobId.ts"
import type { JobStore, Ready, StoreError, TenantKey } from "../../JobStore.ts"
import { type Database, isDuplicate } from "./database.ts"
import type { InDays } from "./retention.ts"
import { dayOf, entryJson, int2, int4, int8, text, timestamp, uuid } from "./rows.ts"
import { isOwnedSql } from "./takeOver.ts"

/** A row of `jobs` that has become ready. */
export interface ReadyRow {
  readonly queue_id: number
  readonly partition: number
  readonly lane: number
  readonly tenant_id: TenantKey
  readonly seq: number
  readonly key: string | null
}

export const toReady = ({ key, lane, partition, queue_id, seq, tenant_id }: ReadyRow): Ready => ({
  queueId: queue_id,
  partition,
  lane,
  tenant: tenant_id,
  seq,
  ...(key === null ? {} : { key })
})

// Same id, a version beyond every earlier attempt's, a new seq (the end of its line); it never expires. No ON CONFLICT: a dedupe key held by
// another live job is 23505, and the dead letter stays. The partition is one of those there are now. Serving index: dead_letters_pkey.
const replaySql = (schema: string) => `
with d as (
  delete from ${schema}.dead_letters where id = $1 and tenant_id = $2 collate "C"
  returning id, version, queue_id, partition, lane, tenant_id, type, dedupe_key, key, place, batch_id, created_at, payload, context, history
)
insert into ${schema}.jobs (id, version, queue_id, partition, lane, state, tenant_id, type, dedupe_key, key, place, batch_id, created_at,
  payload_bytes, payload, context, history)
select d.id, version + 1, queue_id, mod(coalesce(place, partition), q.partitions), lane, 0, tenant_id, type, dedupe_key, key, place, batch_id,
  created_at, octet_length(payload::text), payload, context, ${schema}.append_entry(history, $3::jsonb)
from d join ${schema}.queues q on q.id = d.queue_id
returning queue_id, partition, lane, tenant_id, seq::float8 as seq, key`

const isTaken = (error: StoreError) => isDuplicate(error, "jobs_dedupe")

export const replay = (db: Database) => {
  const sql = replaySql(db.schema)
  return (id: JobId, tenant: TenantKey, entry: Entry): Effect.Effect<Option.Option<Ready> | "taken", StoreError> =>
    db.run<ReadyRow>("replay", sql, [uuid(id), text(tenant), text(entryJson(entry))]).pipe(
      Effect.map(([row]): Option.Option<Ready> | "taken" =>
        row === undefined ? Option.none() : Option.some(toReady(row))
      ),
      Effect.catchIf(isTaken, () => Effect.succeed("taken" as const))
    )
}

// A scheduled or retrying job by anyone ($3 null); a ready one by its owner, because only the owner knows whether a handler has started, or by
// anyone while its partition has no owner that lives. FOR SHARE: who takes the partition over meanwhile waits, and reads after it. (Nothing
// can be locked of a partition that was never taken over: who is the first to do so at this very moment may read the row before it goes, and
// is refused by its version like any owner that has lost its lock.)
// Zero rows: read it and decide again. Serving indexes: jobs_pkey, partitions_pkey.
// $1 id $2 version $3 epoch $4 queue $5 partition $6 now $7 day $8 entry
const cancelSql = (schema: string) => `
with fence as materialized (
  select p.owner, p.epoch, p.lock, p.lock_pid, p.lock_epoch from ${schema}.jobs j
  join ${schema}.partitions p on p.queue_id = j.queue_id and p.partition = j.partition
  where j.id = $1 and j.version = $2 and j.state = 0 and $3 is null for share of p
), owned as materialized (
  select from fence p where ${isOwnedSql(schema)}
), d as (
  delete from ${schema}.jobs j where j.id = $1 and j.version = $2
    and (j.state <> 0 or case when $3 is null then not exists (select from owned) else j.queue_id = $4 and j.partition = $5
      and exists (select from ${schema}.partitions p where p.queue_id = $4 and p.partition = $5 and p.epoch = $3) end)
  returning j.id, j.version, j.queue_id, j.partition, j.tenant_id, j.type, j.attempt, j.crashes, j.reruns, j.batch_id, j.created_at, j.payload,
    j.context, j.history
)
insert into ${schema}.finished_jobs (id, version, purge_on, outcome, queue_id, partition, tenant_id, type, attempt, crashes, reruns, batch_id, created_at,
  finished_at, payload, context, history)
select id, version, date '1970-01-01' + $7, 1, queue_id, partition, tenant_id, type, attempt, crashes, reruns, batch_id, created_at, $6, payload, context,
  ${schema}.append_entry(history, $8::jsonb) from d
returning id`

export const cancel = (db: Database, inDays: InDays): JobStore["Service"]["cancel"] => {
  const sql = cancelSql(db.schema)
  return ({ entry, id, now, owner, purgeAt, version }) =>
    Effect.map(
      inDays(
        new Set([dayOf(purgeAt)]),
        db.run("cancel", sql, [
          uuid(id),
          int4(version),
          int8(owner?.epoch),
          int4(owner?.queueId ?? null),
          int2(owner?.partition ?? null),
          timestamp(now),
          int4(dayOf(purgeAt)),
          text(entryJson(entry))
        ])
      ),
      (rows) => rows.length > 0
    )
}

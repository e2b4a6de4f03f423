/**
 * promote and nextDue: scheduled and retrying jobs whose time has come become ready. Times come from the caller, never from SQL `now()`, so
 * that a week of retries runs in milliseconds under a test clock. A crash after promote loses nothing: the sweep finds the rows.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Owner, Ready, StoreError } from "../../JobStore.ts"
import type { Database } from "./database.ts"
import { type ReadyRow, toReady } from "./deadLetter.ts"
import { int2, int4, int8, millis, timestamp } from "./rows.ts"

// seq stays (a retried job keeps its place), so each row given back lowers its tenant's mark. A scheduled one of a tenant or key goes where
// the count says by now, to the end; one between two attempts stays, for others of its key may stand behind it here (see layout.ts). FOR SHARE: a late owner must not make rows
// ready below the successor's marks. Serving index: jobs_due. $1 queue $2 partition $3 epoch $4 now $5 limit
export const promoteSql = (schema: string) => `
with fence as materialized (
  select epoch from ${schema}.partitions where queue_id = $1 and partition = $2 and epoch = $3 for share
), due as materialized (
  select id, case when state = 1 then mod(place, (select partitions from ${schema}.queues where id = $1)) end as moves_to from ${schema}.jobs where queue_id = $1 and partition = $2 and state in (1, 2) and due_at <= $4 and exists (select from fence)
  order by due_at limit $5 for update skip locked
)
update ${schema}.jobs j set state = 0, due_at = null, version = j.version + 1, partition = coalesce(d.moves_to, $2),
  seq = case when d.moves_to <> $2 then nextval('${schema}.jobs_seq') else j.seq end
from due d where j.id = d.id
returning j.queue_id, j.partition, j.lane, j.tenant_id, j.seq::float8 as seq, j.key`

export const promote = (db: Database) => {
  const sql = promoteSql(db.schema)
  return (
    { epoch, partition, queueId }: Owner,
    now: number,
    limit: number
  ): Effect.Effect<ReadonlyArray<Ready>, StoreError> =>
    Effect.map(
      db.run<ReadyRow>("promote", sql, [int4(queueId), int2(partition), int8(epoch), timestamp(now), int4(limit)]),
      (rows) => rows.map(toReady)
    )
}

// Not min(): planned on an empty table, PostgreSQL 15 reads every waiting row for it. Serving index: jobs_due.
export const nextDueSql = (schema: string) =>
  `select due_at from ${schema}.jobs where queue_id = $1 and partition = $2 and state in (1, 2) order by due_at limit 1`

export const nextDue = (db: Database) => {
  const sql = nextDueSql(db.schema)
  return ({ partition, queueId }: Owner): Effect.Effect<Option.Option<number>, StoreError> =>
    Effect.map(
      db.run<{ readonly due_at: Date | null }>("nextDue", sql, [int4(queueId), int2(partition)]),
      ([row]) => Option.fromUndefinedOr(millis(row?.due_at ?? null))
    )
}

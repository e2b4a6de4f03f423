/**
 * query: what people and other processes read. One statement is one snapshot, so a job is found in exactly one place while it moves.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { JobFailure } from "../../JobError.ts"
import type { Entry } from "../../JobHistory.ts"
import type { BatchId, JobId } from "../../JobId.ts"
import { type Outcome, outcomeCodes } from "../../JobState.ts"
import type { JobRecord, PartitionKey, StoreError, TenantKey } from "../../JobStore.ts"
import type { Database } from "./database.ts"
import { liveState } from "./intake.ts"
import { int2, int4, millis, uuid } from "./rows.ts"

interface FoundRow {
  readonly place: "live" | "dead" | "finished"
  readonly code: number | null
  readonly id: JobId
  readonly queue_id: number
  readonly partition: number
  readonly lane: number | null
  readonly tenant_id: TenantKey
  readonly type: string
  readonly version: number
  readonly attempt: number
  readonly crashes: number
  readonly reruns: number
  readonly dedupe_key: string | null
  readonly key: string | null
  readonly batch_id: BatchId | null
  readonly created_at: Date
  readonly due_at: Date | null
  readonly ended_at: Date | null
  readonly payload: unknown
  readonly context: unknown
  readonly result: unknown
  readonly failure: JobFailure | null
  readonly history: ReadonlyArray<Entry>
  readonly started_at: Date | null
  readonly progress: number | null
  readonly message: string | null
}

// started_at only for runs noted; a ready job without it may be waiting or have started less than a second ago: only its owner can tell.
// Serving indexes: the primary keys.
export const findSql = (schema: string) => `
select 'live' as place, j.state as code, j.id, j.queue_id, j.partition, j.lane, j.tenant_id, j.type, j.version, j.attempt, j.crashes, j.reruns, j.dedupe_key, j.key,
  j.batch_id, j.created_at, j.due_at, null::timestamptz as ended_at, j.payload, j.context, null::json as result, null::json as failure, j.history,
  r.started_at, r.progress, r.message
from ${schema}.jobs j left join ${schema}.running_jobs r on r.id = j.id and r.version = j.version where j.id = $1
union all select 'dead', null, id, queue_id, partition, lane, tenant_id, type, version, attempt, crashes, reruns, dedupe_key, key,
  batch_id, created_at, null, dead_at, payload, context, null, failure, history,
  null, null, null from ${schema}.dead_letters where id = $1
union all select 'finished', outcome, id, queue_id, partition, null, tenant_id, type, version, attempt, crashes, reruns, null, null,
  batch_id, created_at, null, finished_at, payload, context, result, null, history,
  null, null, null from ${schema}.find_finished($1)`

const outcomes: ReadonlyArray<Outcome> = ["completed", "cancelled", "expired"]

const stateOf = ({ code, place }: FoundRow): JobRecord["state"] => {
  switch (place) {
    case "live":
      return liveState(code ?? 0)
    case "dead":
      return "failed"
    case "finished":
      return outcomes.find((outcome) => outcomeCodes[outcome] === code) ?? "completed"
  }
}

const toRecord = (row: FoundRow): JobRecord => ({
  id: row.id,
  state: stateOf(row),
  queueId: row.queue_id,
  partition: row.partition,
  lane: row.lane ?? undefined,
  tenant: row.tenant_id,
  type: row.type,
  version: row.version,
  attempt: row.attempt,
  crashes: row.crashes,
  reruns: row.reruns,
  dedupeKey: row.dedupe_key ?? undefined,
  key: row.key ?? undefined,
  batchId: row.batch_id ?? undefined,
  createdAt: row.created_at.getTime(),
  dueAt: millis(row.due_at),
  endedAt: millis(row.ended_at),
  payload: row.payload,
  context: row.context,
  result: row.result,
  failure: row.failure ?? undefined,
  history: row.history,
  running: row.started_at === null ? undefined : {
    startedAt: row.started_at.getTime(),
    progress: row.progress ?? undefined,
    message: row.message ?? undefined
  }
})

export const find = (db: Database) => {
  const sql = findSql(db.schema)
  return (id: JobId): Effect.Effect<Option.Option<JobRecord>, StoreError> =>
    Effect.map(
      db.run<FoundRow>("find", sql, [uuid(id)]),
      ([row]) => row === undefined ? Option.none() : Option.some(toRecord(row))
    )
}

// Ready rows by lane, counted no further than asked: a long backlog costs no more than a short one. Serving index: jobs_ready.
export const depthSql = (schema: string) => `
select (select count(*)::int4 from (select from ${schema}.jobs j
  where j.queue_id = $1 and j.partition = $2 and j.lane = l.lane and j.state = 0 limit $3) counted) as ready
from generate_series(0, 3) as l(lane) order by l.lane`

export const depth = (db: Database) => {
  const sql = depthSql(db.schema)
  return (
    { partition, queueId }: PartitionKey,
    atMost: number
  ): Effect.Effect<ReadonlyArray<number>, StoreError> =>
    Effect.map(
      db.run<{ readonly ready: number }>("depth", sql, [int4(queueId), int2(partition), int4(atMost)]),
      (rows) => rows.map(({ ready }) => ready)
    )
}

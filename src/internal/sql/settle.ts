/**
 * settle: writes down how attempts ended, outside of handlers' transactions. Each statement is fenced by id, version and epoch: whoever
 * deletes or moves the row has the outcome, ids that do not come back were superseded or settled before (reread). Every statement locks
 * its rows in the order of their ids. A crash between two kinds leaves the later ones live: they are settled again or run again.
 */
import * as Effect from "effect/Effect"
import type { JobId } from "../../JobId.ts"
import { outcomeCodes } from "../../JobState.ts"
import type { DeadLetter, Finish, Owner, PutBack, Rerun, Retry, Settlement, StoreError } from "../../JobStore.ts"
import type { Database } from "./database.ts"
import type { Foresee, InDays } from "./retention.ts"
import {
  byId,
  dayOf,
  entryJson,
  int2,
  int2s,
  int4,
  int4s,
  int8,
  storable,
  texts,
  timestamp,
  timestamps,
  uuids
} from "./rows.ts"

/** The epoch spares a late owner's work and turns it away early; id and version decide. */
const fenced = (schema: string) =>
  `j.id = s.id and j.version = s.version
    and exists (select from ${schema}.partitions p where p.queue_id = $1 and p.partition = $2 and p.epoch = $3)`

// Outcomes of handlers without a transaction, cancelled and expired jobs. An attempt is counted for completed only: a cancelled or expired
// job keeps its number. The day's partition has to be there (see retention.ts). Serving index: jobs_pkey.
// $4 ids $5 versions $6 outcomes $7 now $8 days of purge $9 results $10 history entries. Mostly all are taken: then no ids come back.
const finishSql = (schema: string) => `
with d as (
  delete from ${schema}.jobs j using unnest($4, $5, $6, $8, $9, $10) as s(id, version, outcome, day, result, entry)
  where ${fenced(schema)}
  returning j.id, j.version, j.queue_id, j.partition, j.tenant_id, j.type, j.attempt, j.crashes, j.reruns, j.batch_id, j.created_at, j.payload, j.context,
    j.history, s.outcome, s.day, s.result, s.entry
), finished as (
insert into ${schema}.finished_jobs (id, version, purge_on, outcome, queue_id, partition, tenant_id, type, attempt, crashes, reruns, batch_id, created_at,
  finished_at, payload, context, result, history)
select id, version, date '1970-01-01' + day, outcome, queue_id, partition, tenant_id, type, attempt + (outcome = 0)::int, crashes, reruns, batch_id, created_at, $7,
  payload, context, result::json, ${schema}.append_entry(history, entry::jsonb) from d
returning id
)
select case when count(*) < cardinality($4) then coalesce(array_agg(id), '{}') end as ids from finished`

// The attempt failed and another is due (state 2), or the job goes back uncounted (state 1), then to the end of its
// line: what nobody can run must not stay in front of the others. A job with a key keeps its place, and its key. A business transaction must be over BEFORE this
// is sent: version + 1 makes its settle impossible, the row lock makes this wait for one that is under way. Serving index: jobs_pkey.
// $4 ids $5 versions $6 due_at $7 history entries $8 reruns to count
const laterSql = (schema: string, state: 1 | 2) => `
update ${schema}.jobs j set due_at = s.due_at, version = j.version + 1, reruns = least(j.reruns + s.rerun, 32767),
  ${
  state === 2
    ? "state = 2, attempt = attempt + 1"
    : `state = case when j.key is null then 1 else 2 end, seq = case when j.key is null then nextval('${schema}.jobs_seq') else j.seq end`
},
  history = ${schema}.append_entry(j.history, s.entry::jsonb)
from unnest($4, $5, $6, $7, $8) as s(id, version, due_at, entry, rerun)
where ${fenced(schema)}
returning j.id`

// The run counts as a crash or a rerun, and the row is as ready as before, at its place, under another version. Serving index: jobs_pkey.
// $4 ids $5 versions $6 which are crashes, 1 or 0 $7 history entries
const rerunSql = (schema: string, also = "") => `
update ${schema}.jobs j set version = j.version + 1, crashes = least(j.crashes + s.crash, 32767), reruns = least(j.reruns + 1 - s.crash, 32767),
  history = ${schema}.append_entry(j.history, s.entry::jsonb)
from unnest($4, $5, $6, $7) as s(id, version, crash, entry)
where ${also}${fenced(schema)}
returning j.id`

// The same, but a row that is locked is left alone: its session is still ending, and the take-over waits for no job. So is one that another
// owner has run since, by its note: that run counts as a crash.
const countRerunsSql = (schema: string) => `
with free as materialized (
  select j.id from ${schema}.jobs j join unnest($4, $5) as k(id, version) on j.id = k.id and j.version = k.version
  where not exists (select from ${schema}.running_jobs r where r.id = j.id and r.version = j.version) order by j.id
  for update of j skip locked
)${rerunSql(schema, "j.id in (select id from free) and ")}`

/** Counts reruns of former ownerships, where their rows are free. */
export const countReruns = (db: Database) => rerun(db, countRerunsSql(db.schema))

const rerun =
  (db: Database, sql: string) =>
  (owner: Owner, reruns: ReadonlyArray<Rerun>): Effect.Effect<ReadonlyArray<Settled>, StoreError> => {
    const rows = byId(reruns)
    return db.run<Settled>("settle", sql, [
      ...fence(owner),
      ...attempted(rows),
      int2s(rows.map(({ isCrash }) => isCrash ? 1 : 0)),
      entries(rows)
    ])
  }

// The job moves to dead_letters with its payload, error and history. Serving index: jobs_pkey.
// $4 ids $5 versions $6 now $7 tags $8 classes $9 failures $10 history entries $11 attempts to count $12 reruns to count
const deadLetterSql = (schema: string) => `
with d as (
  delete from ${schema}.jobs j using unnest($4, $5, $7, $8, $9, $10, $11, $12) as s(id, version, tag, class, failure, entry, attempts, rerun)
  where ${fenced(schema)}
  returning j.id, j.version, j.queue_id, j.partition, j.lane, j.tenant_id, j.type, j.attempt, j.crashes, j.reruns, j.dedupe_key, j.key, j.place, j.batch_id,
    j.created_at, j.payload, j.context, j.history, s.tag, s.class, s.failure, s.entry, s.attempts, s.rerun
)
insert into ${schema}.dead_letters (id, version, queue_id, partition, lane, tenant_id, type, attempt, crashes, reruns, dedupe_key, key, place, batch_id,
  created_at, dead_at, error_tag, error_class, failure, payload, context, history)
select id, version, queue_id, partition, lane, tenant_id, type, attempt + attempts, crashes, least(reruns + rerun, 32767), dedupe_key, key, place, batch_id, created_at, $6,
  tag, class, failure::json, payload, context, ${schema}.append_entry(history, entry::jsonb) from d
returning id`

interface Settled {
  readonly id: JobId
}

/** `null`: all of them. */
interface Finished {
  readonly ids: ReadonlyArray<JobId> | null
}

const fence = ({ epoch, partition, queueId }: Owner) => [int4(queueId), int2(partition), int8(epoch)]
const attempted = (
  rows: ReadonlyArray<Settlement>
) => [uuids(rows.map(({ id }) => id)), int4s(rows.map(({ version }) => version))]
const reruns = (rows: ReadonlyArray<Retry | PutBack | DeadLetter>) =>
  int2s(rows.map((row) => row._tag !== "PutBack" && row.isRerun === true ? 1 : 0))
const entries = (rows: ReadonlyArray<Settlement>) => texts(rows.map(({ entry }) => entryJson(entry)))

export const settle = (db: Database, inDays: InDays, foresee: Foresee) => {
  const finishStatement = finishSql(db.schema)
  const retryStatement = laterSql(db.schema, 2)
  const putBackStatement = laterSql(db.schema, 1)
  const deadLetterStatement = deadLetterSql(db.schema)
  const rerunNow = rerun(db, rerunSql(db.schema))

  const finish = (owner: Owner, rows: ReadonlyArray<Finish>, now: number) => {
    for (const { purgeAt } of rows) foresee(now, purgeAt)
    const finished = inDays(
      new Set(rows.map(({ purgeAt }) => dayOf(purgeAt))),
      db.run<Finished>("settle", finishStatement, [
        ...fence(owner),
        ...attempted(rows),
        int2s(rows.map(({ outcome }) => outcomeCodes[outcome])),
        timestamp(now),
        int4s(rows.map(({ purgeAt }) => dayOf(purgeAt))),
        texts(rows.map(({ result }) => result)),
        entries(rows)
      ])
    )
    return Effect.map(finished, ([row]): ReadonlyArray<Settled> => row?.ids?.map((id) => ({ id })) ?? rows)
  }

  const later = (statement: string) => (owner: Owner, rows: ReadonlyArray<Retry | PutBack>) =>
    db.run<Settled>("settle", statement, [
      ...fence(owner),
      ...attempted(rows),
      timestamps(rows.map(({ dueAt }) => dueAt)),
      entries(rows),
      reruns(rows)
    ])
  const retry = later(retryStatement)
  const putBack = later(putBackStatement)

  const deadLetter = (owner: Owner, rows: ReadonlyArray<DeadLetter>, now: number) =>
    db.run<Settled>("settle", deadLetterStatement, [
      ...fence(owner),
      ...attempted(rows),
      timestamp(now),
      texts(rows.map(({ failure }) => storable(failure.tag))),
      texts(rows.map(({ failure }) => failure.class)),
      texts(rows.map(({ failure }) => JSON.stringify(failure))),
      entries(rows),
      int2s(rows.map(({ isAttempt }) => isAttempt ? 1 : 0)),
      reruns(rows)
    ])

  return (
    owner: Owner,
    settlements: ReadonlyArray<Settlement>,
    now: number
  ): Effect.Effect<ReadonlySet<JobId>, StoreError> => {
    const rows = byId(settlements)
    const finishes = rows.filter((row) => row._tag === "Finish")
    const retries = rows.filter((row) => row._tag === "Retry")
    const putBacks = rows.filter((row) => row._tag === "PutBack")
    const deadLetters = rows.filter((row) => row._tag === "DeadLetter")
    const reruns = rows.filter((row) => row._tag === "Rerun")
    return Effect.map(
      Effect.all([
        finishes.length === 0 ? Effect.succeed([]) : finish(owner, finishes, now),
        retries.length === 0 ? Effect.succeed([]) : retry(owner, retries),
        putBacks.length === 0 ? Effect.succeed([]) : putBack(owner, putBacks),
        deadLetters.length === 0 ? Effect.succeed([]) : deadLetter(owner, deadLetters, now),
        reruns.length === 0 ? Effect.succeed([]) : rerunNow(owner, reruns)
      ]),
      (settled) => new Set(settled.flatMap((ids) => ids.map(({ id }) => id)))
    )
  }
}

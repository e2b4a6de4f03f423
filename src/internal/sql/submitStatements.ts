/**
 * The statements of submit, and what their answers mean. Unkeyed jobs are one insert; keyed ones an insert and the question who holds the keys
 * that it met, which belong into one transaction.
 */
import * as Effect from "effect/Effect"
import type { BatchId, JobId } from "../../JobId.ts"
import type { NewJob, StoreError, Submitted } from "../../JobStore.ts"
import type { Run } from "./database.ts"
import { int2, int2s, int4, int4s, text, texts, timestamp, timestamps, uuid, uuids } from "./rows.ts"

/** With keys of which no two are alike. */
export type Jobs = ReadonlyArray<NewJob>
/** By the id under which a job was sent. */
export type Answers = Map<JobId, Submitted>

/** What all jobs of a submission have in common. */
export interface Options {
  readonly batchId: BatchId | undefined
  readonly now: number
}

const columns =
  "id, queue_id, partition, lane, state, tenant_id, type, due_at, expires_at, dedupe_key, batch_id, created_at, payload_bytes, payload, context"

const input = `unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
      with ordinality as u(id, queue_id, partition, lane, tenant_id, type, due_at, expires_at, dedupe_key, payload, context, ord)`

const valuesAt = (partition: string) =>
  `id, queue_id, ${partition}, lane, case when due_at > $13 then 1 else 0 end, tenant_id, type, due_at, expires_at, dedupe_key, $12, $13,
  octet_length(payload), payload::json, context::json`

const values = valuesAt("partition")

const parameters = (jobs: Jobs, { batchId, now }: Options) => [
  uuids(jobs.map(({ id }) => id)),
  int4s(jobs.map(({ queueId }) => queueId)),
  int2s(jobs.map(({ partition }) => partition)),
  int2s(jobs.map(({ lane }) => lane)),
  texts(jobs.map(({ tenant }) => tenant)),
  texts(jobs.map(({ type }) => type)),
  timestamps(jobs.map(({ dueAt }) => dueAt)),
  timestamps(jobs.map(({ expiresAt }) => expiresAt)),
  texts(jobs.map(({ dedupeKey }) => dedupeKey)),
  texts(jobs.map(({ payload }) => payload)),
  texts(jobs.map(({ context }) => context)),
  uuid(batchId),
  timestamp(now)
]

/** Without keys nothing can be in the way: one insert, seq drawn in the caller's order by the column's default: the lowest is the first's. */
const insertSql = (schema: string) => `
insert into ${schema}.jobs (${columns})
select ${values} from ${input} order by ord
returning seq::float8 as seq`

/** The same for a batch whose jobs differ in nothing but id, partition and payload: a quarter less work for the server. */
const insertAlikeSql = (schema: string) => `
insert into ${schema}.jobs (${columns})
select id, $4, partition, $5, 0, $6, $7, null, null, null, $9, $10, octet_length(payload), payload::json, $8::json
from unnest($1, $2, $3) with ordinality as u(id, partition, payload, ord) order by ord
returning seq::float8 as seq`

const alikeParameters = (first: NewJob, jobs: Jobs, { batchId, now }: Options) => [
  uuids(jobs.map(({ id }) => id)),
  int2s(jobs.map(({ partition }) => partition)),
  texts(jobs.map(({ payload }) => payload)),
  int4(first.queueId),
  int2(first.lane),
  text(first.tenant),
  text(first.type),
  text(first.context),
  uuid(batchId),
  timestamp(now)
]

// Jobs of tenants and keys: the count of partitions is that of the statement's own snapshot, so that none is placed by an older one once the
// count has changed (see changeCount in layout.ts). Serving index: queues_pkey.
const placedColumns = `${columns}, key, place`

const placedInput = `unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $14, $15)
      with ordinality as u(id, queue_id, partition, lane, tenant_id, type, due_at, expires_at, dedupe_key, payload, context, key, place, ord)`

const placedValues = (schema: string) => {
  const counted = `(select mod(place, q.partitions) from ${schema}.queues q where q.id = queue_id)`
  return `${valuesAt(`case when place is null then partition else ${counted} end`)}, key, place`
}

const placedParameters = (jobs: Jobs, options: Options) => [
  ...parameters(jobs, options),
  texts(jobs.map(({ key }) => key)),
  int4s(jobs.map(({ place }) => place ?? null))
]

const insertPlacedSql = (schema: string) => `
insert into ${schema}.jobs (${placedColumns})
select ${placedValues(schema)} from ${placedInput} order by ord
returning seq::float8 as seq, partition`

/** The first of them, where the others are like it and none has a time or a key. */
const alike = (jobs: Jobs): NewJob | undefined => {
  const [first, ...others] = jobs
  if (first === undefined || others.length === 0) return undefined
  const isAlike = (job: NewJob) =>
    job.dueAt === undefined && job.expiresAt === undefined && job.dedupeKey === undefined &&
    job.place === undefined && job.queueId === first.queueId && job.lane === first.lane && job.type === first.type &&
    job.tenant === first.tenant && job.context === first.context
  return jobs.every(isAlike) ? first : undefined
}

// Rows are inserted in key order (no deadlock between batches with keys in common), seq is drawn in the caller's order. An id that does not
// come back met a live key. Never DO UPDATE: it would lock a running job's row. Serving index: jobs_dedupe.
const insertKeyedFrom = (schema: string, columns: string, values: string, input: string, returning: string) => `
with input as materialized (
  select i.*, nextval('${schema}.jobs_seq') as seq from (select * from ${input} order by ord) i
)
insert into ${schema}.jobs (seq, ${columns})
select seq, ${values} from input order by tenant_id collate "C", queue_id, dedupe_key nulls first, ord
on conflict (tenant_id, queue_id, dedupe_key) where dedupe_key is not null do nothing
returning ${returning}`

const insertKeyedSql = (schema: string) => insertKeyedFrom(schema, columns, values, input, "id, seq::float8 as seq")

const insertKeyedPlacedSql = (schema: string) =>
  insertKeyedFrom(schema, placedColumns, placedValues(schema), placedInput, "id, seq::float8 as seq, partition")

// Who holds these keys now. Always a NEW statement: the insert's snapshot may be older than the holder's commit. A found job may be gone the
// moment after; that answer was still true. Serving index: jobs_dedupe.
const existingSql = (schema: string) => `
select k.id as asked, j.id, j.seq::float8 as seq, j.partition from unnest($1, $2, $3, $4) as k(id, tenant_id, queue_id, dedupe_key)
join ${schema}.jobs j on j.tenant_id = k.tenant_id collate "C" and j.queue_id = k.queue_id and j.dedupe_key = k.dedupe_key`

// After a connection lost during submit: it may have committed, and even finished. All three places, before sending it again.
// Serving indexes: the primary keys.
const knownSql = (schema: string) => `
select j.id, j.seq::float8 as seq, j.partition from unnest($1) as k(id) join ${schema}.jobs j on j.id = k.id
union all select d.id, 0, d.partition from unnest($1) as k(id) join ${schema}.dead_letters d on d.id = k.id
union all select f.id, 0, f.partition from unnest($1) as k(id) join ${schema}.finished_jobs f on f.id = k.id`

/** Of `existing`. */
export const existingParameters = (jobs: Jobs) => [
  uuids(jobs.map(({ id }) => id)),
  texts(jobs.map(({ tenant }) => tenant)),
  int4s(jobs.map(({ queueId }) => queueId)),
  texts(jobs.map(({ dedupeKey }) => dedupeKey))
]

/** Of `known`. */
export const knownParameters = (jobs: Jobs) => [uuids(jobs.map(({ id }) => id))]

interface Inserted {
  readonly seq: number
  /** Of those that were placed. */
  readonly partition?: number
}

/** A row that is there. */
export interface Stored extends Inserted {
  readonly id: JobId
}

interface Existing extends Stored {
  readonly asked: JobId
  readonly partition: number
}

const answerOf = (id: JobId, { partition, seq }: Inserted = { seq: 0 }): Submitted =>
  partition === undefined ? { id, isNew: true, seq } : { id, isNew: true, seq, partition }

/** Rows that are there are answers. */
export const answersOf = (stored: ReadonlyArray<Stored>): Answers =>
  new Map(stored.map((one) => [one.id, answerOf(one.id, one)]))

/**
 * The holder of a key had ended before it could be named. The key must not be inserted now: keys that this transaction holds already may
 * come after it, and two submissions would wait for each other. All of it is rolled back and begun again.
 */
const holderGone = { _tag: "HolderGone" } as const
/** See above. */
export type HolderGone = typeof holderGone

const isPlaced = (jobs: Jobs) => jobs.some(({ place }) => place !== undefined)

/** All of them, for one schema. */
export const makeStatements = (schema: string) => {
  const insert = insertSql(schema)
  const insertAlike = insertAlikeSql(schema)
  const insertKeyed = insertKeyedSql(schema)
  const insertPlaced = insertPlacedSql(schema)
  const insertKeyedPlaced = insertKeyedPlacedSql(schema)
  const existing = existingSql(schema)

  const sendUnkeyed = (run: Run, jobs: Jobs, options: Options): Effect.Effect<Answers, StoreError> => {
    const first = alike(jobs)
    const stored = isPlaced(jobs)
      ? run<Inserted>("submit", insertPlaced, placedParameters(jobs, options))
      : first === undefined
      ? run<Inserted>("submit", insert, parameters(jobs, options))
      : run<Inserted>("submit", insertAlike, alikeParameters(first, jobs, options))
    return Effect.map(stored, (rows) => {
      const inOrder = rows.toSorted((left, right) => left.seq - right.seq)
      return new Map(jobs.map(({ id }, index) => [id, answerOf(id, inOrder[index])]))
    })
  }

  const sendKeyed = Effect.fnUntraced(function*(
    run: Run,
    jobs: Jobs,
    options: Options
  ): Effect.fn.Return<Answers, StoreError | HolderGone> {
    const stored = isPlaced(jobs)
      ? run<Stored>("submit", insertKeyedPlaced, placedParameters(jobs, options))
      : run<Stored>("submit", insertKeyed, parameters(jobs, options))
    const answers = answersOf(yield* stored)
    const held = jobs.filter(({ id }) => !answers.has(id))
    if (held.length === 0) return answers
    for (const { asked, id, partition, seq } of yield* run<Existing>("submit", existing, existingParameters(held))) {
      // Its own row: an earlier sending had arrived.
      answers.set(asked, id === asked ? { id, isNew: true, seq, partition } : { id, isNew: false, seq: 0 })
    }
    return jobs.every(({ id }) => answers.has(id)) ? answers : yield* Effect.fail(holderGone)
  })
  return { existing, insert, insertKeyed, insertPlaced, known: knownSql(schema), sendKeyed, sendUnkeyed }
}

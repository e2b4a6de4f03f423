/**
 * submit: stores jobs, all or none of one call. Unkeyed jobs are one statement; keyed ones a short dialogue in one transaction.
 * A crash after the commit and before the answer leaves the jobs stored: their ids, made by the submitter, tell.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type { SqlClient } from "effect/sql/SqlClient"
import { isSqlError } from "effect/sql/SqlError"
import type { BatchId, JobId } from "../../JobId.ts"
import { type NewJob, StoreError, type Submitted } from "../../JobStore.ts"
import { onLiveClock } from "../liveClock.ts"
import { type Database, type Run, runUnpreparedOn, toStoreError } from "./database.ts"
import { int2s, int4s, text, texts, timestamp, timestamps, uuid, uuids } from "./rows.ts"

type Jobs = ReadonlyArray<NewJob>
type Answers = Map<JobId, Submitted>

interface Options {
  readonly batchId: BatchId | undefined
  readonly now: number
}

const columns = "id, queue_id, partition, lane, state, tenant_id, type, due_at, expires_at, dedupe_key, batch_id, created_at, payload, context"

const input = `unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
      with ordinality as u(id, queue_id, partition, lane, tenant_id, type, due_at, expires_at, dedupe_key, payload, context, ord)`

const values = `id, queue_id, partition, lane, case when due_at > $13 then 1 else 0 end, tenant_id, type, due_at, expires_at, dedupe_key, $12, $13,
  payload::json, context::json`

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

/** Without keys nothing can be in the way: one insert, seq drawn in the caller's order by the column's default. */
const insertSql = (schema: string) => `
insert into ${schema}.jobs (${columns})
select ${values} from ${input} order by ord
returning id, seq::float8 as seq`

// Rows are inserted in key order (no deadlock between batches with keys in common), seq is drawn in the caller's order. An id that does not
// come back met a live key. Never DO UPDATE: it would lock a running job's row. Serving index: jobs_dedupe.
const insertKeyedSql = (schema: string) => `
with input as materialized (
  select i.*, nextval('${schema}.jobs_seq') as seq from (select * from ${input} order by ord) i
)
insert into ${schema}.jobs (seq, ${columns})
select seq, ${values} from input order by tenant_id collate "C", queue_id, dedupe_key nulls first, ord
on conflict (tenant_id, queue_id, dedupe_key) where dedupe_key is not null do nothing
returning id, seq::float8 as seq`

// Who holds these keys now. Always a NEW statement: the insert's snapshot may be older than the holder's commit. A found job may be gone the
// moment after; that answer was still true. Serving index: jobs_dedupe.
const existingSql = (schema: string) => `
select k.id as asked, j.id, j.seq::float8 as seq from unnest($1, $2, $3, $4) as k(id, tenant_id, queue_id, dedupe_key)
join ${schema}.jobs j on j.tenant_id = k.tenant_id collate "C" and j.queue_id = k.queue_id and j.dedupe_key = k.dedupe_key`

// After a connection lost during submit: it may have committed, and even finished. All three places, before sending it again.
// Serving indexes: the primary keys.
const knownSql = (schema: string) => `
select j.id, j.seq::float8 as seq from unnest($1) as k(id) join ${schema}.jobs j on j.id = k.id
union all select d.id, 0 from unnest($1) as k(id) join ${schema}.dead_letters d on d.id = k.id
union all select f.id, 0 from unnest($1) as k(id) join ${schema}.finished_jobs f on f.id = k.id`

export const existingParameters = (jobs: Jobs) => [
  uuids(jobs.map(({ id }) => id)),
  texts(jobs.map(({ tenant }) => tenant)),
  int4s(jobs.map(({ queueId }) => queueId)),
  texts(jobs.map(({ dedupeKey }) => dedupeKey))
]

export const knownParameters = (jobs: Jobs) => [uuids(jobs.map(({ id }) => id))]

interface Stored {
  readonly id: JobId
  readonly seq: number
}

interface Existing extends Stored {
  readonly asked: JobId
}

const store = (answers: Answers, rows: ReadonlyArray<Stored>) => {
  for (const { id, seq } of rows) answers.set(id, { id, isNew: true, seq })
}

/** An id found by none of a round's statements lost its key's holder in between: the next round submits it again. */
const maxRounds = 100

const keyOf = (job: NewJob) => job.dedupeKey === undefined ? undefined : `${job.tenant}\0${job.queueId}\0${job.dedupeKey}`

/** The first job of each key, and whose answer each other one gets. */
const collapse = (jobs: Jobs) => {
  const firsts = new Map<string, NewJob>()
  return jobs.map((job) => {
    const key = keyOf(job)
    if (key === undefined) return { job, first: job }
    const first = firsts.get(key) ?? job
    firsts.set(key, first)
    return { job, first }
  })
}

export const makeStatements = (schema: string) => {
  const insert = insertSql(schema)
  const insertKeyed = insertKeyedSql(schema)
  const existing = existingSql(schema)

  const sendUnkeyed = (run: Run, jobs: Jobs, options: Options, answers: Answers) =>
    Effect.map(run<Stored>("submit", insert, parameters(jobs, options)), (rows) => store(answers, rows))

  const sendKeyed = Effect.fnUntraced(function*(run: Run, jobs: Jobs, options: Options, answers: Answers) {
    let open = jobs
    for (let round = 0; round < maxRounds && open.length > 0; round++) {
      store(answers, yield* run<Stored>("submit", insertKeyed, parameters(open, options)))
      open = open.filter(({ id }) => !answers.has(id))
      if (open.length === 0) return
      const holders = yield* run<Existing>("submit", existing, existingParameters(open))
      for (const { asked, id, seq } of holders) {
        // Its own row: an earlier sending had arrived.
        answers.set(asked, id === asked ? { id, isNew: true, seq } : { id, isNew: false, seq: 0 })
      }
      open = open.filter(({ id }) => !answers.has(id))
    }
    if (open.length > 0) {
      return yield* new StoreError({ reason: "Conflict", operation: "submit", cause: new Error("the holders of dedupe keys keep changing") })
    }
  })
  return { existing, insert, insertKeyed, known: knownSql(schema), sendKeyed, sendUnkeyed }
}

/** The row is there already: an earlier sending arrived after it was asked for. */
const isStoredAlready = (error: StoreError) =>
  isSqlError(error.cause) && error.cause.reason._tag === "UniqueViolation" && error.cause.reason.constraint === "jobs_pkey"

const isKeyed = (jobs: Jobs) => jobs.some(({ dedupeKey }) => dedupeKey !== undefined)

/** Bounded: about five seconds on a database that refuses connections. */
const resending = Schedule.min([Schedule.exponential("50 millis"), Schedule.spaced("1 second")]).pipe(Schedule.upTo({ times: 8 }))

/** Submits on `db`'s pool, or, inside a transaction of `client`, as part of that. `lockTimeout` is the pool's, in milliseconds. */
export const make = (db: Database, client: SqlClient, lockTimeoutMs: number) => {
  const statements = makeStatements(db.schema)

  const send = (jobs: Jobs, options: Options, answers: Answers): Effect.Effect<void, StoreError> => {
    if (!isKeyed(jobs)) return statements.sendUnkeyed(db.run, jobs, options, answers)
    const keyed = statements.sendKeyed(db.run, jobs, options, answers)
    // One job is stored by one statement or not at all.
    return jobs.length === 1 ? keyed : db.pool.withTransaction(keyed).pipe(
      Effect.withTracerEnabled(false),
      Effect.mapError((error) => isSqlError(error) ? toStoreError("submit")(error) : error)
    )
  }

  const onOwnPool = (jobs: Jobs, options: Options): Effect.Effect<Answers, StoreError> => {
    let isUncertain = false
    const attempt = Effect.suspend((): Effect.Effect<Answers, StoreError> => {
      // A failed attempt's answers were rolled back, or are found again.
      const answers: Answers = new Map()
      if (!isUncertain) return Effect.as(send(jobs, options, answers), answers)
      return db.run<Stored>("submit", statements.known, knownParameters(jobs)).pipe(
        Effect.flatMap((known) => {
          store(answers, known)
          const rest = jobs.filter(({ id }) => !answers.has(id))
          return rest.length === 0 ? Effect.void : send(rest, options, answers)
        }),
        Effect.as(answers)
      )
    })
    return onLiveClock(Effect.retry(attempt, {
      schedule: resending,
      while: (error) => {
        if (error.reason === "Unavailable") isUncertain = true
        return error.reason === "Unavailable" || error.reason === "Conflict" || (isUncertain && isStoredAlready(error))
      }
    }))
  }

  /** A savepoint, so that a key that is held for too long costs the caller this submission and not the transaction. */
  const inTransaction = (jobs: Jobs, options: Options): Effect.Effect<Answers, StoreError> => {
    const run = runUnpreparedOn(client)
    const answers: Answers = new Map()
    if (!isKeyed(jobs)) return Effect.as(statements.sendUnkeyed(run, jobs, options, answers), answers)
    return Effect.gen(function*() {
      const before = yield* run<{ readonly timeout: string }>("submit", "select current_setting('lock_timeout') as timeout", [])
      yield* run("submit", "select set_config('lock_timeout', $1, true)", [text(String(lockTimeoutMs))])
      yield* statements.sendKeyed(run, jobs, options, answers)
      yield* run("submit", "select set_config('lock_timeout', $1, true)", [text(before[0]?.timeout ?? "0")])
      return answers
    }).pipe(
      client.withTransaction,
      Effect.withTracerEnabled(false),
      Effect.mapError((error) => isSqlError(error) ? toStoreError("submit")(error) : error)
    )
  }

  return Effect.fnUntraced(function*(jobs: Jobs, options: Options): Effect.fn.Return<ReadonlyArray<Submitted>, StoreError> {
    if (jobs.length === 0) return []
    const collapsed = collapse(jobs)
    const distinct = collapsed.flatMap(({ first, job }) => first === job ? [job] : [])
    const transaction = yield* Effect.serviceOption(client.transactionService)
    const answers = yield* Option.isSome(transaction) ? inTransaction(distinct, options) : onOwnPool(distinct, options)
    const result: Array<Submitted> = []
    for (const { first, job } of collapsed) {
      const answer = answers.get(first.id)
      if (answer === undefined) return yield* Effect.die(new Error(`submit: no answer for job ${first.id}`))
      result.push(first === job ? answer : { id: answer.id, isNew: false, seq: 0 })
    }
    return result
  })
}

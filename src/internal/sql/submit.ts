/**
 * submit: stores jobs, all or none of one call, on a pool of ours or in the caller's transaction, and sends again what was not answered.
 * The statements are those of `submitStatements`: one for jobs without keys, a short dialogue in one transaction for keyed ones.
 * A crash after the commit and before the answer leaves the jobs stored: their ids, made by the submitter, tell.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import { type NewJob, StoreError, type Submitted } from "../../JobStore.ts"
import { onLiveClock } from "../time/liveClock.ts"
import { type Database, isDuplicate, type Run, runUnpreparedOn, toStoreError } from "./database.ts"
import { text } from "./rows.ts"
import {
  type Answers,
  answersOf,
  type HolderGone,
  type Jobs,
  knownParameters,
  makeStatements,
  type Options,
  type Stored
} from "./submitStatements.ts"

/** From the start, where a holder of a key was gone before it could be named. */
const beginAgain = <A>(
  submission: Effect.Effect<A, StoreError | SqlError | HolderGone>
): Effect.Effect<A, StoreError> =>
  submission.pipe(
    Effect.retry({ times: 100, while: ({ _tag }) => _tag === "HolderGone" }),
    Effect.mapError((error) => {
      if (error._tag === "StoreError") return error
      return error._tag === "SqlError"
        ? toStoreError("submit")(error)
        : new StoreError({
          reason: "Conflict",
          operation: "submit",
          cause: new Error("the holders of dedupe keys keep ending")
        })
    }),
    Effect.withTracerEnabled(false)
  )

const keyOf = (job: NewJob) =>
  job.dedupeKey === undefined ? undefined : `${job.tenant}\0${job.queueId}\0${job.dedupeKey}`

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

/** The row is there already: an earlier sending arrived after it was asked for. */
const isStoredAlready = (error: StoreError) => isDuplicate(error, "jobs_pkey")

const isKeyed = (jobs: Jobs) => jobs.some(({ dedupeKey }) => dedupeKey !== undefined)

/** Bounded: about five seconds on a database that refuses connections. */
const resending = Schedule.min([Schedule.exponential("50 millis"), Schedule.spaced("1 second")]).pipe(
  Schedule.upTo({ times: 8 })
)

const unanswered = ({ cause, operation, sqlState }: StoreError, isUncertain: boolean) =>
  new StoreError({
    reason: "Unavailable",
    operation,
    cause,
    ...(sqlState === undefined ? {} : { sqlState }),
    ...(isUncertain ? { isUncertain } : {})
  })

/** Whether the fiber is in a transaction of `client`. */
export const isInTransaction = (client: SqlClient): Effect.Effect<boolean> =>
  Effect.map(Effect.serviceOption(client.transactionService), Option.isSome)

const setTimeout = "select set_config('lock_timeout', $1, true)"

/**
 * Submits on `db`'s pool, or, inside a transaction of `client`, as part of that. `lockTimeout` is the pool's, in milliseconds. `runPlanned`
 * keeps its plans: for jobs that are no batch, where planning the insert anew would cost as much as a third of it.
 */
export const make = (db: Database, client: SqlClient, lockTimeoutMs: number, runPlanned: Run = db.run) => {
  const statements = makeStatements(db.schema)

  const send = (jobs: Jobs, options: Options): Effect.Effect<Answers, StoreError> => {
    if (!isKeyed(jobs)) {
      return statements.sendUnkeyed(options.batchId === undefined ? runPlanned : db.run, jobs, options)
    }
    const keyed = statements.sendKeyed(db.run, jobs, options)
    // One job is stored by one statement or not at all.
    return beginAgain(jobs.length === 1 ? keyed : db.pool.withTransaction(keyed))
  }

  /** Sends what is not known to be stored. */
  const sendAgain = Effect.fnUntraced(function*(jobs: Jobs, options: Options): Effect.fn.Return<Answers, StoreError> {
    const known = answersOf(yield* db.run<Stored>("submit", statements.known, knownParameters(jobs)))
    const rest = jobs.filter(({ id }) => !known.has(id))
    return rest.length === 0 ? known : new Map([...known, ...yield* send(rest, options)])
  })

  const onOwnPool = (jobs: Jobs, options: Options): Effect.Effect<Answers, StoreError> => {
    let isUncertain = false
    let isSent = false
    const sent = Effect.retry(Effect.suspend(() => isUncertain ? sendAgain(jobs, options) : send(jobs, options)), {
      schedule: resending,
      while: (error) => {
        if (error.reason === "Unavailable") isUncertain = true
        if (error.isUncertain === true) isSent = true
        return error.reason === "Conflict" || (isUncertain && (error.reason !== "Refused" || isStoredAlready(error)))
      }
    })
    // The lock that it waits for may be that of its own first sending: then nothing is known still.
    const isUnanswered = ({ reason }: StoreError) =>
      reason === "Unavailable" || (isUncertain && reason === "LockTimeout")
    return onLiveClock(
      Effect.mapError(
        sent,
        (error) => isUnanswered(error) ? unanswered(error, isSent || error.isUncertain === true) : error
      )
    )
  }

  /** A savepoint, so that a key that is held for too long costs the caller this submission and not the transaction. */
  const inTransaction = (jobs: Jobs, options: Options): Effect.Effect<Answers, StoreError> => {
    // What is lost with the connection is lost with the caller's transaction: nothing of it can be there.
    const run: Run = (operation, sql, parameters) =>
      Effect.mapError(
        runUnpreparedOn(client)<never>(operation, sql, parameters),
        (error) => error.reason === "Unavailable" ? unanswered(error, false) : error
      )
    if (!isKeyed(jobs)) return statements.sendUnkeyed(run, jobs, options)
    return beginAgain(client.withTransaction(Effect.gen(function*() {
      const [before] = yield* run<{ readonly timeout: string }>(
        "submit",
        "select current_setting('lock_timeout') as timeout",
        []
      )
      yield* run("submit", setTimeout, [text(String(lockTimeoutMs))])
      const answers = yield* statements.sendKeyed(run, jobs, options)
      yield* run("submit", setTimeout, [text(before?.timeout ?? "0")])
      return answers
    })))
  }

  return Effect.fnUntraced(
    function*(jobs: Jobs, options: Options): Effect.fn.Return<ReadonlyArray<Submitted>, StoreError> {
      if (jobs.length === 0) return []
      const collapsed = collapse(jobs)
      const distinct = collapsed.flatMap(({ first, job }) => first === job ? [job] : [])
      const answers = yield* (yield* isInTransaction(client))
        ? inTransaction(distinct, options)
        : onOwnPool(distinct, options)
      const result: Array<Submitted> = []
      for (const { first, job } of collapsed) {
        const answer = answers.get(first.id)
        if (answer === undefined) return yield* Effect.die(new Error(`submit: no answer for job ${first.id}`))
        result.push(first === job ? answer : { id: answer.id, isNew: false, seq: 0 })
      }
      return result
    }
  )
}

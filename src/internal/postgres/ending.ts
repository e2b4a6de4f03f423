/**
 * How an open transaction ends on its session: a last statement and COMMIT in one write, and what the server's answers mean. A crash leaves
 * what PostgreSQL decided; an answer that never came is an error of its own (`commitUnknown`), for then both are possible.
 */
import type { PgConnection } from "@effect/sql-pg/PgConnection"
import type { PgPool } from "@effect/sql-pg/PgPool"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as References from "effect/References"
import { ConnectionError, SqlError, UnknownError } from "effect/sql/SqlError"
import { sqlState } from "./sqlState.ts"

/** A statement as it goes to the driver: its text with `$1`, `$2`, ... and its parameters. */
export interface LastStatement {
  readonly sql: string
  readonly params: ReadonlyArray<unknown>
}

/** `operation` of the `ConnectionError` that means: COMMIT was sent and never answered. */
export const commitUnknown = "millrace/commit-unknown"

/**
 * Whether `error` says that the connection was lost while COMMIT was under way: the transaction may have committed or not, and only
 * the database can tell. Every other error of a transaction means that it did not commit. (A client that `Postgres.make` did not
 * make never says so: there, any `ConnectionError` out of `withTransaction` is unknown.)
 */
export const isCommitUnknown = (error: SqlError): boolean =>
  error.reason._tag === "ConnectionError" && error.reason.operation === commitUnknown

export const rollbackStatement = "ROLLBACK"
const commitStatement = "COMMIT"

type PgResult = Effect.Success<ReturnType<PgConnection["query"]>>

export const transactionError = (message: string, operation: string): SqlError =>
  new SqlError({ reason: new UnknownError({ cause: new Error(message), message, operation }) })

const wasAborted = transactionError(
  "COMMIT found the transaction aborted by an earlier error and rolled it back.",
  "commit"
)

/** An error of what was sent with COMMIT: the server's word (it did not commit), or none at all (nobody knows). */
export const asUnanswered = (error: SqlError): SqlError =>
  sqlState(error) !== undefined ? error : new SqlError({
    reason: new ConnectionError({
      cause: error,
      message: "The connection was lost during COMMIT: whether the transaction committed is not known.",
      operation: commitUnknown
    })
  })

/** A statement on its way: the fiber that waits for its answer, or the exit of one that was never sent. */
export type Sent = Fiber.Fiber<PgResult, SqlError> | Exit.Exit<PgResult, SqlError>

/** Queues a statement at once. What is queued before the driver flushes, in a microtask, leaves in one write. */
export const send = (base: PgConnection, { params, sql }: LastStatement): Effect.Effect<Sent> =>
  Effect.map(
    Effect.forkChild(base.query(sql, params), { startImmediately: true, uninterruptible: true }),
    (fiber) => fiber.pollUnsafe() ?? fiber
  )

export const answerOf = (sent: Sent): Effect.Effect<void, SqlError> =>
  Effect.asVoid(Exit.isExit(sent) ? sent : Fiber.join(sent))

/** `ROLLBACK` is the server's answer to the COMMIT of a transaction that an error has aborted. */
const checkCommitted = (result: PgResult): Effect.Effect<void, SqlError> =>
  result.command === rollbackStatement ? Effect.fail(wasAborted) : Effect.void

/** Leaves the session fit for its next user, or takes it out of the pool. */
export const cleanUp = (pool: PgPool, base: PgConnection): Effect.Effect<void> =>
  Effect.catch(Effect.asVoid(base.query(rollbackStatement)), () => pool.invalidate(base))

export const commitNow = (pool: PgPool, base: PgConnection): Effect.Effect<void, SqlError> =>
  Effect.matchEffect(base.query(commitStatement), {
    onFailure: (error) => Effect.andThen(cleanUp(pool, base), Effect.fail(asUnanswered(error))),
    onSuccess: checkCommitted
  })

/** The last statement and COMMIT in one write. */
export const commitAfter = (pool: PgPool, base: PgConnection, last: LastStatement): Effect.Effect<void, SqlError> =>
  Effect.flatMap(send(base, last), (sent) => {
    // It never went out (say, a parameter that cannot be encoded): a COMMIT sent now would commit without it.
    if (Exit.isExit(sent)) return Effect.andThen(cleanUp(pool, base), Effect.asVoid(sent))
    // The server's word on the statement comes first: behind an error COMMIT is a ROLLBACK, even if its answer got lost.
    const settled = Effect.mapError(answerOf(sent), asUnanswered)
    return Effect.matchEffect(base.query(commitStatement), {
      onFailure: (error) =>
        Effect.andThen(cleanUp(pool, base), Effect.andThen(settled, Effect.fail(asUnanswered(error)))),
      onSuccess: (result) => Effect.andThen(settled, checkCommitted(result))
    })
  }).pipe(
    // A yield between the two would split the write; one inside the first could put COMMIT before it.
    Effect.provideService(References.PreventSchedulerYield, true)
  )

/**
 * The last statement of a transaction of `withTransaction`, for tests of the connection that sends it together with COMMIT.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { SqlClient } from "effect/sql/SqlClient"
import type { LastStatement } from "../../src/internal/postgres/ending.ts"
import { LazyConnection } from "../../src/internal/postgres/LazyConnection.ts"

/** The current transaction of `sql` in this fiber: its connection and its depth (0: outermost, more: inside savepoints). */
const current = (sql: SqlClient) => Effect.serviceOption(sql.transactionService)

/**
 * Registers the last statement of the transaction that this fiber is in. It leaves together with COMMIT, in one socket write, once the
 * effect given to `withTransaction` has succeeded; its failure is the failure of `withTransaction`, and then nothing is committed.
 * Its rows are not seen: it has to raise where it would have to be looked at.
 *
 * `false`, and nothing registered, where that cannot be: no transaction, one of a client that `Postgres.make` did not make, or
 * inside a savepoint. The caller then runs the statement itself. Registering twice is a defect.
 */
export const commitWith = (sql: SqlClient, statement: LastStatement): Effect.Effect<boolean> =>
  Effect.map(current(sql), (transaction) => {
    if (Option.isNone(transaction)) return false
    const [connection, depth] = transaction.value
    if (depth > 0 || !(connection instanceof LazyConnection)) return false
    connection.setLast(statement)
    return true
  })

/**
 * What the transaction that this fiber is in has cost so far: `none` (there is none), `idle` (no statement yet, no connection in
 * use), `begun`, or `foreign` (of a client that begins eagerly).
 */
export const hasBegun = (sql: SqlClient): Effect.Effect<"none" | "idle" | "begun" | "foreign"> =>
  Effect.map(current(sql), (transaction) => {
    if (Option.isNone(transaction)) return "none"
    const [connection] = transaction.value
    if (!(connection instanceof LazyConnection)) return "foreign"
    return connection.hasBegun ? "begun" : "idle"
  })

/**
 * What the end of a transaction means: whether the database broke it, and whether it may have committed without saying so. Nothing here
 * holds state; a crash leaves what PostgreSQL decided: everything before COMMIT was answered may or may not be there (`isCommitUnknown`).
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { SqlClient } from "effect/sql/SqlClient"
import { isSqlError } from "effect/sql/SqlError"
import type { Breakage } from "../../JobStore.ts"
import { LazyConnection } from "../postgres/LazyConnection.ts"
import { breakageOf, hasLostConnection } from "../postgres/sqlState.ts"
import { guard, holds } from "../words/safely.ts"

export { type Transactions, transactionsOf } from "../postgres/attemptTransaction.ts"
export { isCommitUnknown } from "../postgres/ending.ts"
export { breakageOf, hasLostConnection, sqlState } from "../postgres/sqlState.ts"

/** The current transaction of `sql` in this fiber: its connection and its depth. */
const current = (sql: SqlClient) => Effect.serviceOption(sql.transactionService)

const errorsOf = (cause: Cause.Cause<unknown>): ReadonlyArray<unknown> =>
  cause.reasons.flatMap((reason) =>
    Cause.isFailReason(reason) ? [reason.error] : Cause.isDieReason(reason) ? [reason.defect] : []
  )

/** The same for a transaction opened by hand. */
export const breakageOn = (
  connection: LazyConnection,
  cause: Cause.Cause<unknown>
): Breakage | undefined => {
  const broken = connection.brokenBy
  return broken === undefined || (broken.isOver && !errorsOf(cause).includes(broken.error)) ? undefined : broken.by
}

/**
 * Whether an effect that failed with `cause` inside the current transaction of `sql` did so because the database broke that one. Not so where the effect had gone back to a savepoint before it failed with
 * something else, and not for errors of other sessions. To be asked before the transaction has ended.
 */
export const breakage = (
  sql: SqlClient,
  cause: Cause.Cause<unknown>
): Effect.Effect<Breakage | undefined> =>
  Effect.flatMap(current(sql), (transaction) => {
    if (Option.isNone(transaction)) return Effect.undefined
    const [connection] = transaction.value
    if (connection instanceof LazyConnection) return Effect.succeed(breakageOn(connection, cause))
    // Of a client that keeps no account: where the failure looks like it, the session is asked whether it still works.
    const suspected = errorsOf(cause).filter(guard(isSqlError)).find((error) =>
      holds(() => breakageOf(error, true) !== undefined)
    )
    if (suspected === undefined) return Effect.undefined
    return Effect.match(Effect.withTracerEnabled(sql.unsafe("select 1"), false), {
      onSuccess: () => undefined,
      onFailure: (error) =>
        hasLostConnection(error) || !hasLostConnection(suspected) ? breakageOf(suspected, true) : undefined
    })
  })

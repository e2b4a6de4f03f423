/**
 * transactGrouped: several attempts share one transaction, each in a savepoint and with a settlement of its own. One that fails or was
 * superseded rolls back alone. When the COMMIT fails, or the session is lost before it, nothing of the group is there: each is run again at
 * once in a transaction of its own, no attempt counted. A COMMIT that was never answered is resolved for each (refence).
 */
import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { BeginTransaction, type SqlClient } from "effect/sql/SqlClient"
import type { CommitFailed } from "../../JobError.ts"
import type { Finish, Owner, Transacted } from "../../JobStore.ts"
import { GroupedConnection } from "../postgres/GroupedConnection.ts"
import { GroupLimits, Groups, type Outcome } from "../postgres/Groups.ts"
import type { Database } from "./database.ts"
import type { Foresee, InDays } from "./retention.ts"
import { dayOf, int4 } from "./rows.ts"
import { type Completion, conclude, settleParameters, settleSql, type Transact } from "./transact.ts"
import { breakageOn, type Transactions, transactionsOf } from "./transaction.ts"

/** See {@link JobStore.transactGrouped}. `alone`: for a client that `Postgres.make` did not make, and for whose group is broken. */
export const transactGrouped = (
  db: Database,
  client: SqlClient,
  { foresee, inDays }: { readonly foresee: Foresee; readonly inDays: InDays },
  alone: Transact
): Effect.Effect<Transact, never, Scope.Scope> =>
  Effect.gen(function*() {
    const transactions = transactionsOf(client)
    if (transactions === undefined) return alone
    const cancel = (processId: number) =>
      Effect.ignore(db.run("transact", "select pg_catalog.pg_cancel_backend($1)", [int4(processId)]))
    const groups = new Groups(transactions.pool, yield* Effect.scope, yield* GroupLimits, cancel)
    /** Days that are there. */
    const known = new Set<number>()
    // Made by a member, a day would be locked until the group commits, and with it all settlements into that day.
    const prepare = (day: number): Effect.Effect<void> =>
      known.has(day) ? Effect.void : Effect.ignore(inDays(new Set([day]), Effect.sync(() => known.add(day))))
    return together(db.schema, transactions, foresee, prepare, alone, groups)
  })

/** `Scattered`: nothing of the group is there. */
type Joined = Transacted | { readonly _tag: "Scattered" }

const joinedBy = (outcome: Outcome, settlement: Finish): Joined => {
  switch (outcome) {
    case "committed":
      return { _tag: "Committed", settlement }
    case "unknown":
      return { _tag: "Unknown" }
    case "broken":
      return { _tag: "Scattered" }
  }
}

const together = (
  schema: string,
  { enter }: Transactions,
  foresee: Foresee,
  prepare: (day: number) => Effect.Effect<void>,
  alone: Transact,
  groups: Groups
): Transact => {
  const sql = settleSql(schema)
  const groupedSql = settleSql(schema, "settle_grouped")

  const joined = <A, E, R>(
    owner: Owner,
    handler: Effect.Effect<A, E, R>,
    complete: (value: A) => Effect.Effect<Completion, E, R>
  ): Effect.Effect<Joined, E | CommitFailed, R> =>
    Effect.uninterruptibleMask((restore) =>
      Effect.contextWith((services: Context.Context<R>) => {
        const connection = new GroupedConnection(groups)
        const settled = ({ now, settlement }: Completion): Effect.Effect<Joined, CommitFailed> => {
          if (connection.isIdle) {
            connection.abandon()
            return Effect.succeed<Transacted>({ _tag: "Pending", settlement })
          }
          foresee(now, settlement.purgeAt)
          const params = settleParameters(owner, settlement, now)
          if (!connection.hasBegun) {
            // No statement was sent, but something waits for the commit: it must not run before the settlement is written.
            connection.setLast({ sql, params })
            return Effect.matchEffect(connection.commitAndTell(), {
              onFailure: (error) => conclude(error, false),
              onSuccess: () => Effect.succeed<Transacted>({ _tag: "Committed", settlement })
            })
          }
          const ended = Effect.andThen(
            prepare(dayOf(settlement.purgeAt)),
            connection.settle({ sql, params }, { sql: groupedSql, params })
          )
          return Effect.matchEffect(ended, {
            onFailure: (error) => conclude(error, false),
            onSuccess: (outcome) => Effect.succeed(joinedBy(outcome, settlement))
          })
        }
        const rolledBack = (cause: Cause.Cause<E>): Effect.Effect<Transacted, E> => {
          const by = breakageOn(connection, cause)
          return Effect.andThen(
            connection.rollBack(),
            by === undefined ? Effect.failCause(cause) : Effect.succeed<Transacted>({ _tag: "Broken", by, cause })
          )
        }
        return Effect.matchCauseEffect(
          restore(Effect.setContext(Effect.flatMap(handler, complete), enter(services, connection))),
          { onFailure: rolledBack, onSuccess: settled }
        )
      })
    )

  return <A, E, R>(
    owner: Owner,
    handler: Effect.Effect<A, E, R>,
    complete: (value: A) => Effect.Effect<Completion, E, R>
  ): Effect.Effect<Transacted, E | CommitFailed, R> =>
    Effect.contextWith((services: Context.Context<R>) =>
      // A transaction that begins in its own way (another isolation level) is nobody else's.
      Context.get(services, BeginTransaction) !== undefined
        ? alone(owner, handler, complete)
        : Effect.flatMap(
          joined(owner, handler, complete),
          (ended) => ended._tag === "Scattered" ? alone(owner, handler, complete) : Effect.succeed(ended)
        )
    )
}

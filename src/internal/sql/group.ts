/**
 * transactGrouped: several attempts share one transaction, each in a savepoint of its own; one statement settles them all, in one write with
 * COMMIT. One that fails rolls back alone. When the settlement or the COMMIT fails (one of them was superseded, or a deferred constraint is
 * violated), or the session is lost before, nothing of the group is there: each is run again at once in a transaction of its own, no attempt
 * counted. A COMMIT that was never answered is resolved for each (refence).
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { BeginTransaction, type SqlClient } from "effect/sql/SqlClient"
import type { CommitFailed } from "../../JobError.ts"
import type { Finish, Owner, Session, Transacted } from "../../JobStore.ts"
import type { LastStatement } from "../postgres/ending.ts"
import type { Outcome } from "../postgres/Group.ts"
import { GroupedConnection } from "../postgres/GroupedConnection.ts"
import { GroupLimits, Groups } from "../postgres/Groups.ts"
import type { LazyConnection } from "../postgres/LazyConnection.ts"
import type { Database } from "./database.ts"
import type { Foresee, InDays } from "./retention.ts"
import { dayOf, entryJson, int2s, int4, int4s, int8s, texts, timestamp, uuids } from "./rows.ts"
import type { Terminate } from "./terminate.ts"
import { type Completion, conclude, explain, settleParameters, settleSql, type Transact } from "./transact.ts"
import { breakageOn, type Transactions, transactionsOf } from "./transaction.ts"

/** See {@link JobStore.transactGrouped}. `alone`: for a client that `Postgres.make` did not make, and for whose group is broken. */
export const transactGrouped = (
  db: Database,
  client: SqlClient,
  { foresee, inDays }: { readonly foresee: Foresee; readonly inDays: InDays },
  { alone, terminate }: { readonly alone: Transact; readonly terminate: Terminate }
): Effect.Effect<Transact, never, Scope.Scope> =>
  Effect.gen(function*() {
    const transactions = transactionsOf(client)
    if (transactions === undefined) return alone
    const cancel = (processId: number) =>
      Effect.ignore(db.run("transact", "select pg_catalog.pg_cancel_backend($1)", [int4(processId)]))
    const groups = new Groups({
      pool: transactions.pool,
      scope: yield* Effect.scope,
      limits: yield* GroupLimits,
      settlement: settlementOf(db.schema),
      cancel
    })
    /** Days that are there. */
    const known = new Set<number>()
    // Made by a member, a day would be locked until the group commits, and with it all settlements into that day.
    const prepare = (day: number): Effect.Effect<void> =>
      known.has(day) ? Effect.void : Effect.ignore(inDays(new Set([day]), Effect.sync(() => known.add(day))))
    return together(db, transactions, foresee, prepare, { alone, terminate }, groups)
  })

/** Who has done its work in a group, and how it is to be settled. */
interface Member extends Completion {
  readonly owner: Owner
}

/** The last statement of a group. Of one member it is the settlement that it would have in a transaction of its own. */
export const settlementOf = (schema: string) => {
  const one = settleSql(schema)
  const many = `select ${schema}.settle_together($1, $2, $3, $4, $5, $6, $7, $8, $9) is null`
  return (members: ReadonlyArray<Member>): LastStatement => {
    const [first] = members
    if (first !== undefined && members.length === 1) {
      return { sql: one, params: settleParameters(first.owner, first.settlement, first.now) }
    }
    return {
      sql: many,
      params: [
        uuids(members.map(({ settlement }) => settlement.id)),
        int4s(members.map(({ settlement }) => settlement.version)),
        int4s(members.map(({ owner }) => owner.queueId)),
        int2s(members.map(({ owner }) => owner.partition)),
        int8s(members.map(({ owner }) => owner.epoch)),
        timestamp(members.at(-1)?.now),
        int4s(members.map(({ settlement }) => dayOf(settlement.purgeAt))),
        texts(members.map(({ settlement }) => settlement.result)),
        texts(members.map(({ settlement }) => entryJson(settlement.entry)))
      ]
    }
  }
}

/** `Scattered`: nothing of the group is there. */
type Joined = Transacted | { readonly _tag: "Scattered" }

const joinedBy = (
  outcome: Outcome,
  settlement: Finish,
  connection: LazyConnection
): Effect.Effect<Joined, CommitFailed> => {
  switch (outcome._tag) {
    case "Committed":
      return Effect.succeed({ _tag: "Committed", settlement })
    case "Unknown":
      return conclude(outcome.error, false, connection)
    case "Broken":
      return outcome.own === undefined ? Effect.succeed({ _tag: "Scattered" }) : conclude(outcome.own, false)
  }
}

const together = (
  db: Database,
  { enter }: Transactions,
  foresee: Foresee,
  prepare: (day: number) => Effect.Effect<void>,
  { alone, terminate }: { readonly alone: Transact; readonly terminate: Terminate },
  groups: Groups<Member>
): Transact => {
  const sql = settleSql(db.schema)

  const joined = <A, E, R>(
    owner: Owner,
    handler: Effect.Effect<A, E, R>,
    complete: (value: A) => Effect.Effect<Completion, E, R>,
    session: Session | undefined
  ): Effect.Effect<Joined, E | CommitFailed, R> =>
    Effect.uninterruptibleMask((restore) =>
      Effect.contextWith((services: Context.Context<R>) => {
        const connection = new GroupedConnection(groups)
        if (session !== undefined) session.end = connection.sever(terminate)
        const settled = ({ now, settlement }: Completion): Effect.Effect<Joined, CommitFailed> => {
          if (connection.isIdle) {
            connection.abandon()
            return Effect.succeed<Transacted>({ _tag: "Pending", settlement })
          }
          foresee(now, settlement.purgeAt)
          if (!connection.hasBegun) {
            // No statement was sent, but something waits for the commit: it must not run before the settlement is written.
            connection.setLast({ sql, params: settleParameters(owner, settlement, now) })
            return Effect.matchEffect(connection.commitAndTell(), {
              onFailure: (error) =>
                Effect.flatMap(conclude(error, false, connection), (end) => explain(db, end, connection)),
              onSuccess: () => Effect.succeed<Transacted>({ _tag: "Committed", settlement })
            })
          }
          const ended = Effect.andThen(prepare(dayOf(settlement.purgeAt)), connection.keep({ owner, settlement, now }))
          return Effect.matchEffect(ended, {
            onFailure: (error) =>
              Effect.flatMap(conclude(error, false, connection), (end) => explain(db, end, connection)),
            onSuccess: (outcome) =>
              Effect.flatMap(joinedBy(outcome, settlement, connection), (end) => explain(db, end, connection))
          })
        }
        const rolledBack = (cause: Cause.Cause<E>): Effect.Effect<Joined, E> => {
          const by = breakageOn(connection, cause)
          // Being interrupted has nothing to do with what it saw.
          if (Cause.hasInterruptsOnly(cause) && by !== "crashed") {
            return Effect.andThen(connection.rollBack(), Effect.failCause(cause))
          }
          return Effect.flatMap(connection.takeBack(), (stands) =>
            // What one member makes read-only may fail another: alone, each finds out about itself.
            by === "readOnly"
              ? Effect.succeed<Joined>({ _tag: "Scattered" })
              : by !== undefined
              ? explain<Joined>(db, { _tag: "Broken", by, cause }, connection)
              : stands
              ? Effect.failCause(cause)
              : Effect.succeed<Joined>({ _tag: "Scattered" }))
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
    complete: (value: A) => Effect.Effect<Completion, E, R>,
    session?: Session
  ): Effect.Effect<Transacted, E | CommitFailed, R> =>
    Effect.contextWith((services: Context.Context<R>) =>
      // A transaction that begins in its own way (another isolation level) is nobody else's.
      Context.get(services, BeginTransaction) !== undefined
        ? alone(owner, handler, complete, session)
        : Effect.flatMap(
          joined(owner, handler, complete, session),
          (ended) => ended._tag === "Scattered" ? alone(owner, handler, complete, session) : Effect.succeed(ended)
        )
    )
}

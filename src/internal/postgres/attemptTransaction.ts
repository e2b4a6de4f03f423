/**
 * Transactions of attempts, opened by hand: a job that runs no statement pays for none, not even for `withTransaction` around its handler.
 * To the handler's code there is no difference: its statements, `withTransaction` (a savepoint), `afterCommit` and reactivity go by it.
 */
import type { PgPool } from "@effect/sql-pg/PgPool"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { Reactivity } from "effect/reactivity/Reactivity"
import * as Scope from "effect/Scope"
import { BeginTransaction, type SqlClient } from "effect/sql/SqlClient"
import type { Connection } from "effect/sql/SqlConnection"
import type { SqlError } from "effect/sql/SqlError"
import { CurrentJob } from "../../CurrentJob.ts"
import { AttemptConnection } from "./AttemptConnection.ts"
import { beginStatement, LazyConnection } from "./LazyConnection.ts"
import type { Lending } from "./lending.ts"
import { NestedConnection } from "./NestedConnection.ts"

/** What opens transactions of one client by hand. */
export interface Transactions {
  /** Where their sessions come from. */
  readonly pool: PgPool
  /** How it is to get one of these. */
  readonly lending: Lending
  /** One over the services of an attempt: the services with it among them. Sends nothing. Ends with `commitAndTell` or `rollBack`. */
  readonly open: <R>(services: Context.Context<R>) => readonly [AttemptConnection, Context.Context<R>]
  /** The services with this one among them. */
  readonly enter: <R>(services: Context.Context<R>, connection: AttemptConnection) => Context.Context<R>
}

/** Marks the services inside `withTransaction` of an attempt, until its own connection is made. */
const Outer = Context.Reference<AttemptConnection | undefined>("millrace/internal/OuterTransaction", {
  defaultValue: () => undefined
})

const known = new WeakMap<SqlClient, Transactions>()

/** How to open transactions of this client by hand; `undefined` for a client that `Postgres.make` did not make. */
export const transactionsOf = (client: SqlClient): Transactions | undefined => known.get(client)

/** What a connection for a transaction is: a savepoint where one is open already. */
export const acquirer = (pool: PgPool, lending: Lending): Effect.Effect<Connection, never, Scope.Scope> =>
  Effect.contextWith((context: Context.Context<Scope.Scope>): Effect.Effect<Connection> => {
    const outer = Context.get(context, Outer)
    if (outer?.isOf(pool) === true) return Effect.succeed(new NestedConnection(outer))
    const connection = new LazyConnection(pool, Context.get(context, Scope.Scope))
    const job = Context.getOrUndefined(context, CurrentJob)
    if (job !== undefined) lending.opened(job, connection)
    return Effect.succeed(connection)
  })

/** How each kind ends with its writes. */
export const commit = (connection: Connection): Effect.Effect<void, SqlError> =>
  connection instanceof LazyConnection
    ? connection.commit()
    : connection instanceof NestedConnection
    ? Effect.asVoid(connection.commit())
    : Effect.die("commit on a connection that is not a transaction's")

/** Gives `client` what transactions opened by hand need of it: its `withTransaction` and `afterCommit` know of them from here on. */
export const install = <Client extends SqlClient>(client: Client, pool: PgPool, lending: Lending): Client => {
  const { afterCommit, transactionService, withTransaction } = client
  const current = (context: Context.Context<never>): Connection | undefined =>
    Context.getOrUndefined(context, transactionService)?.[0]

  /** The services without the transaction. */
  const outside = <R>(services: Context.Context<R>): Context.Context<R> => {
    const map = new Map(services.mapUnsafe)
    map.delete(transactionService.key)
    return Context.makeUnsafe(map)
  }

  const nested: SqlClient["withTransaction"] = <R, E, A>(effect: Effect.Effect<A, E, R>) =>
    Effect.contextWith((services: Context.Context<R>) => {
      const connection = current(services)
      if (!(connection instanceof AttemptConnection)) return withTransaction(effect)
      const savepoint = Effect.setContext(withTransaction(effect), Context.add(outside(services), Outer, connection))
      return connection.nestings.withPermit(savepoint)
    })

  const afterOwnCommit: SqlClient["afterCommit"] = <R>(effect: Effect.Effect<void, never, R>) =>
    Effect.contextWith((services: Context.Context<R>) => {
      const connection = current(services)
      const outer = connection instanceof NestedConnection ? connection.outer : connection
      if (!(outer instanceof AttemptConnection)) return afterCommit(effect)
      if (outer.hasEnded) return Effect.die(new Error("SqlClient.afterCommit: the transaction has already ended"))
      const later = Effect.setContext(effect, Context.add(outside(services), Outer, undefined))
      const registered = Effect.sync(() => outer.onCommit(later))
      // Of a savepoint that is rolled back nothing is registered.
      return outer === connection ? registered : afterCommit(registered)
    })

  /** Invalidates what was written when it is there to be read. */
  const deferred = (reactivity: Reactivity, connection: AttemptConnection): Reactivity => {
    const invalidateUnsafe: Reactivity["invalidateUnsafe"] = (keys) =>
      connection.hasEnded
        ? reactivity.invalidateUnsafe(keys)
        : connection.onCommit(Effect.sync(() => reactivity.invalidateUnsafe(keys)))
    const invalidate: Reactivity["invalidate"] = (keys) => Effect.sync(() => invalidateUnsafe(keys))
    return {
      ...reactivity,
      invalidateUnsafe,
      invalidate,
      mutation: (keys, effect) => Effect.tap(effect, invalidate(keys))
    }
  }

  const enter: Transactions["enter"] = (services, connection) => {
    const reactivity = Context.getOrUndefined(services, Reactivity)
    const inside = Context.add(services, transactionService, [connection, 0])
    return reactivity === undefined ? inside : Context.add(inside, Reactivity, deferred(reactivity, connection))
  }

  const open: Transactions["open"] = (services) => {
    const begin = Context.get(services, BeginTransaction)
    const connection = new AttemptConnection(
      pool,
      undefined,
      begin === undefined ? { sql: beginStatement, isPrepared: true } : { sql: begin, isPrepared: false }
    )
    return [connection, enter(services, connection)]
  }

  const own = Object.assign(client, { withTransaction: nested, afterCommit: afterOwnCommit })
  known.set(own, { pool, lending, open, enter })
  return own
}

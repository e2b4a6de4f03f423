/**
 * Transactions of attempts, opened by hand: a job that runs no statement pays for none, not even for `withTransaction` around its handler.
 * To the handler's code there is no difference: its statements, `withTransaction` (a savepoint), `afterCommit` and reactivity go by it.
 */
import type { PgPool } from "@effect/sql-pg/PgPool"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { Reactivity } from "effect/reactivity/Reactivity"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import { BeginTransaction, type SqlClient } from "effect/sql/SqlClient"
import type { Connection } from "effect/sql/SqlConnection"
import type { SqlError } from "effect/sql/SqlError"
import { beginStatement, LazyConnection, rollbackStatement } from "./LazyConnection.ts"
import { NestedConnection } from "./NestedConnection.ts"

/** One attempt's transaction. Ends with one of `commit` and `rollback`, which gives its session back. */
export interface AttemptTransaction<R> {
  readonly connection: LazyConnection
  /** The services given, with this transaction among them. */
  readonly context: Context.Context<R>
  /** What was registered with `afterCommit` runs when it has committed. */
  readonly commit: Effect.Effect<void, SqlError>
  readonly rollback: Effect.Effect<void>
}

/** Opens one over the services of an attempt. Sends nothing. */
export type Open = <R>(services: Context.Context<R>) => AttemptTransaction<R>

/** Marks the services inside `withTransaction` of an attempt, until its own connection is made. */
const Outer = Context.Reference<LazyConnection | undefined>("millrace/internal/OuterTransaction", {
  defaultValue: () => undefined
})

interface Own {
  /** To run once it has committed. */
  readonly callbacks: Array<Effect.Effect<void>>
  /** Savepoints of one transaction one after another. */
  nesting: Semaphore.Semaphore | undefined
}

const owns = new WeakMap<Connection, Own>()
const openers = new WeakMap<SqlClient, Open>()

/** How to open transactions of this client by hand; `undefined` for a client that `Postgres.make` did not make. */
export const openerOf = (client: SqlClient): Open | undefined => openers.get(client)

/** What a connection for a transaction is: a savepoint where one is open already. */
export const acquirer = (pool: PgPool): Effect.Effect<Connection, never, Scope.Scope> =>
  Effect.contextWith((context: Context.Context<Scope.Scope>) => {
    const outer = Context.get(context, Outer)
    return Effect.succeed(
      outer === undefined ? new LazyConnection(pool, Context.get(context, Scope.Scope)) : new NestedConnection(outer)
    )
  })

/** The same for the end: the statement that a client's `commit` stands for. */
export const commit = (connection: Connection): Effect.Effect<void, SqlError> =>
  connection instanceof LazyConnection
    ? connection.commit()
    : connection instanceof NestedConnection
    ? Effect.asVoid(connection.commit())
    : Effect.die("commit on a connection that is not a transaction's")

const runCallback = (callback: Effect.Effect<void>) =>
  Effect.ignoreCause(callback, { log: "Unhandled", message: "Unhandled error in SqlClient.afterCommit callback" })

/** Gives `client` what transactions opened by hand need of it: its `withTransaction` and `afterCommit` know of them from here on. */
export const install = <Client extends SqlClient>(client: Client, pool: PgPool): Client => {
  const { afterCommit, transactionService, withTransaction } = client
  const current = (context: Context.Context<never>): Connection | undefined =>
    Context.getOrUndefined(context, transactionService)?.[0]

  /** The services without the transaction. */
  const outside = <R>(services: Context.Context<R>): Context.Context<R> => {
    const map = new Map(services.mapUnsafe)
    map.delete(transactionService.key)
    return Context.makeUnsafe(map)
  }

  const register = (connection: LazyConnection, own: Own, callback: Effect.Effect<void>): Effect.Effect<void> =>
    Effect.suspend(() => {
      if (connection.hasEnded) {
        return Effect.die(new Error("SqlClient.afterCommit: the transaction has already ended"))
      }
      own.callbacks.push(callback)
      return Effect.void
    })

  const nested: SqlClient["withTransaction"] = <R, E, A>(effect: Effect.Effect<A, E, R>) =>
    Effect.contextWith((services: Context.Context<R>) => {
      const connection = current(services)
      const own = connection === undefined ? undefined : owns.get(connection)
      if (own === undefined || !(connection instanceof LazyConnection)) return withTransaction(effect)
      own.nesting ??= Semaphore.makeUnsafe(1)
      return own.nesting.withPermit(
        Effect.setContext(
          withTransaction(effect),
          Context.add(outside(services), Outer, connection)
        )
      )
    })

  const afterOwnCommit: SqlClient["afterCommit"] = <R>(effect: Effect.Effect<void, never, R>) =>
    Effect.contextWith((services: Context.Context<R>) => {
      const connection = current(services)
      const outer = connection instanceof NestedConnection ? connection.outer : connection
      const own = outer === undefined ? undefined : owns.get(outer)
      if (own === undefined || !(outer instanceof LazyConnection)) return afterCommit(effect)
      const later = Effect.setContext(effect, Context.add(outside(services), Outer, undefined))
      const registered = register(outer, own, later)
      // Of a savepoint that is rolled back nothing is registered.
      return outer === connection ? registered : afterCommit(registered)
    })

  /** Invalidates what was written when it is there to be read. */
  const deferred = (reactivity: Reactivity, callbacks: Array<Effect.Effect<void>>): Reactivity => {
    const invalidateUnsafe: Reactivity["invalidateUnsafe"] = (keys) => {
      callbacks.push(Effect.sync(() => reactivity.invalidateUnsafe(keys)))
    }
    const invalidate: Reactivity["invalidate"] = (keys) => Effect.sync(() => invalidateUnsafe(keys))
    return {
      ...reactivity,
      invalidateUnsafe,
      invalidate,
      mutation: (keys, effect) => Effect.tap(effect, invalidate(keys))
    }
  }

  const open: Open = <R>(services: Context.Context<R>): AttemptTransaction<R> => {
    const scope = Scope.makeUnsafe()
    const begin = Context.get(services, BeginTransaction)
    const connection = LazyConnection.begun(
      pool,
      scope,
      begin === undefined ? { sql: beginStatement, isPrepared: true } : { sql: begin, isPrepared: false }
    )
    const own: Own = { callbacks: [], nesting: undefined }
    owns.set(connection, own)
    const reactivity = Context.getOrUndefined(services, Reactivity)
    const inside = Context.add(services, transactionService, [connection, 0])
    const close = Effect.suspend(() => scope.state._tag === "Empty" ? Effect.void : Scope.close(scope, Exit.void))
    const tell = Effect.suspend(() =>
      own.callbacks.length === 0 ? Effect.void : Effect.forEach(own.callbacks, runCallback, { discard: true })
    )
    return {
      connection,
      context: reactivity === undefined
        ? inside
        : Context.add(inside, Reactivity, deferred(reactivity, own.callbacks)),
      commit: Effect.suspend(() => connection.commit()).pipe(Effect.ensuring(close), Effect.andThen(tell)),
      rollback: Effect.suspend(() => connection.execute(rollbackStatement, [], undefined)).pipe(
        Effect.orDie,
        Effect.ensuring(close),
        Effect.asVoid
      )
    }
  }

  const own = Object.assign(client, { withTransaction: nested, afterCommit: afterOwnCommit })
  openers.set(own, open)
  return own
}

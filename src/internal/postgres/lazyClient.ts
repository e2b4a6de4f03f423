/**
 * A `PgClient` whose transactions begin with their first statement and end in one write (`LazyConnection`). Everything else behaves
 * as `PgClient.make` does; statements outside of a transaction run pinned as well, so that interruption cancels them on the server.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import type { PgConnection } from "@effect/sql-pg/PgConnection"
import * as PgPool from "@effect/sql-pg/PgPool"
import * as Effect from "effect/Effect"
import type { Reactivity } from "effect/reactivity/Reactivity"
import type * as Scope from "effect/Scope"
import * as SqlClient from "effect/sql/SqlClient"
import type { Connection } from "effect/sql/SqlConnection"
import type { SqlError } from "effect/sql/SqlError"
import * as Statement from "effect/sql/Statement"
import { onLiveClock } from "../time/liveClock.ts"
import * as AttemptTransaction from "./attemptTransaction.ts"
import * as SessionConnection from "./connection.ts"
import { rollbackStatement } from "./ending.ts"
import { beginStatement } from "./LazyConnection.ts"
import { Lending, watched } from "./lending.ts"
import { severable } from "./severable.ts"

const json = Statement.custom<PgClient.PgCustom>("PgJson")

/**
 * Lends each session to one user at a time (`multiplexConcurrency`), yet can pipeline on it (`multiplex`). Its timeouts are the network's: a
 * test clock does not move them.
 */
export const makePool = (config: PgClient.PgPoolConfig): Effect.Effect<PgPool.PgPool, SqlError, Scope.Scope> =>
  onLiveClock(PgPool.make({ ...config, multiplex: true, multiplexConcurrency: 1 }))

/** The client over `pool`. `config` is what others open further pools with. */
export const make = Effect.fnUntraced(function*(
  lent: PgPool.PgPool,
  config: PgClient.PgPoolConfig
): Effect.fn.Return<PgClient.PgClient, never, Reactivity> {
  const lending = new Lending()
  const pool = { ...lent, ...watched(lent, lending) }
  const own = severable(pool, lending)
  const pinned: Effect.Effect<Connection, SqlError, Scope.Scope> = Effect.map(own.reserve, SessionConnection.make)
  const client = yield* SqlClient.make({
    driver: "pg",
    compiler: PgClient.makeCompiler(config.transformQueryNames, config.transformJson),
    acquirer: pinned,
    borrower: (use) =>
      own.use((session) =>
        Effect.scoped(Effect.flatMap(session.pin, (pin: PgConnection) => use(SessionConnection.make(pin))))
      ),
    transactionAcquirer: AttemptTransaction.acquirer(pool, lending),
    prepareTransactionControls: true,
    beginTransaction: beginStatement,
    rollback: rollbackStatement,
    commit: AttemptTransaction.commit,
    releaseSavepoint: (name) => `RELEASE SAVEPOINT ${name}`,
    transformRows: config.transformResultNames === undefined
      ? undefined
      : Statement.defaultTransforms(config.transformResultNames, config.transformJson).array,
    spanAttributes: [
      ...Object.entries(config.spanAttributes ?? {}),
      ["db.system.name", "postgresql"],
      ["db.namespace", config.database ?? config.username ?? "postgres"],
      ["server.address", config.host ?? "localhost"],
      ["server.port", config.port ?? 5432]
    ]
  })
  const typeId: PgClient.TypeId = PgClient.TypeId
  return AttemptTransaction.install(
    Object.assign(client, {
      [typeId]: typeId,
      config,
      // A reserved connection is not a transaction: nothing lazy about it.
      reserve: pinned,
      json: (value: unknown) => Statement.fragment([json(value)]),
      listen: (channel: string) => Effect.flatMap(pool.reserve, (session) => session.listen(channel)),
      notify: (channel: string, payload: string) =>
        Effect.scoped(
          Effect.flatMap(pinned, (session) => session.executeRaw("select pg_notify($1, $2)", [channel, payload]))
        ).pipe(
          Effect.asVoid
        )
    }),
    pool,
    lending
  )
})

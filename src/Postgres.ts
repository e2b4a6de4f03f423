/**
 * The database that jobs live in and handlers write to: one client under both of its tags, `PgClient` and `SqlClient`. Its
 * transactions are lazy (BEGIN leaves with the first statement) and end together with the job's settlement, in one write. A crash
 * leaves nothing behind: the server ends what the sockets held.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import type { PgPool } from "@effect/sql-pg/PgPool"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import * as LazyClient from "./internal/postgres/lazyClient.ts"
import { sharesSessions } from "./internal/postgres/pooler.ts"
import { fromSqlError, PostgresError, type Target } from "./internal/postgres/PostgresError.ts"
import { type Options, resolve, type Settings } from "./internal/postgres/settings.ts"
import { sqlState } from "./internal/postgres/sqlState.ts"
import { onLiveClock } from "./internal/time/liveClock.ts"

export { PostgresError } from "./internal/postgres/PostgresError.ts"
export type { Options } from "./internal/postgres/settings.ts"

/** The database, as the requirement of a layer. */
export type Client = PgClient.PgClient

/** The oldest server that Millrace runs on, as `server_version_num`. */
const oldestVersion = 150_000

/** SQLSTATEs of a startup packet refused for one of its settings: by the server, or (08P01) by a pooler in between. */
const isRefusedParameter = (error: SqlError): boolean =>
  ["22023", "42704", "42501", "0A000", "08P01"].includes(sqlState(error) ?? "")

const versionOf = (pool: PgPool): Effect.Effect<number, SqlError> =>
  Effect.map(
    pool.use((session) => session.queryValues("select current_setting('server_version_num')::int4")),
    (rows) => Number(rows[0]?.[0])
  )

const checkVersion = (version: number, target: Target): Effect.Effect<void, PostgresError> =>
  version >= oldestVersion ? Effect.void : Effect.fail(
    new PostgresError({
      reason: "VersionUnsupported",
      message: `PostgreSQL at ${target.host}:${target.port} is version ${
        Math.floor(version / 10_000)
      }; Millrace needs 15 or later.`
    })
  )

/** Opens the pool with the fullest set of session settings that this server accepts. */
const openPool = Effect.fnUntraced(function*(
  { parameters, pool: shared, target }: Settings
): Effect.fn.Return<{ readonly pool: PgPool; readonly config: PgClient.PgPoolConfig }, PostgresError, Scope.Scope> {
  const scope = yield* Effect.scope
  let refusal: PostgresError | undefined
  for (const startupParameters of parameters) {
    const config = { ...shared, startupParameters }
    const trial = yield* Scope.fork(scope)
    const opened = yield* LazyClient.makePool(config).pipe(
      Scope.provide(trial),
      Effect.flatMap((pool) => Effect.map(versionOf(pool), (version) => ({ pool, version }))),
      Effect.result
    )
    if (Result.isSuccess(opened)) {
      yield* checkVersion(opened.success.version, target)
      if (refusal !== undefined) {
        yield* Effect.logWarning(
          "The locks of a process that died may be held for longer: session settings were refused."
        )
          .pipe(Effect.annotateLogs({ refusal: refusal.message }))
      }
      return { pool: opened.success.pool, config }
    }
    yield* Scope.close(trial, Exit.void)
    refusal = fromSqlError(opened.failure, target)
    if (!isRefusedParameter(opened.failure)) break
  }
  return yield* refusal ??
    new PostgresError({ reason: "Unknown", message: "There are no session settings to connect with." })
})

/**
 * Makes the client. One round trip is done before it is given out, so that wrong settings fail here and not at the first job.
 *
 * Fails with a `PostgresError` whose `reason` says what is wrong. Connections close with the scope.
 */
export const make = Effect.fnUntraced(function*(
  options: Options = {}
): Effect.fn.Return<PgClient.PgClient, PostgresError, Scope.Scope | Reactivity.Reactivity> {
  const { config, pool } = yield* Effect.flatMap(resolve(options), openPool)
  return yield* LazyClient.make(pool, config)
})

/**
 * The database, from `options`, or else from `DATABASE_URL`, or else from `PGHOST`, `PGPORT`, `PGDATABASE`, `PGUSER`, `PGPASSWORD`,
 * `PGSSLMODE`, `PGSSLROOTCERT`, `PGSSLCERT` and `PGSSLKEY`. Gives one client under both tags.
 */
export const layer = (options: Options = {}): Layer.Layer<PgClient.PgClient | SqlClient, PostgresError> =>
  PgClient.layerFrom(make(options))

/** `layer` with its options read from `Config`. A setting that cannot be read is a `PostgresError` (`InvalidConfig`). */
export const layerConfig = (config: Config.Wrap<Options>): Layer.Layer<PgClient.PgClient | SqlClient, PostgresError> =>
  PgClient.layerFrom(
    Config.unwrap(config).pipe(
      Effect.mapError((error) =>
        new PostgresError({
          reason: "InvalidConfig",
          message: `The database's settings cannot be read: ${error.message}`
        })
      ),
      Effect.flatMap(make)
    )
  )

/**
 * Opens a plain client (eager transactions, no transforms, the driver's own types) to the database that `client` is connected to,
 * with connections of its own: for Millrace's statements and for the shard locks, which must never wait for handlers.
 *
 * `overrides` win over what is taken from `client.config`. Connections are opened when first used and close with the scope.
 */
export const makePool = (
  client: PgClient.PgClient,
  overrides: PgClient.PgPoolConfig = {}
): Effect.Effect<PgClient.PgClient, SqlError, Scope.Scope> => {
  const {
    multiplex: _multiplex,
    multiplexConcurrency: _concurrency,
    spanAttributes: _spanAttributes,
    transformJson: _transformJson,
    transformQueryNames: _transformQueryNames,
    transformResultNames: _transformResultNames,
    types: _types,
    ...connection
  } = client.config
  return PgClient.make({
    ...connection,
    idleTimeout: undefined,
    minConnections: undefined,
    maxConnections: undefined,
    connectionTTL: undefined,
    ...overrides,
    // Both at once name a setting twice; what the caller adds goes on top of what the connection needs.
    startupParameters: { ...connection.startupParameters, ...overrides.startupParameters }
  }).pipe(Effect.provideServiceEffect(Reactivity.Reactivity, Reactivity.make), onLiveClock)
}

/** {@link makePool} as the `SqlClient` of what is built on this layer. */
export const layerPool = (
  overrides: PgClient.PgPoolConfig
): Layer.Layer<SqlClient, PostgresError, PgClient.PgClient> =>
  Layer.effect(
    SqlClient,
    Effect.flatMap(PgClient.PgClient, (client) => makePool(client, overrides)).pipe(
      Effect.mapError((error) => new PostgresError({ reason: "Unknown", message: error.message }))
    )
  )

const isShared = new PostgresError({
  reason: "TransactionPooler",
  message:
    "A pooler in transaction mode is between this process and PostgreSQL: two sessions share one backend. A worker owns its queues " +
    "by locks of a session, and hears of jobs on one. Give it the address of PostgreSQL itself, or of a pooler in session mode. A program " +
    "that only submits (JobRuntime.layerClient) can stay where it is, with `prepare: false`."
})

/** {@link layerPool} for what belongs to a session. Fails with `TransactionPooler` where sessions are shared; takes two connections. */
export const layerSessions = (
  overrides: PgClient.PgPoolConfig
): Layer.Layer<SqlClient, PostgresError, PgClient.PgClient> =>
  Layer.effectDiscard(Effect.gen(function*() {
    const shares = yield* Effect.mapError(
      sharesSessions(yield* SqlClient),
      (error) => new PostgresError({ reason: "Unknown", message: error.message, cause: error })
    )
    if (shares) return yield* isShared
  })).pipe(Layer.provideMerge(layerPool(overrides)))

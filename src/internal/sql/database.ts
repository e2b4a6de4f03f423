/**
 * Millrace's own statements run here: on a small pool of their own, so that handlers which hold transactions never starve settlement,
 * prepared, untraced, with planner settings under which the statements' plans are known (see QueryPlans.test.ts).
 */
import type { PgClient } from "@effect/sql-pg/PgClient"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import type { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import { StoreError } from "../../JobStore.ts"
import { hasLostConnection, sqlState } from "./transaction.ts"

/** Runs one statement and answers with its rows. */
export type Run = <Row extends object>(
  operation: string,
  sql: string,
  parameters: ReadonlyArray<unknown>
) => Effect.Effect<ReadonlyArray<Row>, StoreError>

/** The own pool, and the schema that every statement names. */
export interface Database {
  readonly schema: string
  readonly pool: PgClient
  readonly run: Run
  /** Several statements in one transaction: all of them, or none. */
  readonly together: <A>(operation: string, statements: Effect.Effect<A, StoreError>) => Effect.Effect<A, StoreError>
}

/**
 * Startup settings of the own pool. A generic plan made while `jobs` is empty stays wrong until the next ANALYZE (3.5 s for what takes
 * 3 ms), hence custom plans; with only nested loops over indexes left, rows are locked in the order of the ids sent.
 */
export const startupParameters = (lockTimeout: Duration.Duration): Readonly<Record<string, string>> => ({
  plan_cache_mode: "force_custom_plan",
  enable_seqscan: "off",
  enable_bitmapscan: "off",
  enable_hashjoin: "off",
  enable_mergejoin: "off",
  jit: "off",
  // A statement that has waited for a lock sees what has changed meanwhile: layout.ts and takeOver.ts count on it.
  default_transaction_isolation: "read committed",
  lock_timeout: String(Math.max(1, Math.ceil(Duration.toMillis(lockTimeout))))
})

/**
 * For a pool of statements that have one plan only, whatever the tables hold: an insert of what the parameters say. Planning it anew costs
 * 0.13 ms each time, a third of a single insert.
 */
export const plannedOnce: Readonly<Record<string, string>> = { plan_cache_mode: "force_generic_plan" }

/** Classes and states in which the server could not do the work now, whatever the data: out of resources, shut down, failed over, not set up. */
const unavailable = /^(?:08|28|53|57|58|25006|25P03|3D000|3F000|40003|42501|42P01)/

/** The server's reason, in the port's words. What is no fault of the data is never `Refused`: that would cost somebody's job. */
const reasonOf = (error: SqlError): StoreError["reason"] => {
  const state = sqlState(error)
  if (state === undefined) return error.reason._tag === "UnknownError" ? "Refused" : "Unavailable"
  if (state === "40001" || state === "40P01") return "Conflict"
  if (state === "55P03") return "LockTimeout"
  return unavailable.test(state) || isMissingDay({ cause: said(error), sqlState: state }) ? "Unavailable" : "Refused"
}

/** What the server said, where it said something: the driver's own message is the same for every failed query. */
const said = (error: SqlError): unknown => error.reason.cause instanceof Error ? error.reason.cause : error

/** The server's words, or the driver's. */
export const messageOf = (error: SqlError): string => {
  const cause = said(error)
  return cause instanceof Error ? cause.message : error.message
}

const names = (cause: unknown, field: "constraint" | "table", name: string | undefined): boolean =>
  (Predicate.hasProperty(cause, field) ? cause[field] : undefined) === name

/** A row is in the way of this unique index. */
export const isDuplicate = ({ cause, sqlState }: StoreError, index: string): boolean =>
  sqlState === "23505" && names(cause, "constraint", index)

/** A finished row's day has no partition: it was dropped while the settlement was under way. Other 23514s name their constraint. */
export const isMissingDay = ({ cause, sqlState }: { readonly cause: unknown; readonly sqlState?: string }): boolean =>
  sqlState === "23514" && names(cause, "table", "finished_jobs") && names(cause, "constraint", undefined)

/** Maps a driver's error to the port's. */
export const toStoreError = (operation: string) => (error: SqlError): StoreError => {
  const state = sqlState(error)
  return new StoreError({
    reason: reasonOf(error),
    operation,
    cause: said(error),
    ...(state === undefined ? {} : { sqlState: state }),
    ...(hasLostConnection(error) && error.reason.operation !== "connect" ? { isUncertain: true } : {})
  })
}

/** Connects once: a pooler in between refuses settings that it does not know (08P01), and whoever meets it has to be told what to do. */
export const checkSettings = (
  pool: PgClient,
  settings: Readonly<Record<string, string>>
): Effect.Effect<void, StoreError> =>
  pool.unsafe("select 1").unprepared.pipe(
    Effect.withTracerEnabled(false),
    Effect.asVoid,
    Effect.mapError((error) => {
      const failure = toStoreError("connect")(error)
      if (failure.sqlState !== "08P01") return failure
      const cause = new Error(
        `${
          messageOf(error)
        }: a pooler between this process and PostgreSQL refuses session settings. A worker needs PostgreSQL itself, or a ` +
          "pooler in session mode that passes them on. For a program that only submits (JobRuntime.layerClient) add these to the pooler's " +
          `ignore_startup_parameters: ${Object.keys(settings).join(", ")}`
      )
      return new StoreError({ reason: "Refused", operation: "connect", sqlState: "08P01", cause })
    })
  )

/** Statements of `client`, prepared. */
export const runOn =
  (client: SqlClient): Run =>
  <Row extends object>(operation: string, sql: string, parameters: ReadonlyArray<unknown>) =>
    Effect.withTracerEnabled(Effect.mapError(client.unsafe<Row>(sql, parameters), toStoreError(operation)), false)

/** Statements of a client with settings of its own: planned anew for each call. */
export const runUnpreparedOn =
  (client: SqlClient): Run =>
  <Row extends object>(operation: string, sql: string, parameters: ReadonlyArray<unknown>) =>
    Effect.withTracerEnabled(
      Effect.mapError(client.unsafe<Row>(sql, parameters).unprepared, toStoreError(operation)),
      false
    )

export const make = (pool: PgClient, schema: string): Database => ({
  schema,
  pool,
  run: runOn(pool),
  together: (operation, statements) =>
    pool.withTransaction(statements).pipe(
      Effect.mapError((error) => error instanceof StoreError ? error : toStoreError(operation)(error)),
      Effect.withTracerEnabled(false)
    )
})

/**
 * A session on PostgreSQL for a script's own questions, with nothing of Millrace's in it. What goes wrong is told with the statement.
 */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"

/** Rows as arrays. */
export type Rows = ReadonlyArray<ReadonlyArray<unknown>>

/** Asks, one statement at a time. */
export interface Session<E> {
  readonly query: (sql: string, params?: ReadonlyArray<unknown>) => Effect.Effect<Rows, E>
}

/** Opens one until the scope closes. `failed` makes an error of the script's own. */
export const connect = <E>(
  url: string,
  failed: (message: string) => E,
  options: Omit<PgConnection.Config, "url"> = {}
): Effect.Effect<Session<E>, E, Scope.Scope> =>
  PgConnection.make({ ...options, url: Redacted.make(url) }).pipe(
    Effect.map((session): Session<E> => ({
      query: (sql, params = []) =>
        Effect.mapError(
          session.queryValues(sql, params, false),
          (error) => failed(`${error.message}: ${sql.slice(0, 200)}`)
        )
    })),
    Effect.mapError((error) => failed(`PostgreSQL: ${error.message}`))
  )

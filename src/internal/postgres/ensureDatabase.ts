/**
 * `create database if not exists`, which PostgreSQL does not have.
 */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { type EmbeddedPostgresError, failure } from "./EmbeddedPostgresError.ts"
import { sqlState } from "./sqlState.ts"

/** Makes the database `name` on the server of `url`. One that exists already is left as it is. */
export const ensureDatabase = (url: string, name: string): Effect.Effect<void, EmbeddedPostgresError> =>
  Effect.scoped(
    Effect.gen(function*() {
      const session = yield* PgConnection.make({ url: Redacted.make(url) })
      const found = yield* session.queryValues("select 1 from pg_database where datname = $1", [name])
      if (found.length > 0) return
      yield* session.query(`create database "${name.replaceAll("\"", "\"\"")}" template template0`).pipe(
        // Another process was quicker.
        Effect.catch((error) => sqlState(error) === "42P04" ? Effect.void : Effect.fail(error))
      )
    })
  ).pipe(
    Effect.mapError((error) => failure("StartFailed", `The database "${name}" cannot be made: ${error.message}`, error))
  )

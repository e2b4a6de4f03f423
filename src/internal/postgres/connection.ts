/**
 * Effect's `SqlConnection` over one native session. `PgClient` has the same adapter but keeps it to itself.
 */
import type { PgConnection, Row } from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import type { Connection } from "effect/sql/SqlConnection"
import * as Stream from "effect/Stream"

type TransformRows = (<A extends object>(row: ReadonlyArray<A>) => ReadonlyArray<A>) | undefined

class SessionConnection implements Connection {
  readonly session: PgConnection

  constructor(session: PgConnection) {
    this.session = session
  }

  private rows(sql: string, params: ReadonlyArray<unknown>, prepare: boolean, transform: TransformRows) {
    return Effect.map(
      this.session.query(sql, params, prepare),
      (result): ReadonlyArray<Row> => transform === undefined ? result.rows : transform(result.rows)
    )
  }

  execute(sql: string, params: ReadonlyArray<unknown>, transform: TransformRows) {
    return this.rows(sql, params, true, transform)
  }

  executeUnprepared(sql: string, params: ReadonlyArray<unknown>, transform: TransformRows) {
    return this.rows(sql, params, false, transform)
  }

  executeRaw(sql: string, params: ReadonlyArray<unknown>) {
    return this.session.query(sql, params)
  }

  executeValues(sql: string, params: ReadonlyArray<unknown>) {
    return this.session.queryValues(sql, params)
  }

  executeValuesUnprepared(sql: string, params: ReadonlyArray<unknown>) {
    return this.session.queryValues(sql, params, false)
  }

  executeStream(sql: string, params: ReadonlyArray<unknown>, transform: TransformRows) {
    const rows = this.session.stream(sql, params)
    return transform === undefined
      ? rows
      : Stream.flattenIterable(Stream.map(Stream.chunks(rows), (chunk) => transform(chunk)))
  }
}

/** The statements of one session, as Effect's SQL client wants them. Interruption cancels on the server if `session` is pinned. */
export const make = (session: PgConnection): Connection => new SessionConnection(session)

/**
 * `sql.withTransaction` inside an attempt's transaction: to Effect's SQL client it is a transaction of its own, to the server a savepoint.
 */
import type { Connection } from "effect/sql/SqlConnection"
import type { AttemptConnection } from "./AttemptConnection.ts"
import { rollbackStatement } from "./ending.ts"

/** Savepoints inside this one are numbered from 1 by Effect's client. */
const savepoint = "effect_sql_0"

/** Lives from its BEGIN, which is the first statement that it gets, to its COMMIT or ROLLBACK. */
export class NestedConnection implements Connection {
  readonly outer: AttemptConnection
  private hasBegun = false

  constructor(outer: AttemptConnection) {
    this.outer = outer
  }

  /** Keeps what was written, as far as the transaction around it commits. */
  commit() {
    return this.outer.execute(`RELEASE SAVEPOINT ${savepoint}`, [], undefined)
  }

  execute: Connection["execute"] = (sql, params, transform) =>
    this.outer.execute(this.translated(sql), params, transform)

  executeUnprepared: Connection["executeUnprepared"] = (sql, params, transform) =>
    this.outer.executeUnprepared(this.translated(sql), params, transform)

  executeRaw: Connection["executeRaw"] = (sql, params) => this.outer.executeRaw(sql, params)

  executeValues: Connection["executeValues"] = (sql, params) => this.outer.executeValues(sql, params)

  executeValuesUnprepared: Connection["executeValuesUnprepared"] = (sql, params) =>
    this.outer.executeValuesUnprepared(sql, params)

  executeStream: Connection["executeStream"] = (sql, params, transform) =>
    this.outer.executeStream(sql, params, transform)

  private translated(sql: string): string {
    if (!this.hasBegun) {
      this.hasBegun = true
      return `SAVEPOINT ${savepoint}`
    }
    return sql === rollbackStatement ? `ROLLBACK TO SAVEPOINT ${savepoint}` : sql
  }
}

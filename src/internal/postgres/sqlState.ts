/**
 * SQLSTATE of an error that the server sent.
 */
import * as Predicate from "effect/Predicate"
import type { SqlError } from "effect/sql/SqlError"

/**
 * The five characters of the SQLSTATE, or `undefined` where the error did not come from the server (a lost connection, a parameter
 * that could not be encoded). The severity is asked for as well: Node's own `code`s (`EPIPE`) look the same.
 */
export const sqlState = (error: SqlError): string | undefined => {
  const cause = error.reason.cause
  return Predicate.hasProperty(cause, "severity") && Predicate.hasProperty(cause, "code") && typeof cause.code === "string"
    ? cause.code
    : undefined
}

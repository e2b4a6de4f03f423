/**
 * What the server said about an error, if it said anything.
 */
import * as Predicate from "effect/Predicate"
import type { SqlError } from "effect/sql/SqlError"

/** A field of the server's ErrorResponse. The severity is asked for as well: Node's own `code`s (`EPIPE`) look like SQLSTATEs. */
const field = (error: SqlError, name: "code" | "severityUnlocalized"): string | undefined => {
  const cause = error.reason.cause
  return Predicate.hasProperty(cause, "severity") && Predicate.hasProperty(cause, name) &&
      typeof cause[name] === "string"
    ? cause[name]
    : undefined
}

/**
 * The five characters of the SQLSTATE, or `undefined` where the error did not come from the server (a lost connection, a parameter
 * that could not be encoded).
 */
export const sqlState = (error: SqlError): string | undefined => field(error, "code")

/** Lost against another transaction: serialization_failure, deadlock_detected. */
export const isConflict = (error: SqlError): boolean => ["40001", "40P01"].includes(sqlState(error) ?? "")

/** Whether the session is gone: the line was lost, or the server closed it and said why (a shutdown, an idle transaction). */
export const hasLostConnection = (error: SqlError): boolean =>
  sqlState(error) === undefined
    ? error.reason._tag === "ConnectionError"
    : ["FATAL", "PANIC"].includes(field(error, "severityUnlocalized") ?? "")

/** Whether the server is in no state to do the work now: out of resources, shutting down, failed by its system, a standby that only reads. */
export const isOutage = (error: SqlError): boolean => /^(?:53|57P|58|25006)/.test(sqlState(error) ?? "")

/**
 * What of the database broke the transaction of a statement that failed with this: it lost against another one, or there was no way to go
 * on with it (its session is gone, the server could not do the work). `undefined`: the statement itself was wrong.
 */
export const troubleOf = (error: SqlError): "conflict" | "outage" | undefined =>
  isConflict(error) ? "conflict" : hasLostConnection(error) || isOutage(error) ? "outage" : undefined

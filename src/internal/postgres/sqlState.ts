/**
 * What the server said about an error, if it said anything, and what that means for the transaction it arose in.
 */
import * as Predicate from "effect/Predicate"
import type { SqlError } from "effect/sql/SqlError"
import type { Breakage } from "../../JobStore.ts"

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

/** Whether the server cannot do the work now: out of resources, starting, shutting down, failed by its system. */
const isUnable = (state: string): boolean => /^(?:08|53|57P0[2345]|58)/.test(state)

/**
 * What an error broke of its transaction. `undefined`: the statement itself was wrong. `isInFlight`: whether its session was alive when the
 * statement was sent. `ended` is a guess while the server may be shutting down: another session tells.
 */
export const breakageOf = (error: SqlError, isInFlight: boolean): Breakage | undefined => {
  if (isConflict(error)) return "conflict"
  const state = sqlState(error)
  if (error.reason.operation === "connect") {
    return state === undefined || hasLostConnection(error)
      ? "unable"
      : undefined
  }
  if (state === undefined) return error.reason._tag !== "ConnectionError" ? undefined : isInFlight ? "crashed" : "lost"
  if (state === "25006") return "readOnly"
  if (field(error, "severityUnlocalized") === "PANIC") return "crashed"
  if (isUnable(state) || state === "57P01" && !hasLostConnection(error)) return "unable"
  return hasLostConnection(error) ? "ended" : undefined
}

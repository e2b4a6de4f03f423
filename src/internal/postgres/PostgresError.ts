/**
 * Why a database cannot be used, in words that say what to do next. No message and no cause ever carries a password or a URL.
 */
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import type { SqlError } from "effect/sql/SqlError"
import { sqlState } from "./sqlState.ts"

const reasons = [
  /** A setting is missing or does not parse. */
  "InvalidConfig",
  /** `url` or `DATABASE_URL` is not a `postgres://` URL. */
  "InvalidUrl",
  /** Nothing listens there. */
  "ConnectionRefused",
  "HostNotFound",
  /** No answer in time. */
  "Unreachable",
  /** No TLS where it is asked for, or a certificate that does not verify. */
  "TlsFailed",
  "AuthenticationFailed",
  "DatabaseMissing",
  "TooManyConnections",
  /** Starting up or shutting down. */
  "NotReady",
  /** Older than PostgreSQL 15. */
  "VersionUnsupported",
  /** A pooler in between lends its sessions for a transaction at a time. */
  "TransactionPooler",
  "Unknown"
] as const

const retryable: ReadonlySet<string> = new Set([
  "ConnectionRefused",
  "HostNotFound",
  "Unreachable",
  "TooManyConnections",
  "NotReady"
])

/** The database cannot be used. `reason` is for programs, `message` for whoever has to repair it. */
export class PostgresError extends Schema.TaggedError<PostgresError>("millrace/PostgresError")("PostgresError", {
  reason: Schema.Literals(reasons),
  message: Schema.String,
  cause: Schema.optional(Schema.Defect())
}) {
  /** Whether the same settings may work later. */
  get isRetryable(): boolean {
    return retryable.has(this.reason)
  }
}

/** Where a connection was tried, in words fit for a message. */
export interface Target {
  readonly host: string
  readonly port: number
  readonly database: string
  readonly username: string
}

const codeOf = (cause: unknown): string =>
  Predicate.hasProperty(cause, "code") && typeof cause.code === "string" ? cause.code : ""

const textOf = (cause: unknown): string =>
  Predicate.hasProperty(cause, "message") && typeof cause.message === "string" ? cause.message : ""

const isTls = (code: string, text: string): boolean =>
  code.startsWith("ERR_TLS") || code.startsWith("ERR_SSL") || /CERT|SIGNATURE|ISSUER/.test(code) || /TLS|SSL/.test(text)

/** What the driver's error means for whoever tries to connect to `target`. */
export const fromSqlError = (error: SqlError, target: Target): PostgresError => {
  const at = `${target.host}:${target.port}`
  const make = (reason: PostgresError["reason"], message: string) =>
    new PostgresError({ reason, message, cause: error })
  const cause = error.reason.cause
  const text = textOf(cause)
  const state = sqlState(error)
  if (state !== undefined) {
    if (state.startsWith("28")) {
      return make(
        "AuthenticationFailed",
        `PostgreSQL at ${at} refused user "${target.username}" (${text}). Check the user and the password in DATABASE_URL or PGUSER and PGPASSWORD.`
      )
    }
    switch (state) {
      case "3D000":
        return make(
          "DatabaseMissing",
          `PostgreSQL at ${at} has no database "${target.database}". Create it (createdb ${target.database}) or name another in DATABASE_URL or PGDATABASE.`
        )
      case "53300":
        return make(
          "TooManyConnections",
          `PostgreSQL at ${at} has no free connection (${text}). Lower maxConnections or raise max_connections.`
        )
      case "57P01":
      case "57P02":
      case "57P03":
        return make("NotReady", `PostgreSQL at ${at} is starting up or shutting down (${text}). Try again in a moment.`)
      default:
        return make("Unknown", `PostgreSQL at ${at} refused the connection: ${text} (SQLSTATE ${state}).`)
    }
  }
  const code = codeOf(cause)
  if (error.reason._tag === "AuthenticationError") {
    return make(
      "AuthenticationFailed",
      `PostgreSQL at ${at} asks user "${target.username}" for a password that it was not given or did not accept (${text}). Set it in DATABASE_URL or PGPASSWORD.`
    )
  }
  switch (code) {
    case "ECONNREFUSED":
    case "ENOENT":
      return make(
        "ConnectionRefused",
        `Nothing listens at ${at}. Start PostgreSQL there, or correct DATABASE_URL or PGHOST and PGPORT.`
      )
    case "ENOTFOUND":
    case "EAI_AGAIN":
      return make("HostNotFound", `The host "${target.host}" is not known. Correct DATABASE_URL or PGHOST.`)
    case "ETIMEDOUT":
    case "EHOSTUNREACH":
    case "ENETUNREACH":
      return make("Unreachable", `No answer from ${at}. Check the address, the network and firewalls.`)
  }
  if (isTls(code, `${error.message} ${text}`)) {
    return make(
      "TlsFailed",
      `TLS with ${at} failed: ${text}. Give the server's authority (PGSSLROOTCERT or ssl.ca), or switch TLS off (sslmode=disable) where the network is trusted.`
    )
  }
  return text === "Connection timed out"
    ? make(
      "Unreachable",
      `No answer from ${at} in time. Check the address, the network and firewalls, or raise connectTimeout.`
    )
    : error.message.includes("No username configured")
    ? make(
      "InvalidConfig",
      `No user for PostgreSQL at ${at}: set PGUSER, or name one in the URL (postgres://user@host/database).`
    )
    : make("Unknown", `PostgreSQL at ${at} cannot be used: ${error.message}${text === "" ? "" : ` (${text})`}.`)
}

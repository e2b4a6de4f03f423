/**
 * Why a session has ended. The driver (4.0) says it to the statement in flight only as "Connection closed", also where the server gave its reason
 * (FATAL) just before, and its types name neither the error that it keeps nor its socket. Both are read here, and nowhere else; where a later
 * driver has neither, each lost session counts as lost with a statement in flight (test/SessionEnd.test.ts).
 */
import * as PgProtocol from "@effect/sql-pg/PgProtocol"
import * as Predicate from "effect/Predicate"
import * as Result from "effect/Result"
import { ConnectionError, isSqlError, SqlError } from "effect/sql/SqlError"
import { EventEmitter } from "node:events"
import { sqlState } from "./sqlState.ts"

/** What came in last on a session's socket. */
interface Tail {
  before: Uint8Array | undefined
  chunk: Uint8Array | undefined
}

const tails = new WeakMap<object, Tail>()

/** Remembers what comes in on this session from now on, and of that only the last two pieces. */
export const watch = (session: object): void => {
  if (tails.has(session)) return
  const tail: Tail = { before: undefined, chunk: undefined }
  tails.set(session, tail)
  const socket = Predicate.hasProperty(session, "session") && Predicate.hasProperty(session.session, "socket")
    ? session.session.socket
    : undefined
  if (!(socket instanceof EventEmitter)) return
  socket.on("data", (chunk: Uint8Array) => {
    tail.before = tail.chunk
    tail.chunk = chunk
  })
}

/** What has ended this session, if it has ended. */
export const deathOf = (session: object): SqlError | undefined => {
  const death = Predicate.hasProperty(session, "deadWith") ? session.deadWith : undefined
  return isSqlError(death) ? death : undefined
}

/** Whether this side has ended the session, because the server did not confirm a cancellation. */
export const isOwnDoing = (death: SqlError): boolean =>
  sqlState(death) === undefined && !/: (?:Connection closed|Socket error)$/.test(death.reason.message ?? "")

const errorType = 0x45

/** The ErrorResponse that a piece ends with, if it does. */
const lastError = (chunk: Uint8Array): PgProtocol.ErrorFields | undefined => {
  const view = new DataView(chunk.buffer, chunk.byteOffset, chunk.byteLength)
  for (let at = chunk.length - 6; at >= 0; at--) {
    if (chunk[at] !== errorType || view.getUint32(at + 1) !== chunk.length - at - 1) continue
    const parsed = Result.try(() => PgProtocol.makeParser().push(chunk.slice(at)))
    const [message] = Result.isSuccess(parsed) ? parsed.success : []
    if (message?._tag === "ErrorResponse") return message.fields
  }
  return undefined
}

/** The reason that the server gave for ending the session, if it gave one. */
export const lastWords = (session: object): SqlError | undefined => {
  const { before, chunk } = tails.get(session) ?? {}
  if (chunk === undefined) return undefined
  // A message may come in two pieces.
  const fields = lastError(chunk) ??
    (before === undefined ? undefined : lastError(Buffer.concat([before.subarray(-4_096), chunk])))
  if (fields === undefined || !["FATAL", "PANIC"].includes(fields.severityUnlocalized ?? "")) return undefined
  const cause = Object.assign(new Error(fields.message), fields)
  return new SqlError({
    reason: new ConnectionError({ cause, message: "The server ended the session", operation: "query" })
  })
}

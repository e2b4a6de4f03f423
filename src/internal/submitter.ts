/**
 * From a request to a row: looks its queue up, checks every field, encodes the payload. Nothing is stored before all are right.
 */
import type { SecureRandom } from "effect/crypto/SecureRandom"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SchemaIssue from "effect/SchemaIssue"
import type { JobRequest } from "../Job.ts"
import {
  DedupeKeyBusy,
  InvalidField,
  OutcomeUnknown,
  PayloadTooLarge,
  Refused,
  StoreUnavailable,
  SubmitError,
  UnknownQueue
} from "../JobError.ts"
import { type Definition, jsonText } from "../JobHandlers.ts"
import { BatchId, JobId } from "../JobId.ts"
import * as JobQueue from "../JobQueue.ts"
import { type NewJob, type StoreError, tenantKey } from "../JobStore.ts"
import * as Priority from "../Priority.ts"
import { RequestContext, type Stored, system, type Trace } from "../RequestContext.ts"
import type { KnownQueue, Queues } from "./queues.ts"

/** What all requests of one submission share. */
export interface Submission {
  readonly request: RequestContext
  readonly trace: Trace | undefined
  readonly now: number
  /** Defaults of a batch; a request's own options win. */
  readonly priority: JobRequest["priority"]
  readonly queue: JobRequest["queue"]
  /** Definitions known by type, for requests that are plain objects. */
  readonly definitionOf: (type: string) => Definition | undefined
}

/** A row, and what is told of it. */
export interface Prepared {
  readonly job: NewJob
  readonly queue: string
}

const maxKey = 512
const maxText = 200
/** Of the request context, which every job of a submission carries: in bytes of JSON. */
const maxContextBytes = 8_000

const invalid = (field: string, expected: string, received: unknown) =>
  Effect.fail(
    new SubmitError({ reason: new InvalidField({ field, expected, received: show(received) }) })
  )

const show = (value: unknown): string => {
  const text = typeof value === "string" ? JSON.stringify(value) : String(value)
  return text.length > 100 ? `${text.slice(0, 100)}...` : text
}

/** `text` refuses NUL; half a surrogate pair arrives as U+FFFD, so that two different texts would be one: one tenant, one dedupe key. */
const isWhole = (text: string): boolean => !text.includes("\0") && text.isWellFormed()

/** An index refuses long keys. */
const isStorable = (text: string): boolean => text.length <= maxText && isWhole(text)

const wholeText = "without NUL and unpaired surrogates"

/** A queue could not be looked up. */
const unavailable = (error: StoreError): SubmitError =>
  new SubmitError({ reason: new StoreUnavailable({ operation: "submit", cause: error }) })

/** The store's failure as a submitter sees it. */
export const failed = (error: StoreError, jobs: ReadonlyArray<NewJob>): SubmitError => {
  switch (error.reason) {
    case "LockTimeout":
      return new SubmitError({ reason: new DedupeKeyBusy() })
    case "Refused":
      return new SubmitError({ reason: new Refused({ detail: error.message }) })
    case "Conflict":
    case "Unavailable":
      return error.isUncertain === true
        ? new SubmitError({ reason: new OutcomeUnknown({ jobIds: jobs.map(({ id }) => id), cause: error }) })
        : unavailable(error)
  }
}

const decodeRequest = Schema.decodeUnknownResult(RequestContext)
const issuesOf = SchemaIssue.makeFormatterStandardSchemaV1()

const asStored = (request: RequestContext): { readonly bytes: number; readonly value: unknown } => {
  const text = JSON.stringify(request)
  return { bytes: Buffer.byteLength(text), value: JSON.parse(text) }
}

/** The path of the first text in a value that cannot be stored. */
const unwholeText = (value: unknown, at: string): { readonly at: string; readonly text: string } | undefined => {
  if (typeof value === "string") return isWhole(value) ? undefined : { at, text: value }
  if (typeof value !== "object" || value === null) return undefined
  for (const [key, inner] of Object.entries(value)) {
    const found = unwholeText(inner, Array.isArray(value) ? `${at}[${key}]` : `${at}.${key}`)
    if (found !== undefined) return found
  }
  return undefined
}

/**
 * The request as it will be stored. A context that could not be read back would run its job as somebody else; so it is read back here, once
 * a submission.
 */
export const checkRequest = (request: RequestContext): Effect.Effect<RequestContext, SubmitError> =>
  Effect.gen(function*() {
    if (request === system) return system
    const { bytes, value } = yield* Effect.catchCause(
      Effect.sync(() => asStored(request)),
      (cause) => invalid("request", "a context that is JSON", messageOf(cause))
    )
    if (bytes > maxContextBytes) {
      return yield* invalid("request", `at most ${maxContextBytes} bytes of JSON`, `${bytes} bytes`)
    }
    const decoded = decodeRequest(value)
    if (Result.isFailure(decoded)) {
      const [issue] = issuesOf(decoded.failure.issue).issues
      const path = ["request", ...(issue?.path ?? [])].map(String).join(".")
      return yield* invalid(path, issue?.message ?? "a request context", "a context that could not be read back")
    }
    const bad = unwholeText(decoded.success, "request")
    if (bad !== undefined) return yield* invalid(bad.at, `text ${wholeText}`, bad.text)
    const { tenantId } = decoded.success
    if (tenantId !== undefined && !isStorable(tenantId)) {
      return yield* invalid("request.tenantId", `at most ${maxText} characters`, tenantId)
    }
    return decoded.success
  })

/** A new job id. */
export const jobId = (random: SecureRandom["Service"]): Effect.Effect<JobId> =>
  Effect.map(random.uuidV7(), (id) => JobId.make(id))

/** A new batch id. */
export const batchId = (random: SecureRandom["Service"]): Effect.Effect<BatchId> =>
  Effect.map(random.uuidV7(), (id) => BatchId.make(id))

/** The partition of a job: its id's last 32 bits are random. */
const partitionOf = (id: JobId, partitions: number): number =>
  partitions === 1 ? 0 : Number.parseInt(id.slice(-8), 16) % partitions

/** Checks and encodes one request. `at` is its place in messages: `""`, or `[3].`. */
export const prepare = (
  random: SecureRandom["Service"],
  queues: Queues["Service"],
  submission: Submission,
  request: JobRequest,
  at: string
): Effect.Effect<Prepared, SubmitError> =>
  Effect.gen(function*() {
    if (typeof request.type !== "string" || request.type.length === 0 || !isStorable(request.type)) {
      return yield* invalid(`${at}type`, `1 to ${maxText} characters ${wholeText}`, request.type)
    }
    const definition = request.definition ?? submission.definitionOf(request.type)
    const known = yield* queueOf(
      queues,
      request.queue ?? submission.queue ?? definition?.queue ?? JobQueue.fallback,
      at
    )
    const priority = request.priority ?? submission.priority ?? definition?.priority ?? "normal"
    const lane = Priority.laneOf(priority)
    if (Option.isNone(lane)) {
      return yield* invalid(`${at}priority`, "critical, high, normal, low, or a number from 0 to 100", priority)
    }
    const payload = yield* encode(request, at)
    const bytes = Buffer.byteLength(payload)
    if (bytes > known.queue.maxPayloadBytes) {
      const reason = new PayloadTooLarge({ field: `${at}payload`, bytes, limitBytes: known.queue.maxPayloadBytes })
      return yield* new SubmitError({ reason })
    }
    const dedupeKey = request.dedupeKey ?? (yield* keyOf(request, definition, at))
    if (dedupeKey !== undefined && (dedupeKey.length === 0 || dedupeKey.length > maxKey || !isWhole(dedupeKey))) {
      return yield* invalid(`${at}dedupeKey`, `1 to ${maxKey} characters ${wholeText}`, dedupeKey)
    }
    const dueAt = yield* dueTime(request, submission.now, at)
    const lifetime = request.expiresIn ?? definition?.expiresIn
    const expiresAt = lifetime === undefined ? undefined : submission.now + (yield* millis(lifetime, `${at}expiresIn`))
    const id = yield* jobId(random)
    const stored: Stored = {
      ...submission.request,
      ...(submission.trace === undefined ? {} : { trace: submission.trace }),
      ...(dueAt === undefined ? {} : { scheduledFor: dueAt })
    }
    return {
      queue: known.row.name,
      job: {
        id,
        queueId: known.row.queueId,
        partition: partitionOf(id, known.row.partitions),
        lane: Priority.laneIndex(lane.value),
        tenant: tenantKey(submission.request.tenantId),
        type: request.type,
        dueAt,
        expiresAt,
        dedupeKey,
        payload,
        context: Object.keys(stored).length === 0 ? undefined : JSON.stringify(stored)
      }
    }
  })

const keyOf = (request: JobRequest, definition: Definition | undefined, at: string) =>
  (definition?.dedupeKeyOf(request.payload, request.definition !== undefined) ?? Effect.undefined).pipe(
    Effect.catchCause((cause) =>
      invalid(`${at}dedupeKey`, `the dedupeKey function of ${request.type} to return a key`, messageOf(cause))
    )
  )

const queueOf = (
  queues: Queues["Service"],
  asked: string | JobQueue.JobQueue,
  at: string
): Effect.Effect<KnownQueue, SubmitError> =>
  Effect.gen(function*() {
    const name = typeof asked === "string" ? asked : asked.name
    const found = yield* Effect.mapError(queues.byName(name), unavailable)
    if (Option.isSome(found)) return found.value
    const known = yield* Effect.mapError(queues.names, unavailable)
    return yield* new SubmitError({ reason: new UnknownQueue({ field: `${at}queue`, queue: name, known }) })
  })

const encode = (request: JobRequest, at: string) => {
  const encoded = request.definition === undefined
    ? jsonText(request.payload)
    : request.definition.encodePayload(request.payload)
  return Effect.catchCause(
    encoded,
    (cause) =>
      invalid(
        `${at}payload`,
        request.definition === undefined ? "a JSON value" : `a payload of ${request.type}`,
        messageOf(cause)
      )
  )
}

const messageOf = (cause: { readonly reasons: ReadonlyArray<unknown> }): string => {
  const [first] = cause.reasons
  const error = typeof first === "object" && first !== null && "error" in first ? first.error : first
  return error instanceof Error ? error.message : "a value that cannot be encoded"
}

const dueTime = (request: JobRequest, now: number, at: string): Effect.Effect<number | undefined, SubmitError> => {
  const { delay, runAt } = request
  if (runAt !== undefined && delay !== undefined) {
    return invalid(`${at}delay`, "either runAt or delay, not both", "both")
  }
  const due = delay !== undefined
    ? Effect.map(millis(delay, `${at}delay`), (ms) => now + ms)
    : runAt === undefined
    ? Effect.undefined
    : timeOf(runAt, `${at}runAt`)
  return Effect.map(due, (time) => time !== undefined && time > now ? time : undefined)
}

/** The start of the year 9999. */
const latest = 253_370_764_800_000

const timeOf = (time: NonNullable<JobRequest["runAt"]>, field: string): Effect.Effect<number, SubmitError> => {
  const value = typeof time === "number"
    ? time
    : DateTime.isDateTime(time)
    ? DateTime.toEpochMillis(time)
    : time.getTime()
  return Number.isFinite(value) && value >= 0 && value < latest
    ? Effect.succeed(value)
    : invalid(field, "a time between 1970 and 9999", time)
}

const millis = (input: Duration.Input, field: string): Effect.Effect<number, SubmitError> => {
  const duration = Duration.fromInput(input)
  const value = Option.isSome(duration) ? Duration.toMillis(duration.value) : Number.NaN
  return Number.isFinite(value) && value >= 0 && value < latest
    ? Effect.succeed(value)
    : invalid(field, "a duration that is finite and not negative", input)
}

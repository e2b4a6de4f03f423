/**
 * From a request to a row: looks its queue up, checks every field, encodes the payload. Nothing is stored before all are right.
 */
import * as DateTime from "effect/DateTime"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
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
import type { JobId } from "../JobId.ts"
import * as JobQueue from "../JobQueue.ts"
import { type NewJob, type QueueRow, type StoreError, type TenantKey, tenantKey } from "../JobStore.ts"
import * as Priority from "../Priority.ts"
import { RequestContext, type Stored, system, type Trace } from "../RequestContext.ts"
import { placeOf } from "./place.ts"
import type { KnownQueue, Queues } from "./queues.ts"
import { fieldsOf, millisOf, noneBut, shown } from "./words/options.ts"

/** What all requests of one submission share. */
export interface Submission {
  readonly tenant: TenantKey
  /** What every job of it carries, and its JSON; a job with a time of its own carries that too. */
  readonly stored: Stored
  readonly context: string | undefined
  readonly now: number
  /** Defaults of a batch; a request's own options win. */
  readonly priority: JobRequest["priority"]
  readonly queue: JobRequest["queue"]
  /** Definitions known by type, for requests that are plain objects. */
  readonly definitionOf: (type: string) => Definition | undefined
}

/** A row, and what is told of it: its queue's name, and when it was submitted. `bytes`: of its payload. */
export interface Prepared {
  readonly job: NewJob
  readonly queue: string
  readonly at: number
  readonly bytes: number
}

const maxKey = 512
const maxText = 200
/** Of the request context, which every job of a submission carries: in bytes of JSON. */
const maxContextBytes = 8_000

/** The answer to a field that is not what it should be. */
export const invalid = (field: string, expected: string, received: unknown): Exit.Exit<never, SubmitError> =>
  Exit.fail(new SubmitError({ reason: new InvalidField({ field, expected, received: shown(received) }) }))

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
export const checkRequest = (request: RequestContext): Exit.Exit<RequestContext, SubmitError> => {
  if (request === system) return Exit.succeed(system)
  const stored = Result.try(() => asStored(request))
  if (Result.isFailure(stored)) return invalid("request", "a context that is JSON", wordsOf(stored.failure))
  const { bytes, value } = stored.success
  if (bytes > maxContextBytes) return invalid("request", `at most ${maxContextBytes} bytes of JSON`, `${bytes} bytes`)
  const decoded = decodeRequest(value)
  if (Result.isFailure(decoded)) {
    const [issue] = issuesOf(decoded.failure.issue).issues
    const path = ["request", ...(issue?.path ?? [])].map(String).join(".")
    return invalid(path, issue?.message ?? "a request context", "a context that could not be read back")
  }
  const bad = unwholeText(decoded.success, "request")
  if (bad !== undefined) return invalid(bad.at, `text ${wholeText}`, bad.text)
  const { tenantId } = decoded.success
  if (tenantId !== undefined && !isStorable(tenantId)) {
    return invalid("request.tenantId", `at most ${maxText} characters`, tenantId)
  }
  return Exit.succeed(decoded.success)
}

/** What all requests of one submission share, worked out once. */
export const submission = (
  shared: Omit<Submission, "tenant" | "stored" | "context"> & {
    readonly request: RequestContext
    readonly trace: Trace | undefined
  }
): Submission => {
  const { request, trace, ...rest } = shared
  const stored: Stored = trace === undefined ? request : { ...request, trace }
  return { ...rest, tenant: tenantKey(request.tenantId), stored, context: contextOf(stored) }
}

const contextOf = (stored: Stored): string | undefined => {
  for (const _ in stored) return JSON.stringify(stored)
  return undefined
}

/** The partition of a job: its id's last 32 bits are random. */
const partitionOf = (id: JobId, partitions: number): number =>
  partitions === 1 ? 0 : Number.parseInt(id.slice(-8), 16) % partitions

/** Whether an effect is its own answer, so that nothing has to be waited for. */
export const isDone = <A, E>(effect: Effect.Effect<A, E>): effect is Exit.Exit<A, E> => Exit.isExit(effect)

/**
 * Goes on at once where the answer is there already: jobs are made by the thousand, and few of them have to wait for anything.
 */
const andThen = <A, B>(
  effect: Effect.Effect<A, SubmitError>,
  next: (value: A) => Effect.Effect<B, SubmitError>
): Effect.Effect<B, SubmitError> =>
  isDone(effect)
    ? Exit.isSuccess(effect) ? next(effect.value) : Exit.failCause(effect.cause)
    : Effect.flatMap(effect, next)

/** What a request may have: anything else is misspelt, and would be passed over in silence. */
const fields: ReadonlySet<string> = new Set(fieldsOf<JobRequest>({
  type: true,
  payload: true,
  definition: true,
  queue: true,
  priority: true,
  dedupeKey: true,
  key: true,
  runAt: true,
  delay: true,
  expiresIn: true
}))

/** Checks and encodes one request. `at` is its place in messages: `""`, or `[3].`. It is an `Exit` where nothing had to be waited for. */
export const prepare = (
  queues: Queues["Service"],
  submission: Submission,
  request: JobRequest,
  id: JobId,
  at: string
): Effect.Effect<Prepared, SubmitError> => {
  if (!Predicate.isObject(request)) {
    return invalid(at === "" ? "request" : at.slice(0, -1), "a request: an object with a type", request)
  }
  for (const field in request) {
    // What a library has put on every object is no concern of a request.
    if (!fields.has(field) && Object.hasOwn(request, field)) {
      return invalid(`${at}${field}`, noneBut(fields), Reflect.get(request, field))
    }
  }
  const { type } = request
  if (typeof type !== "string" || type.length === 0 || !isStorable(type)) {
    return invalid(`${at}type`, `1 to ${maxText} characters ${wholeText}`, type)
  }
  if (request.definition !== undefined && !Predicate.hasProperty(request.definition, "encodePayload")) {
    return invalid(`${at}definition`, "a definition of Job.make", request.definition)
  }
  const definition = request.definition ?? submission.definitionOf(type)
  const queue = request.queue ?? submission.queue ?? definition?.queue ?? JobQueue.fallback
  return andThen(queueOf(queues, queue, at), ({ queue, row }) => {
    const priority = request.priority ?? submission.priority ?? definition?.priority ?? "normal"
    const lane = Priority.laneOf(priority)
    if (Option.isNone(lane)) {
      return invalid(`${at}priority`, "critical, high, normal, low, or a number from 0 to 100", priority)
    }
    return andThen(encode(request, at), (payload) => {
      const bytes = Buffer.byteLength(payload)
      if (bytes > queue.maxPayloadBytes) {
        const reason = new PayloadTooLarge({ field: `${at}payload`, bytes, limitBytes: queue.maxPayloadBytes })
        return Exit.fail(new SubmitError({ reason }))
      }
      return andThen(dedupeKeyOf(request, definition, at), (dedupeKey) => {
        return andThen(keyOf(request, definition, row, at), (key) =>
          andThen(
            dueTime(request, submission.now, at),
            (dueAt) => {
              const place = placeIn(row, submission.tenant, key)
              return andThen(expiryTime(request, definition, submission.now, at), (expiresAt) =>
                Exit.succeed<Prepared>({
                  queue: row.name,
                  at: submission.now,
                  bytes,
                  job: {
                    id,
                    queueId: row.queueId,
                    partition: place === undefined ? partitionOf(id, row.partitions) : place % row.partitions,
                    lane: Priority.laneIndex(lane.value),
                    tenant: submission.tenant,
                    type,
                    dueAt,
                    expiresAt,
                    dedupeKey,
                    key,
                    place,
                    payload,
                    context: dueAt === undefined
                      ? submission.context
                      : contextOf({ ...submission.stored, scheduledFor: dueAt })
                  }
                }))
            }
          ))
      })
    })
  })
}

const nothing: Exit.Exit<undefined> = Exit.succeed(undefined)

/** `effect` with its failures told as one of this field; an `Exit` stays one. */
const orInvalid = <A>(
  effect: Effect.Effect<A, unknown>,
  field: string,
  expected: () => string
): Effect.Effect<A, SubmitError> => {
  if (isDone(effect)) {
    return Exit.isSuccess(effect) ? Exit.succeed(effect.value) : invalid(field, expected(), messageOf(effect.cause))
  }
  return Effect.catchCause(effect, (cause) => invalid(field, expected(), messageOf(cause)))
}

/** A key that can be stored, and found by an index. */
const checkedKey = (key: string | undefined, field: string): Exit.Exit<string | undefined, SubmitError> =>
  key === undefined || (typeof key === "string" && key.length > 0 && key.length <= maxKey && isWhole(key))
    ? Exit.succeed(key)
    : invalid(field, `1 to ${maxKey} characters ${wholeText}`, key)

const dedupeKeyOf = (request: JobRequest, definition: Definition | undefined, at: string) => {
  const field = `${at}dedupeKey`
  if (request.dedupeKey !== undefined) return checkedKey(request.dedupeKey, field)
  if (definition === undefined) return nothing
  const key = orInvalid(
    definition.dedupeKeyOf(request.payload, request.definition !== undefined),
    field,
    () => `the dedupeKey function of ${request.type} to return a key`
  )
  return andThen(key, (key) => checkedKey(key, field))
}

/** The key of a job in a queue that goes by key. A definition's is no concern of another queue's, one that was asked for is. */
const keyOf = (
  request: JobRequest,
  definition: Definition | undefined,
  { name, partitionBy }: QueueRow,
  at: string
): Effect.Effect<string | undefined, SubmitError> => {
  const field = `${at}key`
  if (partitionBy !== "key") {
    if (request.key === undefined) return nothing
    return invalid(
      field,
      `none: queue "${name}" goes by ${partitionBy} (see partitionBy of JobQueue.make)`,
      request.key
    )
  }
  if (request.key !== undefined) return checkedKey(request.key, field)
  if (definition === undefined) return nothing
  const key = orInvalid(
    definition.keyOf(request.payload, request.definition !== undefined),
    field,
    () => `the key function of ${request.type} to return a key`
  )
  return andThen(key, (key) => checkedKey(key, field))
}

/** Of a job whose partition comes from something other than its id. */
const placeIn = ({ partitionBy }: QueueRow, tenant: TenantKey, key: string | undefined): number | undefined =>
  partitionBy === "tenant" || key !== undefined ? placeOf(tenant, key) : undefined

const queueOf = (
  queues: Queues["Service"],
  asked: string | JobQueue.JobQueue,
  at: string
): Effect.Effect<KnownQueue, SubmitError> => {
  const name = typeof asked === "string" ? asked : asked.name
  if (typeof name !== "string") return invalid(`${at}queue`, "a queue of JobQueue.make, or the name of one", asked)
  const known = queues.byName(name)
  // The straight way: no fiber waits for a queue that this process knows.
  if (isDone(known) && Exit.isSuccess(known) && Option.isSome(known.value)) return Exit.succeed(known.value.value)
  return Effect.gen(function*() {
    const found = yield* Effect.mapError(known, unavailable)
    if (Option.isSome(found)) return found.value
    const names = yield* Effect.mapError(queues.names, unavailable)
    return yield* new SubmitError({ reason: new UnknownQueue({ field: `${at}queue`, queue: name, known: names }) })
  })
}

const encode = (request: JobRequest, at: string): Effect.Effect<string, SubmitError> => {
  const { definition, payload } = request
  const text = definition === undefined ? jsonText(payload) : definition.encodePayload(payload)
  if (isDone(text)) {
    return Exit.isSuccess(text) ? Exit.succeed(text.value) : wrongPayload(request, at, errorOf(text.cause))
  }
  return Effect.catchCause(text, (cause) => wrongPayload(request, at, errorOf(cause)))
}

/** Names the part of the payload that is wrong, and shows it. */
const wrongPayload = ({ definition, payload, type }: JobRequest, at: string, error: unknown) => {
  const field = `${at}payload`
  if (definition === undefined) return invalid(field, "a JSON value", payload)
  const [issue] = Schema.isSchemaError(error) ? issuesOf(error.issue).issues : []
  const message = issue?.message ?? wordsOf(error)
  const words = message.replace(/^Expected /, "")
  const path = (issue?.path ?? []).map((step) => typeof step === "object" ? step.key : step)
  return invalid(
    field + path.map((key) => typeof key === "number" ? `[${key}]` : `.${String(key)}`).join(""),
    path.length > 0 && words !== message ? words : `a payload of ${type} (${words})`,
    partAt(payload, path)
  )
}

const partAt = (value: unknown, path: ReadonlyArray<PropertyKey>): unknown =>
  Result.getOrElse(
    Result.try(() => path.reduce((part, key) => Predicate.hasProperty(part, key) ? part[key] : undefined, value)),
    () => value
  )

const errorOf = (cause: { readonly reasons: ReadonlyArray<unknown> }): unknown => {
  const [first] = cause.reasons
  return typeof first === "object" && first !== null && "error" in first ? first.error : first
}

const messageOf = (cause: { readonly reasons: ReadonlyArray<unknown> }): string => wordsOf(errorOf(cause))

const wordsOf = (error: unknown): string => error instanceof Error ? error.message : "a value that cannot be encoded"

const dueTime = (request: JobRequest, now: number, at: string): Effect.Effect<number | undefined, SubmitError> => {
  const { delay, runAt } = request
  if (delay === undefined && runAt === undefined) return nothing
  if (runAt !== undefined && delay !== undefined) {
    return invalid(`${at}delay`, "either runAt or delay, not both", "both")
  }
  const due = delay !== undefined
    ? andThen(millis(delay, `${at}delay`), (ms) => Exit.succeed(now + ms))
    : runAt === undefined
    ? nothing
    : timeOf(runAt, `${at}runAt`)
  return andThen(due, (time) => time !== undefined && time > now ? Exit.succeed(time) : nothing)
}

const expiryTime = (request: JobRequest, definition: Definition | undefined, now: number, at: string) => {
  const lifetime = request.expiresIn ?? definition?.expiresIn
  return lifetime === undefined
    ? nothing
    : andThen(millis(lifetime, `${at}expiresIn`), (ms) => Exit.succeed(now + ms))
}

/** The start of the year 9999. */
const latest = 253_370_764_800_000

const timeOf = (time: NonNullable<JobRequest["runAt"]>, field: string): Effect.Effect<number, SubmitError> => {
  const value = typeof time === "number"
    ? time
    : DateTime.isDateTime(time)
    ? DateTime.toEpochMillis(time)
    : Predicate.isDate(time)
    ? time.getTime()
    // Of callers without types.
    : Number.NaN
  return Number.isFinite(value) && value >= 0 && value < latest
    ? Exit.succeed(value)
    : invalid(field, "a time between 1970 and 9999", time)
}

const millis = (input: Duration.Input, field: string): Effect.Effect<number, SubmitError> => {
  const value = millisOf(input)
  return Number.isFinite(value) && value >= 0 && value < latest
    ? Exit.succeed(value)
    : invalid(field, "a duration that is finite and not negative", input)
}

/**
 * What a request may say: each of its fields, and the request context it comes with, checked and read as it will be stored. What is wrong is
 * told by field. Answers are `Exit`s where nothing had to be waited for.
 */
import * as Cause from "effect/Cause"
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
import { InvalidField, ParseError, PayloadTooLarge, SubmitError, toFailure, UnknownQueue } from "../JobError.ts"
import { type Definition, jsonText } from "../JobHandlers.ts"
import type * as JobQueue from "../JobQueue.ts"
import type { QueueRow } from "../JobStore.ts"
import { RequestContext, system } from "../RequestContext.ts"
import { andThen, isDone } from "./atOnce.ts"
import type { KnownQueue, Queues } from "./queues.ts"
import { unavailable } from "./submitError.ts"
import { wrongPart } from "./words/issue.ts"
import { durationLike, fieldsOf, millisOf, noneBut, shown } from "./words/options.ts"
import { isA } from "./words/safely.ts"

const maxKey = 512
const maxText = 200
/** Of the request context, which every job of a submission carries: in bytes of JSON. */
const maxContextBytes = 8_000

/** The answer to a field that is not what it should be. */
export const invalid = (field: string, expected: string, received: unknown): Exit.Exit<never, SubmitError> =>
  refused({ field, expected, received: shown(received) })

const refused = (reason: ConstructorParameters<typeof InvalidField>[0]): Exit.Exit<never, SubmitError> =>
  Exit.fail(new SubmitError({ reason: new InvalidField(reason) }))

/** `text` refuses NUL; half a surrogate pair arrives as U+FFFD, so that two different texts would be one: one tenant, one dedupe key. */
const isWhole = (text: string): boolean => !text.includes("\0") && text.isWellFormed()

/** An index refuses long keys. */
const isStorable = (text: string): boolean => text.length <= maxText && isWhole(text)

const wholeText = "without NUL and unpaired surrogates"

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

/** What is wrong with the shape of a request, if anything is: no object, a field that there is none of, no type, not a definition. */
export const wrongRequest = (request: JobRequest, at: string): Exit.Exit<never, SubmitError> | undefined => {
  if (!Predicate.isObject(request)) {
    return invalid(at === "" ? "request" : at.slice(0, -1), "a request: an object with a type", request)
  }
  for (const field in request) {
    // What a library has put on every object is no concern of a request.
    if (!fields.has(field) && Object.hasOwn(request, field)) {
      return invalid(`${at}${field}`, noneBut(fields), Reflect.get(request, field))
    }
  }
  const { definition, type } = request
  if (typeof type !== "string" || type.length === 0 || !isStorable(type)) {
    return invalid(`${at}type`, `a text of 1 to ${maxText} characters ${wholeText}`, type)
  }
  return definition === undefined || Predicate.hasProperty(definition, "encodePayload")
    ? undefined
    : invalid(`${at}definition`, "a definition of Job.make", definition)
}

/** Of a priority without a lane. */
export const wrongPriority = (priority: unknown, at: string): Exit.Exit<never, SubmitError> =>
  invalid(`${at}priority`, "critical, high, normal, low, or a number from 0 to 100", priority)

/** Of a payload that is more JSON than its queue takes. */
export const tooLarge = (bytes: number, limitBytes: number, at: string): Exit.Exit<never, SubmitError> =>
  Exit.fail(new SubmitError({ reason: new PayloadTooLarge({ field: `${at}payload`, bytes, limitBytes }) }))

const nothing: Exit.Exit<undefined> = Exit.succeed(undefined)

/** A key that can be stored, and found by an index. */
const checkedKey = (key: string | undefined, field: string): Exit.Exit<string | undefined, SubmitError> =>
  key === undefined || (typeof key === "string" && key.length > 0 && key.length <= maxKey && isWhole(key))
    ? Exit.succeed(key)
    : invalid(field, `a text of 1 to ${maxKey} characters ${wholeText}`, key)

/** Of what a program has thrown. */
const thrown = (error: unknown): string => {
  if (!isA(error, Error)) return `a thrown ${shown(error)}`
  const { message, tag } = toFailure(error, { class: "System" })
  return `a thrown ${tag}: ${message}`
}

/**
 * What a function of the definition makes of the payload. `orElse`: where the payload does not fit the definition, which is told when the
 * job runs.
 */
const keyBy = (
  name: "dedupeKey" | "key",
  made: ReturnType<Definition["keyOf"]>,
  type: string,
  field: string,
  orElse: (error: ParseError) => Effect.Effect<string | undefined, SubmitError> = () => nothing
) => {
  const found: Effect.Effect<string | undefined, SubmitError> = isDone(made) && Exit.isSuccess(made)
    ? Exit.succeed(made.value)
    : Effect.catchCause(made, (cause): Effect.Effect<string | undefined, SubmitError> => {
      const error = Cause.squash(cause)
      if (isA(error, ParseError)) return orElse(error)
      const expected = `the ${name} function of ${type} to return a key`
      return refused({ field, expected, received: thrown(error), cause: error })
    })
  return andThen(found, (key) => checkedKey(key, field))
}

/** The dedupe key of a request, or that of its definition. */
export const dedupeKeyOf = (request: JobRequest, definition: Definition | undefined, at: string) => {
  const field = `${at}dedupeKey`
  if (request.dedupeKey !== undefined) return checkedKey(request.dedupeKey, field)
  if (definition === undefined) return nothing
  return keyBy(
    "dedupeKey",
    definition.dedupeKeyOf(request.payload, request.definition !== undefined),
    request.type,
    field
  )
}

/**
 * The key of a job in a queue that goes by key, which in an ordered one it has to have. A definition's is no concern of another queue's, one
 * that was asked for is.
 */
export const keyOf = (
  request: JobRequest,
  definition: Definition | undefined,
  { isOrdered, name, partitionBy }: QueueRow,
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
  const { type } = request
  const without = (why: string) =>
    refused({ field, expected: `a key, by which queue "${name}" is ordered: ${why}`, received: "nothing" })
  const made = definition === undefined
    ? nothing
    : keyBy(
      "key",
      definition.keyOf(request.payload, request.definition !== undefined),
      type,
      field,
      isOrdered
        ? ({ message }) => without(`the definition of ${type} makes one of payloads that fit it (${message})`)
        : undefined
    )
  if (!isOrdered) return made
  return andThen(made, (key) =>
    key === undefined
      ? without("give it with the request, or by a key function of the definition")
      : Exit.succeed(key))
}

/** The queue that was asked for. */
export const queueOf = (
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

/** The payload as JSON text. */
export const payloadOf = (request: JobRequest, at: string): Effect.Effect<string, SubmitError> => {
  const { definition, payload } = request
  const text = definition === undefined ? jsonText(payload) : definition.encodePayload(payload)
  if (isDone(text)) {
    return Exit.isSuccess(text) ? Exit.succeed(text.value) : wrongPayload(request, at, Cause.squash(text.cause))
  }
  return Effect.catchCause(text, (cause) => wrongPayload(request, at, Cause.squash(cause)))
}

/** Names the part of the payload that is wrong, and shows it. */
const wrongPayload = ({ definition, payload, type }: JobRequest, at: string, error: unknown) => {
  if (definition === undefined) return invalid(`${at}payload`, "a JSON value", payload)
  return Effect.flatMap(
    wrongPart({ type, payload, error, pass: definition.encodePayload, isSecret: definition.isSecret() }),
    ({ expected, field, received }) => refused({ field: `${at}${field}`, expected, received })
  )
}

const wordsOf = (error: unknown): string => error instanceof Error ? error.message : "a value that cannot be encoded"

/** When the job is due, if that is later than now. */
export const dueTime = (
  request: JobRequest,
  now: number,
  at: string
): Effect.Effect<number | undefined, SubmitError> => {
  const { delay, runAt } = request
  if (delay === undefined && runAt === undefined) return nothing
  if (runAt !== undefined && delay !== undefined) {
    const received = `runAt ${shown(runAt)} and delay ${shown(delay)}`
    return refused({ field: `${at}delay`, expected: "either runAt or delay, not both", received })
  }
  const due = delay !== undefined
    ? andThen(millis(delay, `${at}delay`), (ms) => Exit.succeed(now + ms))
    : runAt === undefined
    ? nothing
    : timeOf(runAt, `${at}runAt`)
  return andThen(due, (time) => time !== undefined && time > now ? Exit.succeed(time) : nothing)
}

/** Until when the job has to have started. */
export const expiryTime = (request: JobRequest, definition: Definition | undefined, now: number, at: string) => {
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
    : invalid(field, "a time between 1970 and 9999 (a DateTime, a Date or milliseconds since 1970)", time)
}

const millis = (input: Duration.Input, field: string): Effect.Effect<number, SubmitError> => {
  const value = millisOf(input)
  return Number.isFinite(value) && value >= 0 && value < latest
    ? Exit.succeed(value)
    : invalid(field, `a duration that is finite and not negative, ${durationLike}`, input)
}

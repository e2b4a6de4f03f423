/**
 * A job definition: the typed contract of one job type. One definition gives the request, the handler's layer and the typed result.
 */
import type * as Context from "effect/Context"
import type * as DateTime from "effect/DateTime"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { CurrentJob } from "./CurrentJob.ts"
import { hasSecrets, wrongPart } from "./internal/words/issue.ts"
import { check, checkFields, durationLike, fieldsOf, millisOf, shown } from "./internal/words/options.ts"
import { type Discard, type ErrorClass, ParseError, type Snooze } from "./JobError.ts"
import {
  checkHandler,
  checkType,
  type Definition,
  errorEncoder,
  type Handler,
  handlingOf,
  JobHandlers,
  resultEncoder,
  textEncoder,
  type Transaction
} from "./JobHandlers.ts"
import * as JobQueue from "./JobQueue.ts"
import { type Lane, laneOf } from "./Priority.ts"
import type * as RetryPolicy from "./RetryPolicy.ts"

/** Options of one request. They win over the definition's. */
export interface RequestOptions {
  readonly queue?: string | JobQueue.JobQueue
  /** A lane, or a number from 0 to 100: 75 and above `critical`, 50 `high`, 25 `normal`, below `low`. Default `normal`. */
  readonly priority?: Lane | number
  /** At most one live job of this key, tenant and queue: submitting another returns the id of the live one. 1 to 512 characters. */
  readonly dedupeKey?: string
  /**
   * For a queue with `partitionBy: "key"`: all jobs of one key and tenant are in the same partition, and run one after another where the queue
   * is `ordered`; there each job has to have one. 1 to 512 characters.
   */
  readonly key?: string
  /** Not before this time: a `DateTime`, a `Date` or milliseconds since 1970. Together with `delay` it is refused. */
  readonly runAt?: DateTime.DateTime | Date | number
  /** Not before this long from now. */
  readonly delay?: Duration.Input
  /** Expires if no attempt has ended by then and none is running: a deploy that interrupts the first one counts as not started. */
  readonly expiresIn?: Duration.Input
}

/** What `submit` takes: any type, any JSON payload. */
export interface JobRequest extends RequestOptions {
  readonly type: string
  readonly payload?: unknown
  /** Set by a definition's `request`: the payload is decoded and will be encoded by it. */
  readonly definition?: Definition
}

/** The codecs a definition takes: they need no services. */
export type Codec = Schema.Codec<unknown, unknown>

/** A typed definition. Extend it to give it a name: `class IndexFile extends Job.make("IndexFile", { ... }) {}`. */
export interface Job<Type extends string, Payload extends Codec, Success extends Codec, Error extends Codec>
  extends Definition
{
  new(_: never): {}
  readonly type: Type
  readonly payload: Payload
  readonly success: Success
  readonly error: Error

  /** A request for {@link RequestOptions | submit}. The payload is encoded at submit. */
  readonly request: (payload: Payload["Type"], options?: RequestOptions) => JobRequest

  /**
   * The handler, as a layer. `SqlClient` inside it is the job's own transaction: what it writes commits together with the job's completion.
   * It may fail with the definition's error, with `Snooze` or `Discard`, or with a `SqlError`; anything else is a defect.
   */
  readonly toLayer: <R>(
    handler: (
      payload: Payload["Type"]
    ) => Effect.Effect<Success["Type"], Error["Type"] | Snooze | Discard | { readonly _tag: "SqlError" }, R>
  ) => Layer.Layer<never, never, JobHandlers | Exclude<R, CurrentJob | Scope.Scope>>

  /** Decodes a stored result. */
  readonly decodeSuccess: (result: unknown) => Effect.Effect<Success["Type"], Schema.SchemaError>
  /** Decodes a stored typed failure. */
  readonly decodeError: (error: unknown) => Effect.Effect<Error["Type"], Schema.SchemaError>
}

/** Most schemas answer at once. */
const isSuccess = <A, E>(effect: Effect.Effect<A, E>): effect is Exit.Success<A> =>
  Exit.isExit(effect) && Exit.isSuccess(effect)

/** The success of a definition. */
export type Success<J extends { readonly success: Codec }> = J["success"]["Type"]

/** The typed failure of a definition. */
export type Failure<J extends { readonly error: Codec }> = J["error"]["Type"]

/** What {@link make} takes. */
export interface Options<Payload extends Codec, Success extends Codec, Error extends Codec> {
  /** Default: no payload. */
  readonly payload?: Payload
  /** Default: no result. */
  readonly success?: Success
  /** Default: none; every failure is a defect. */
  readonly error?: Error
  /** Default: the queue `default`. */
  readonly queue?: JobQueue.JobQueue
  readonly priority?: Lane | number
  /** Default: `RetryPolicy.exponential()`. */
  readonly retry?: RetryPolicy.RetryPolicy
  /**
   * The handler, its finalizers included, is interrupted after this long, and the attempt fails with class Timeout. One that does not end by
   * that is abandoned, see `abandonAfter` of the runtime. Default: none; 10 seconds for `"grouped"`.
   */
  readonly timeout?: Duration.Input
  /** See {@link RequestOptions.dedupeKey}. */
  readonly dedupeKey?: (payload: Payload["Type"]) => string
  /** See {@link RequestOptions.key}. */
  readonly key?: (payload: Payload["Type"]) => string
  readonly expiresIn?: Duration.Input
  /** Default `"job"`: the handler's statements and the completion are one transaction. `"grouped"`, for short ones: see {@link Transaction}. */
  readonly transaction?: Transaction
  /** The class of a typed failure. Default: its property `errorClass`, else `Business`. */
  readonly classify?: (error: Error["Type"]) => ErrorClass | undefined
}

const fields = fieldsOf<Options<Codec, Codec, Codec>>({
  payload: true,
  success: true,
  error: true,
  queue: true,
  priority: true,
  retry: true,
  timeout: true,
  dedupeKey: true,
  key: true,
  expiresIn: true,
  transaction: true,
  classify: true
})

/**
 * Defines a job type. Wrong options are a mistake of the program and throw a `RangeError` that names the field.
 *
 * @example
 * class IndexFile extends Job.make("IndexFile", {
 *   payload: Schema.Struct({ path: Schema.String }),
 *   success: Schema.Struct({ lines: Schema.Int }),
 *   queue: Documents
 * }) {}
 */
export const make = <
  const Type extends string,
  Payload extends Codec = typeof Schema.Void,
  Success extends Codec = typeof Schema.Void,
  Error extends Codec = typeof Schema.Never
>(type: Type, options: Options<Payload, Success, Error> = {}): Job<Type, Payload, Success, Error> => {
  const where = `Job.make(${shown(type)})`
  checkType(where, type)
  checkFields(where, options, fields)
  for (const field of ["payload", "success", "error"] as const) {
    check(options[field] === undefined || Schema.isSchema(options[field]), where, field, "a schema", options[field])
  }
  const { dedupeKey, key, queue = JobQueue.fallback } = options
  check(JobQueue.isJobQueue(queue), where, "queue", "a queue of JobQueue.make", queue)
  const lifetimeMs = options.expiresIn === undefined ? 0 : millisOf(options.expiresIn)
  const isLifetime = lifetimeMs >= 0 && Number.isFinite(lifetimeMs)
  check(
    isLifetime,
    where,
    "expiresIn",
    `a duration that is finite and not negative, ${durationLike}`,
    options.expiresIn
  )
  check(
    options.priority === undefined || Option.isSome(laneOf(options.priority)),
    where,
    "priority",
    "critical, high, normal, low, or a number from 0 to 100",
    options.priority
  )
  const isChoice = (choose: unknown) => choose === undefined || typeof choose === "function"
  check(isChoice(dedupeKey), where, "dedupeKey", "a function of the payload", dedupeKey)
  check(isChoice(key), where, "key", "a function of the payload", key)
  check(
    key === undefined || queue.partitionBy === "key",
    where,
    "key",
    `none: queue "${queue.name}" goes by ${queue.partitionBy} (see partitionBy of JobQueue.make)`,
    key
  )
  const handling = handlingOf(where, options)
  // Where an option is left out its type parameter is the default below: the compiler cannot see the two together.
  // oxlint-disable typescript/no-unsafe-type-assertion -- see above; and handlers are stored with their payload's type erased
  const payload = (options.payload ?? Schema.Void) as Payload
  const success = (options.success ?? Schema.Void) as Success
  const error = (options.error ?? Schema.Never) as Error
  const payloadCodec = Schema.toCodecJson(payload)
  const successCodec = Schema.toCodecJson(success)
  const errorCodec = Schema.toCodecJson(error)
  const decodeStored = Schema.decodeUnknownEffect(payloadCodec)
  const decodePayload = (json: unknown): Effect.Effect<Payload["Type"], ParseError> => {
    const decoded = decodeStored(json)
    if (isSuccess(decoded)) return decoded
    return Effect.catch(
      decoded,
      (error) =>
        Effect.flatMap(
          wrongPart({ type, payload: json, error, pass: decodeStored, isSecret: hasSecrets(payload) }),
          ({ expected, field, isOnly, received }) =>
            new ParseError({
              issue: isOnly ? `${field}: expected ${expected}, received ${received}` : error.message
            })
        )
    )
  }

  const keyBy =
    (choose: ((payload: Payload["Type"]) => string) | undefined): Definition["keyOf"] => (value, isDecoded) =>
      choose === undefined
        ? Effect.undefined
        : Effect.map(isDecoded ? Effect.succeed(value as Payload["Type"]) : decodePayload(value), choose)

  const handlerOf = (
    run: Handler["run"],
    context: Context.Context<never>
  ): Handler => ({
    definition: statics,
    type,
    ...handling,
    decode: decodePayload,
    run,
    encodeSuccess: resultEncoder(successCodec),
    encodeError: errorEncoder(errorCodec),
    context
  })

  const statics: Omit<Job<Type, Payload, Success, Error>, "prototype"> = {
    type,
    payload,
    success,
    error,
    queue,
    priority: options.priority,
    expiresIn: options.expiresIn,
    request: (value, requestOptions) => ({ type, payload: value, ...requestOptions, definition: statics }),
    toLayer: <R>(handler: (payload: Payload["Type"]) => Effect.Effect<unknown, unknown, R>) =>
      Layer.effectDiscard(Effect.gen(function*() {
        checkHandler(`${type}.toLayer`, handler)
        const handlers = yield* JobHandlers
        const context = yield* Effect.context<Exclude<R, CurrentJob | Scope.Scope>>()
        yield* handlers.add(handlerOf(handler as Handler["run"], context))
      })),
    encodePayload: textEncoder(payloadCodec),
    isSecret: () => hasSecrets(payload),
    dedupeKeyOf: keyBy(dedupeKey),
    keyOf: keyBy(key),
    decodeSuccess: Schema.decodeUnknownEffect(successCodec),
    decodeError: Schema.decodeUnknownEffect(errorCodec)
  }
  return Object.assign(class {}, statics)
}

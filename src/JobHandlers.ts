/**
 * Which handler runs a job type in this process. Definitions register through `toLayer`; any other type through {@link register}.
 *
 * Jobs of a type without a handler are put back and wait for one.
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { CurrentJob } from "./CurrentJob.ts"
import { reachOf } from "./internal/words/issue.ts"
import { isEndless, stringify, TooLong } from "./internal/words/json.ts"
import { check, checkFields, durationLike, fieldsOf, millisOf, shown } from "./internal/words/options.ts"
import { isA } from "./internal/words/safely.ts"
import { type ErrorClass, type ParseError, ResultTooLarge } from "./JobError.ts"
import { type JobQueue, maxJsonBytes } from "./JobQueue.ts"
import type { Lane } from "./Priority.ts"
import * as RetryPolicy from "./RetryPolicy.ts"

/**
 * What a handler's statements and its job's completion are.
 *
 * - `"job"`: one transaction.
 * - `"none"`: nothing together; the handler runs without a transaction.
 * - `"grouped"`: one savepoint in a transaction that up to 32 jobs share, one after another; it takes members for 100 milliseconds at most,
 *   and commits at once when nobody else waits. For short handlers that only run SQL. Who fails, times out or is cancelled rolls back alone.
 *   Where the COMMIT fails (a deferred constraint of one is violated, or one was superseded), or the session is lost before it, those that were
 *   done run again at once, each in a transaction of its own, in the same attempt: such a handler runs twice, and only the one at fault fails.
 *
 *   What it does not promise: jobs of a group wait for each other's turn, from the first statement to the handler's end (`timeout` runs
 *   meanwhile), and those that are done wait for the commit. One that hangs holds up those done before it, and whoever waits for their locks,
 *   until its `timeout`, which is 10 seconds if none is given; all others go on in another group. Locks are held until the group commits: handlers that lock the same rows in another order deadlock
 *   more easily than alone. `now()` is the group's. Who sends anything but reads and writes of rows (`set local`, a cursor, a temporary table)
 *   is the last of its group, so that nobody finds what it leaves behind; a function that changes settings is not recognised. The isolation level is the connection's default, READ COMMITTED. Savepoints of handlers (`sql.withTransaction`) count, 60 to a group. Groups
 *   use 3 connections of the handlers' client, and one more for each that is held up.
 */
export type Transaction = "job" | "none" | "grouped"

/** All of them. */
export const transactions: ReadonlyArray<Transaction> = ["job", "none", "grouped"]

/** Of a handler that shares its transaction and names no timeout: 10 seconds. One that hangs would keep the others' outcomes for ever. */
export const timeoutOf = (transaction: Transaction | undefined, timeoutMs: number | undefined): number | undefined =>
  timeoutMs === undefined && transaction === "grouped" ? 10_000 : timeoutMs

/** What the runtime uses of a job definition. */
export interface Definition {
  readonly type: string
  readonly queue: JobQueue
  readonly priority: Lane | number | undefined
  readonly expiresIn: Duration.Input | undefined
  /** Encodes a decoded payload to JSON text. */
  readonly encodePayload: (payload: unknown) => Effect.Effect<string, Schema.SchemaError>
  /** Whether a part of its payload is `Redacted`: messages then show nothing of one. */
  readonly isSecret: () => boolean
  /** The dedupe key of a payload, decoded (from a typed request) or as it would be stored, and may not fit. What its function throws is a defect. */
  readonly dedupeKeyOf: (payload: unknown, isDecoded: boolean) => Effect.Effect<string | undefined, ParseError>
  /** The same for the key that its queue goes by. */
  readonly keyOf: (payload: unknown, isDecoded: boolean) => Effect.Effect<string | undefined, ParseError>
}

/** What the runtime needs to run a type. All functions are total: their failures are data. */
export interface Handler {
  readonly type: string
  readonly retry: RetryPolicy.RetryPolicy
  readonly timeoutMs: number | undefined
  readonly transaction: Transaction
  /** Decodes the stored JSON. */
  readonly decode: (payload: unknown) => Effect.Effect<unknown, ParseError>
  /** Runs a decoded payload. */
  readonly run: (payload: unknown) => Effect.Effect<unknown, unknown, CurrentJob | Scope.Scope>
  /** Encodes the result to JSON text; fails where it does not fit the definition. */
  readonly encodeSuccess: (value: unknown) => Effect.Effect<string, Schema.SchemaError | ResultTooLarge>
  /** Encodes a typed failure to JSON; fails where the definition does not name it: that is a defect. */
  readonly encodeError: (error: unknown) => Effect.Effect<Schema.Json, Schema.SchemaError>
  /** The class of a typed failure, where the definition says so. */
  readonly classify: (error: unknown) => ErrorClass | undefined
  /** The definition it belongs to, for requests that name only the type. */
  readonly definition: Definition | undefined
  /** The services of the place where the handler was registered. */
  readonly context: Context.Context<never>
}

/** Hears of types that come and go. */
export interface Observer {
  readonly added: (type: string) => void
  /** Ends the attempts of that type; the handler's services are closed when it returns. */
  readonly removed: (type: string) => Effect.Effect<void>
}

/** The handlers of this process. */
export class JobHandlers extends Context.Service<JobHandlers, {
  /** Adds a handler until the scope closes. A second one for the same type is a mistake of the program and dies. */
  readonly add: (handler: Handler) => Effect.Effect<void, never, Scope.Scope>
  /** The handler of a type, if there is one now. */
  readonly get: (type: string) => Handler | undefined
  /** Hears of changes until the scope closes. */
  readonly observe: (observer: Observer) => Effect.Effect<void, never, Scope.Scope>
}>()("millrace/JobHandlers") {}

/** An empty registry. */
export const layer: Layer.Layer<JobHandlers> = Layer.effect(
  JobHandlers,
  Effect.sync(() => {
    const handlers = new Map<string, Handler>()
    const observers = new Set<Observer>()
    return JobHandlers.of({
      add: (handler) =>
        Effect.acquireRelease(
          Effect.suspend(() => {
            if (handlers.has(handler.type)) {
              return Effect.die(new Error(`JobHandlers: "${handler.type}" has a handler in this process already`))
            }
            handlers.set(handler.type, handler)
            for (const observer of observers) observer.added(handler.type)
            return Effect.void
          }),
          () =>
            Effect.suspend(() => {
              handlers.delete(handler.type)
              return Effect.forEach(observers, (observer) => observer.removed(handler.type), {
                concurrency: "unbounded",
                discard: true
              })
            })
        ),
      get: (type) => handlers.get(type),
      observe: (observer) =>
        Effect.acquireRelease(
          Effect.sync(() => void observers.add(observer)),
          () => Effect.sync(() => observers.delete(observer))
        )
    })
  })
)

/** How a type without a definition runs. */
export interface Options {
  /** Default: `RetryPolicy.exponential()`. */
  readonly retry?: RetryPolicy.RetryPolicy
  /** Default: none. */
  readonly timeout?: Duration.Input
  /** Default: `"job"`. */
  readonly transaction?: Transaction
  readonly classify?: (error: unknown) => ErrorClass | undefined
}

const fields = fieldsOf<Options>({ retry: true, timeout: true, transaction: true, classify: true })

/**
 * The options that every handler has, checked. `where` is who was given them.
 */
export const handlingOf = (
  where: string,
  { classify, retry, timeout, transaction }: Options
): Pick<Handler, "retry" | "timeoutMs" | "transaction" | "classify"> => {
  check(
    transaction === undefined || transactions.includes(transaction),
    where,
    "transaction",
    `one of ${transactions.join(", ")}`,
    transaction
  )
  const timeoutMs = timeoutOf(transaction, timeout === undefined ? undefined : millisOf(timeout))
  check(
    timeoutMs === undefined || (timeoutMs > 0 && Number.isFinite(timeoutMs)),
    where,
    "timeout",
    `a finite duration above zero, ${durationLike}`,
    timeout
  )
  check(retry === undefined || RetryPolicy.isRetryPolicy(retry), where, "retry", RetryPolicy.expected, retry)
  check(classify === undefined || typeof classify === "function", where, "classify", "a function", classify)
  return {
    retry: retry ?? RetryPolicy.exponential(),
    timeoutMs,
    transaction: transaction ?? "job",
    classify: classify ?? (() => undefined)
  }
}

/** Whether a type may have this name: no column, metric or log line takes every text. */
export const checkType = (where: string, type: unknown): void =>
  check(
    typeof type === "string" && type.length >= 1 && type.length <= 200,
    where,
    "type",
    "a text of 1 to 200 characters",
    type
  )

/** A handler that is no function would fail each of its jobs. */
export const checkHandler = (where: string, handler: unknown): void =>
  check(typeof handler === "function", where, "handler", "a function of the payload that returns an Effect", handler)

/**
 * Encodes to JSON text. Where the codec does not have to wait the answer is an `Exit`, so that thousands are encoded without a fiber's
 * help. What cannot be text is left to the schema, which has the words for it.
 */
export const textEncoder = (
  codec: Schema.Codec<unknown, Schema.Json>
): (value: unknown) => Effect.Effect<string, Schema.SchemaError> => {
  const encode = Schema.encodeUnknownEffect(codec)
  const encodeText = Schema.encodeUnknownEffect(Schema.fromJsonString(codec))
  return (value) => {
    const encoded = encode(value)
    if (!Exit.isExit(encoded) || Exit.isFailure(encoded)) return encodeText(value)
    const text = Result.try((): string | undefined => JSON.stringify(encoded.value))
    return Result.isSuccess(text) && text.success !== undefined ? Exit.succeed(text.success) : encodeText(value)
  }
}

const tooLarge = Effect.suspend(() =>
  Effect.fail(new ResultTooLarge({ bytes: maxJsonBytes + 1, limitBytes: maxJsonBytes }))
)

/**
 * The same for results, which may be anything: one that is too large, or does not end, fails before it takes seconds or memory. Its `bytes`
 * are then one more than the limit: nobody has counted them.
 */
export const resultEncoder = (codec: Schema.Codec<unknown, Schema.Json>): Handler["encodeSuccess"] => {
  const encode = Schema.encodeUnknownEffect(codec)
  const encodeText = Schema.encodeUnknownEffect(Schema.fromJsonString(codec))
  const reach = reachOf(codec)
  const asText = (value: unknown, json: unknown): ReturnType<Handler["encodeSuccess"]> => {
    const text = Result.try(() => stringify(json, maxJsonBytes))
    if (Result.isSuccess(text)) return text.success === undefined ? encodeText(value) : Exit.succeed(text.success)
    return isA(text.failure, TooLong) ? tooLarge : encodeText(value)
  }
  return (value) => {
    if (isEndless(value, reach)) return tooLarge
    const encoded = encode(value)
    return Exit.isExit(encoded) && Exit.isSuccess(encoded)
      ? asText(value, encoded.value)
      : Effect.flatMap(encoded, (json) => asText(value, json))
  }
}

/** Encodes typed failures. One that does not end is a defect. */
export const errorEncoder = (codec: Schema.Codec<unknown, Schema.Json>): Handler["encodeError"] => {
  const encode = Schema.encodeUnknownEffect(codec)
  const reach = reachOf(codec)
  return (error) => isEndless(error, reach) ? Effect.die(new RangeError("the error does not end")) : encode(error)
}

const encodeJsonText = textEncoder(Schema.Json)
const encodeResult = resultEncoder(Schema.Json)
const encodeJson = errorEncoder(Schema.toCodecJson(Schema.Json))

/** `undefined` has no JSON: such a result is stored as `null`. */
export const jsonText = (value: unknown): Effect.Effect<string, Schema.SchemaError> => encodeJsonText(value ?? null)

/**
 * Registers a handler for any type by its name. It gets the payload as stored and may return any JSON value; failures that are JSON
 * values are kept as they are, others as defects. Wrong options are a mistake of the program: it dies of a `RangeError` that names the field.
 */
export const register = <R>(
  type: string,
  handler: (payload: unknown) => Effect.Effect<unknown, unknown, R>,
  options: Options = {}
): Effect.Effect<void, never, JobHandlers | Scope.Scope | Exclude<R, CurrentJob | Scope.Scope>> =>
  Effect.gen(function*() {
    const where = `JobHandlers.register(${shown(type)})`
    checkType(where, type)
    checkHandler(where, handler)
    checkFields(where, options, fields)
    const handling = handlingOf(where, options)
    const handlers = yield* JobHandlers
    const context = yield* Effect.context<Exclude<R, CurrentJob | Scope.Scope>>()
    yield* handlers.add({
      type,
      ...handling,
      decode: Effect.succeed,
      // The runtime gives each attempt the context below, and what it does not hold.
      // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- handlers are stored with their requirements erased
      run: handler as Handler["run"],
      encodeSuccess: (value) => encodeResult(value ?? null),
      encodeError: encodeJson,
      definition: undefined,
      context
    })
  })

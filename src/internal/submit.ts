/**
 * `Jobs.submit`: checks the requests, stores all of them or none, and tells of them, in a span of its own.
 *
 * A crash before the store has answered leaves all of them stored, or none; later, some
 * that nobody was told of, which their owner's sweep finds.
 */
import { SecureRandom } from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"
import { EventBus } from "../EventBus.ts"
import type { JobRequest, RequestOptions } from "../Job.ts"
import { EmptyBatch, SubmitError } from "../JobError.ts"
import { JobHandlers } from "../JobHandlers.ts"
import { type BatchId, type JobId, made, madeBatch } from "../JobId.ts"
import { JobStore } from "../JobStore.ts"
import * as Priority from "../Priority.ts"
import * as RequestContext from "../RequestContext.ts"
import { isDone } from "./atOnce.ts"
import * as NewJob from "./newJob.ts"
import { Queues } from "./queues.ts"
import { checkRequest, invalid, queueOf, wrongPriority } from "./requestChecks.ts"
import * as SubmitCoalescer from "./submitCoalescer.ts"
import { failed } from "./submitError.ts"
import * as Submitted from "./submitted.ts"
import * as UuidV7 from "./uuidV7.ts"
import { Waker } from "./waker.ts"
import { fieldsOf, noneBut } from "./words/options.ts"

/** What a batch's submission answers: ids in the order of the requests. */
export interface Batch {
  readonly batchId: BatchId
  readonly jobIds: ReadonlyArray<JobId>
}

/** Defaults for the requests of a batch; a request's own options win. */
export type BatchOptions = Pick<RequestOptions, "queue" | "priority">

/** One request, or a batch of them. */
export interface Submit {
  (request: JobRequest): Effect.Effect<JobId, SubmitError>
  (requests: ReadonlyArray<JobRequest>, options?: BatchOptions): Effect.Effect<Batch, SubmitError>
}

/** Submits to whatever store and owners there are. */
export const make: Effect.Effect<
  Submit,
  never,
  JobStore | Queues | Waker | EventBus | JobHandlers | SecureRandom | Scope.Scope
> = Effect.gen(function*() {
  const store = yield* JobStore
  const queues = yield* Queues
  const handlers = yield* JobHandlers
  const tell = Submitted.teller(yield* Waker, yield* EventBus)
  const storeWithOthers = yield* SubmitCoalescer.make(store, tell)
  const makeIds = UuidV7.make(yield* SecureRandom)

  const submission = (options: BatchOptions | undefined) =>
    Effect.gen(function*() {
      const now = yield* store.now
      const request = yield* checkRequest(yield* RequestContext.Request)
      const span = yield* Effect.option(Effect.currentSpan)
      return NewJob.submission({
        request,
        trace: Option.isSome(span) ? RequestContext.traceOf(span.value) : undefined,
        now,
        priority: options?.priority,
        queue: options?.queue,
        definitionOf: (type) => handlers.get(type)?.definition
      })
    })

  /** Stores them in a statement of their own, or as part of the caller's transaction: all or none. */
  const storeAll = (prepared: ReadonlyArray<NewJob.Prepared>, now: number, batchId: BatchId | undefined) =>
    Effect.gen(function*() {
      const jobs = prepared.map(({ job }) => job)
      const submitted = yield* Effect.mapError(
        store.submit(jobs, { batchId, now }),
        (error) => failed(error, jobs)
      )
      yield* store.afterCommit(tell(prepared, submitted, { batchId, isJoined: yield* store.isInTransaction }))
      return submitted.map(({ id }) => id)
    })

  const sendMany = (requests: ReadonlyArray<JobRequest>, options: BatchOptions | undefined, batchId: BatchId) =>
    Effect.gen(function*() {
      const shared = yield* submission(options)
      const ids = yield* makeIds(requests.length)
      const prepared: Array<NewJob.Prepared> = []
      for (const [index, request] of requests.entries()) {
        const one = NewJob.prepare(queues, shared, request, made(ids[index] ?? ""), `[${index}].`)
        prepared.push(isDone(one) && Exit.isSuccess(one) ? one.value : yield* one)
      }
      return yield* storeAll(prepared, shared.now, batchId)
    })

  const sendOne = (request: JobRequest) =>
    Effect.gen(function*() {
      const shared = yield* submission(undefined)
      const [id = ""] = yield* makeIds(1)
      const prepared = yield* NewJob.prepare(queues, shared, request, made(id), "")
      const isAlone = prepared.job.dedupeKey !== undefined || (yield* store.isInTransaction)
      const jobId = isAlone
        ? (yield* storeAll([prepared], shared.now, undefined))[0]
        : yield* storeWithOthers(prepared)
      if (jobId === undefined) return yield* Effect.die(new Error("submit: the store answered without an id"))
      yield* Effect.annotateCurrentSpan("messaging.message.id", jobId)
      return jobId
    })

  /** The destination as OpenTelemetry's messaging conventions name it; a batch over several queues has none. */
  const destinationOf = (requests: ReadonlyArray<JobRequest>, options: BatchOptions | undefined) => {
    let found: string | undefined
    for (const request of requests) {
      if (!Predicate.isObject(request)) return undefined
      const { definition, queue, type } = request
      const name = nameOf(queue ?? options?.queue ?? definition?.queue ?? handlers.get(type)?.definition?.queue)
      if (found !== undefined && name !== found) return undefined
      found = name
    }
    return found
  }

  const withSendSpan = (
    destination: string | undefined,
    attributes: Record<string, unknown>
  ) =>
  <A>(send: Effect.Effect<A, SubmitError>): Effect.Effect<A, SubmitError> =>
    Effect.withSpan(
      Effect.tapError(send, ({ reason }) => Effect.annotateCurrentSpan("error.type", reason._tag)),
      destination === undefined ? "send" : `send ${destination}`,
      {
        kind: "producer",
        captureStackTrace: false,
        attributes: {
          "messaging.system": "millrace",
          "messaging.operation.name": "send",
          "messaging.operation.type": "send",
          ...(destination === undefined ? {} : { "messaging.destination.name": destination }),
          ...attributes
        }
      }
    )

  const submitMany = (requests: ReadonlyArray<JobRequest>, options: BatchOptions | undefined) =>
    Effect.gen(function*() {
      if (requests.length === 0) return yield* new SubmitError({ reason: new EmptyBatch() })
      for (const field in options) {
        if (batchFields.has(field) || !Object.hasOwn(options, field)) continue
        return yield* invalid(`options.${field}`, noneBut(batchFields), Reflect.get(options, field))
      }
      if (options?.priority !== undefined && Option.isNone(Priority.laneOf(options.priority))) {
        return yield* wrongPriority(options.priority, "options.")
      }
      if (options?.queue !== undefined) yield* queueOf(queues, options.queue, "options.")
      const [id = ""] = yield* makeIds(1)
      const batchId = madeBatch(id)
      const jobIds = yield* sendMany(requests, options, batchId).pipe(
        withSendSpan(destinationOf(requests, options), {
          "messaging.batch.message_count": requests.length,
          "millrace.batch.id": batchId
        })
      )
      return { batchId, jobIds }
    })

  const submitOne = (request: JobRequest): Effect.Effect<JobId, SubmitError> =>
    withSendSpan(destinationOf([request], undefined), {})(sendOne(request))

  function submit(request: JobRequest): Effect.Effect<JobId, SubmitError>
  function submit(requests: ReadonlyArray<JobRequest>, options?: BatchOptions): Effect.Effect<Batch, SubmitError>
  function submit(
    input: JobRequest | ReadonlyArray<JobRequest>,
    options?: BatchOptions
  ): Effect.Effect<JobId | Batch, SubmitError> {
    if (isMany(input)) return submitMany(input, options)
    if (!Predicate.isObject(input)) {
      return invalid("request", "a request or an array of requests", input)
    }
    return submitOne(input)
  }

  return submit
})

const batchFields: ReadonlySet<string> = new Set(
  fieldsOf<BatchOptions>({ queue: true, priority: true })
)

const isMany = (input: JobRequest | ReadonlyArray<JobRequest>): input is ReadonlyArray<JobRequest> =>
  Array.isArray(input)

const nameOf = (queue: RequestOptions["queue"]): string =>
  queue === undefined ? "default" : typeof queue === "string" ? queue : queue.name

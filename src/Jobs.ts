/**
 * The service applications use: submit work, see how it stands, wait for it, cancel it, replay what failed.
 */
import * as Context from "effect/Context"
import { SecureRandom } from "effect/crypto/SecureRandom"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { EventBus } from "./EventBus.ts"
import * as Announcer from "./internal/announcer.ts"
import * as JobReader from "./internal/jobReader.ts"
import { Owners } from "./internal/owners.ts"
import { Queues } from "./internal/queues.ts"
import * as SubmitCoalescer from "./internal/submitCoalescer.ts"
import * as Submitted from "./internal/submitted.ts"
import * as Submitter from "./internal/submitter.ts"
import { onLiveClock } from "./internal/time/liveClock.ts"
import * as UuidV7 from "./internal/uuidV7.ts"
import { Waker } from "./internal/waker.ts"
import type { Codec, Job, JobRequest, RequestOptions } from "./Job.ts"
import {
  DeadLetterNotFound,
  DedupeKeyTaken,
  EmptyBatch,
  InvalidField,
  JobAlreadyFinal,
  type JobNotFound,
  JobUnsuccessful,
  type NotOwner,
  PartitionUnavailable,
  type StoreUnavailable,
  SubmitError
} from "./JobError.ts"
import * as JobEvent from "./JobEvent.ts"
import { JobHandlers } from "./JobHandlers.ts"
import type * as JobHistory from "./JobHistory.ts"
import { type BatchId, type JobId, made, madeBatch } from "./JobId.ts"
import * as JobMetrics from "./JobMetrics.ts"
import { isFinal } from "./JobState.ts"
import type { JobStatus } from "./JobStatus.ts"
import { type JobRecord, JobStore, tenantId } from "./JobStore.ts"
import * as RequestContext from "./RequestContext.ts"

/** What a batch's submission answers: ids in the order of the requests. */
export interface Batch {
  readonly batchId: BatchId
  readonly jobIds: ReadonlyArray<JobId>
}

/** Defaults for the requests of a batch; a request's own options win. */
export type BatchOptions = Pick<RequestOptions, "queue" | "priority">

export type { JobStatus } from "./JobStatus.ts"

/** A definition, or nothing: then results are JSON as stored. */
type Typed<Success extends Codec, Failure extends Codec> = Pick<
  Job<string, Codec, Success, Failure>,
  "success" | "error" | "decodeSuccess" | "decodeError"
>

/** The service. */
export class Jobs extends Context.Service<Jobs, {
  /**
   * Stores one request, or many: all of them or none. Answers when they are stored and does not wait for the work. Inside a transaction
   * of the caller's `SqlClient` the jobs become visible exactly when it commits. A request whose dedupe key is held by a live job is
   * answered with that job's id. The request context it is made in goes along, at most 8 kB of JSON. A lost answer is `OutcomeUnknown`: all
   * of it is stored, or nothing.
   *
   * Requests that many fibers submit one by one at the same time travel together, each with its own answer. Interrupting the caller then
   * ends its waiting, not its submission: once it has got as far as the store, its job is stored all the same.
   */
  readonly submit: {
    (request: JobRequest): Effect.Effect<JobId, SubmitError>
    (requests: ReadonlyArray<JobRequest>, options?: BatchOptions): Effect.Effect<Batch, SubmitError>
  }
  /**
   * How a job stands; with its definition the result and the error are typed. Reads on a connection of its own and does not take part in
   * the caller's transaction: a job submitted there is not found before it commits.
   */
  readonly status: {
    (jobId: JobId): Effect.Effect<JobStatus, JobNotFound | StoreUnavailable>
    <Success extends Codec, Failure extends Codec>(
      jobId: JobId,
      definition: Typed<Success, Failure>
    ): Effect.Effect<
      JobStatus<Success["Type"], Failure["Type"]>,
      JobNotFound | StoreUnavailable | Schema.SchemaError
    >
  }
  /** Waits for the end: the result, or the failure. With its definition both are typed. */
  readonly await: {
    (jobId: JobId): Effect.Effect<unknown, JobNotFound | JobUnsuccessful | StoreUnavailable>
    <Success extends Codec, Failure extends Codec>(
      jobId: JobId,
      definition: Typed<Success, Failure>
    ): Effect.Effect<
      Success["Type"],
      Failure["Type"] | JobNotFound | JobUnsuccessful | StoreUnavailable | Schema.SchemaError
    >
  }
  /**
   * Puts a dead letter back into its queue: same id, history kept. Once, also when called twice at the same time. Does not take part in the
   * caller's transaction: it stands when that rolls back.
   */
  readonly replayJob: (
    deadLetterId: JobId
  ) => Effect.Effect<void, DeadLetterNotFound | DedupeKeyTaken | StoreUnavailable>
  /**
   * Cancels a job that has not ended; a running one is interrupted and rolled back. A queued or running one can only be cancelled in the
   * process that owns its queue (`NotOwner`), a scheduled or retrying one anywhere. Does not take part in the caller's transaction: it
   * stands when that rolls back, and a job submitted there is not found before it commits.
   */
  readonly cancel: (
    jobId: JobId
  ) => Effect.Effect<void, JobNotFound | JobAlreadyFinal | NotOwner | PartitionUnavailable | StoreUnavailable>
}>()("millrace/Jobs") {}

/** The service on whatever store, owners and bus there are. */
export const layer: Layer.Layer<
  Jobs,
  never,
  JobStore | Queues | Owners | Waker | EventBus | JobHandlers | SecureRandom
> = Layer.effect(
  Jobs,
  Effect.gen(function*() {
    const store = yield* JobStore
    const queues = yield* Queues
    const owners = yield* Owners
    const waker = yield* Waker
    const bus = yield* EventBus
    const publish = Announcer.tell(bus)
    const tell = Submitted.teller(waker, bus)
    const storeWithOthers = yield* SubmitCoalescer.make(store, tell)
    const handlers = yield* JobHandlers
    const makeIds = UuidV7.make(yield* SecureRandom)
    const reader = JobReader.make(store, queues, owners)

    // ------------------------------------------------------------------------------------------- submit

    const submission = (options: BatchOptions | undefined) =>
      Effect.gen(function*() {
        const now = yield* store.now
        const request = yield* Submitter.checkRequest(yield* RequestContext.Request)
        const span = yield* Effect.option(Effect.currentSpan)
        return Submitter.submission({
          request,
          trace: Option.isSome(span) ? RequestContext.traceOf(span.value) : undefined,
          now,
          priority: options?.priority,
          queue: options?.queue,
          definitionOf: (type) => handlers.get(type)?.definition
        })
      })

    /** Stores them in a statement of their own, or as part of the caller's transaction: all or none. */
    const storeAll = (prepared: ReadonlyArray<Submitter.Prepared>, now: number, batchId: BatchId | undefined) =>
      Effect.gen(function*() {
        const jobs = prepared.map(({ job }) => job)
        const submitted = yield* Effect.mapError(
          store.submit(jobs, { batchId, now }),
          (error) => Submitter.failed(error, jobs)
        )
        yield* store.afterCommit(tell(prepared, submitted, { batchId, isJoined: yield* store.isInTransaction }))
        return submitted.map(({ id }) => id)
      })

    const sendMany = (requests: ReadonlyArray<JobRequest>, options: BatchOptions | undefined, batchId: BatchId) =>
      Effect.gen(function*() {
        const shared = yield* submission(options)
        const ids = yield* makeIds(requests.length)
        const prepared: Array<Submitter.Prepared> = []
        for (const [index, request] of requests.entries()) {
          const one = Submitter.prepare(queues, shared, request, made(ids[index] ?? ""), `[${index}].`)
          prepared.push(Submitter.isDone(one) && Exit.isSuccess(one) ? one.value : yield* one)
        }
        return yield* storeAll(prepared, shared.now, batchId)
      })

    const sendOne = (request: JobRequest) =>
      Effect.gen(function*() {
        const shared = yield* submission(undefined)
        const [id = ""] = yield* makeIds(1)
        const prepared = yield* Submitter.prepare(queues, shared, request, made(id), "")
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
      for (const { definition, queue, type } of requests) {
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
      if (typeof input !== "object" || input === null) {
        const reason = new InvalidField({
          field: "request",
          expected: "a request or an array of requests",
          received: String(input)
        })
        return Effect.fail(new SubmitError({ reason }))
      }
      return submitOne(input)
    }

    // ------------------------------------------------------------------------------------------- status

    const { addressOf, find, idOf, statusOf } = reader

    function status(jobId: JobId): Effect.Effect<JobStatus, JobNotFound | StoreUnavailable>
    function status<Success extends Codec, Failure extends Codec>(
      jobId: JobId,
      definition: Typed<Success, Failure>
    ): Effect.Effect<JobStatus<Success["Type"], Failure["Type"]>, JobNotFound | StoreUnavailable | Schema.SchemaError>
    function status(jobId: JobId, definition?: Typed<Codec, Codec>) {
      return Effect.gen(function*() {
        const plain = yield* Effect.flatMap(find(jobId), statusOf)
        if (definition === undefined) return plain
        return {
          ...plain,
          result: plain.state === "completed" ? yield* definition.decodeSuccess(plain.result ?? null) : undefined,
          error: plain.error === undefined ? undefined : yield* definition.decodeError(plain.error)
        }
      })
    }

    // ------------------------------------------------------------------------------------------- await

    const ended = (asked: JobId) =>
      Effect.gen(function*() {
        const jobId = yield* idOf(asked)
        const events = yield* bus.subscribe({
          jobId,
          tags: ["JobCompleted", "JobDeadLettered", "JobCancelled", "JobExpired"]
        })
        const told = Stream.runHead(events)
        // Events of other processes may not come here: look from time to time, ever more rarely.
        for (let pause = 100;; pause = Math.min(pause * 2, 5_000)) {
          const record = yield* find(jobId)
          if (isFinal(record.state)) return yield* statusOf(record)
          yield* Effect.raceFirst(told, onLiveClock(Effect.sleep(Duration.millis(pause))))
        }
      }).pipe(Effect.scoped)

    const unsuccessful = ({ failure, jobId, state }: JobStatus) =>
      new JobUnsuccessful({
        jobId,
        jobState: state,
        ...(failure === undefined ? {} : { errorTag: failure.tag, errorMessage: failure.message })
      })

    function awaitEnd(jobId: JobId): Effect.Effect<unknown, JobNotFound | JobUnsuccessful | StoreUnavailable>
    function awaitEnd<Success extends Codec, Failure extends Codec>(
      jobId: JobId,
      definition: Typed<Success, Failure>
    ): Effect.Effect<
      Success["Type"],
      Failure["Type"] | JobNotFound | JobUnsuccessful | StoreUnavailable | Schema.SchemaError
    >
    function awaitEnd(jobId: JobId, definition?: Typed<Codec, Codec>): Effect.Effect<unknown, unknown> {
      return Effect.gen(function*() {
        const status = yield* ended(jobId)
        if (status.state === "completed") {
          return definition === undefined ? status.result : yield* definition.decodeSuccess(status.result ?? null)
        }
        if (definition === undefined || status.error === undefined) return yield* unsuccessful(status)
        return yield* Effect.flatMap(definition.decodeError(status.error), Effect.fail)
      })
    }

    // ------------------------------------------------------------------------------------------- replay and cancel

    const by = Effect.map(RequestContext.Request, ({ userId }) => userId === undefined ? {} : { by: userId })

    const replayJob = (asked: JobId) =>
      Effect.gen(function*() {
        const found = yield* Effect.catchTag(find(asked), "JobNotFound", () => new DeadLetterNotFound({ jobId: asked }))
        const jobId = found.id
        if (found.state !== "failed") {
          const { state } = yield* statusOf(found)
          return yield* new DeadLetterNotFound({ jobId, jobState: state })
        }
        const now = yield* store.now
        const entry: JobHistory.Entry = { kind: "replayed", at: now, ...(yield* by) }
        const replayed = yield* Effect.mapError(
          store.replay(jobId, found.tenant, entry),
          JobReader.storeUnavailable("replayJob")
        )
        if (replayed === "taken") return yield* new DedupeKeyTaken({ jobId })
        if (Option.isNone(replayed)) return yield* new DeadLetterNotFound({ jobId, jobState: "queued" })
        const ready = replayed.value
        const { queue } = yield* addressOf(found)
        const tenant = tenantId(found.tenant)
        // Committed on a connection of the store's own, also inside a transaction of the caller's.
        waker.wake([ready])
        yield* publish(
          new JobEvent.JobReplayed({
            jobId,
            type: found.type,
            queue,
            at: now,
            ...(tenant === undefined ? {} : { tenantId: tenant }),
            ...("by" in entry && entry.by !== undefined ? { by: entry.by } : {})
          })
        )
      })

    const cancelWaiting = (record: JobRecord, now: number, who: { readonly by?: string }) =>
      Effect.gen(function*() {
        const known = yield* Effect.mapError(queues.byId(record.queueId), JobReader.storeUnavailable("cancel"))
        const retentionMs = Option.isSome(known) ? known.value.queue.retention.cancelledMs : 0
        const isCancelled = yield* Effect.mapError(
          store.cancel({
            id: record.id,
            version: record.version,
            owner: undefined,
            now,
            purgeAt: now + retentionMs,
            entry: { kind: "cancelled", at: now, ...who }
          }),
          JobReader.storeUnavailable("cancel")
        )
        if (!isCancelled) return false
        const { queue } = yield* addressOf(record)
        const tenant = tenantId(record.tenant)
        yield* JobMetrics.onFinished(record.type, queue, "cancelled")
        yield* publish(
          new JobEvent.JobCancelled({
            jobId: record.id,
            type: record.type,
            queue,
            at: now,
            ...(tenant === undefined ? {} : { tenantId: tenant }),
            ...who
          })
        )
        return true
      })

    const cancel = (jobId: JobId) =>
      Effect.gen(function*() {
        const who = yield* by
        // Each turn sees the job where it has moved to; it cannot move for ever.
        for (let turn = 0; turn < 20; turn++) {
          const record = yield* find(jobId)
          if (isFinal(record.state)) return yield* new JobAlreadyFinal({ jobId: record.id, jobState: record.state })
          const isCancelled = record.state === "queued"
            ? yield* owners.cancel(yield* addressOf(record), record.id, who.by)
            : yield* cancelWaiting(record, yield* store.now, who)
          if (isCancelled) return
          yield* onLiveClock(Effect.sleep(Duration.millis(5 * turn)))
        }
        return yield* new PartitionUnavailable({ entity: jobId })
      })

    return Jobs.of({ submit, status, await: awaitEnd, replayJob, cancel })
  })
)

const isMany = (input: JobRequest | ReadonlyArray<JobRequest>): input is ReadonlyArray<JobRequest> =>
  Array.isArray(input)

const nameOf = (queue: RequestOptions["queue"]): string =>
  queue === undefined ? "default" : typeof queue === "string" ? queue : queue.name

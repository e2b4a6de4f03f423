/**
 * Finds a job for whoever asks, and puts together what the store and its owner know of it.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Codec, Job } from "../Job.ts"
import { JobNotFound, StoreUnavailable } from "../JobError.ts"
import * as JobHistory from "../JobHistory.ts"
import { type JobId, normalize } from "../JobId.ts"
import type { JobStatus } from "../JobStatus.ts"
import { type JobRecord, type JobStore, type StoreError, tenantId } from "../JobStore.ts"
import * as Priority from "../Priority.ts"
import * as RequestContext from "../RequestContext.ts"
import type { Address, Owners } from "./owners.ts"
import type { Queues } from "./queues.ts"

/** What of a definition makes results and errors typed. Without one they are JSON as stored. */
export type Typed<Success extends Codec, Failure extends Codec> = Pick<
  Job<string, Codec, Success, Failure>,
  "success" | "error" | "decodeSuccess" | "decodeError"
>

/** Reads jobs. */
export interface JobReader {
  /** The id as the job has it, however it is spelled. */
  readonly idOf: (jobId: JobId) => Effect.Effect<JobId, JobNotFound>
  /** The job, if the tenant in context may see it: the system sees all. `operation`: what was called. */
  readonly find: (jobId: JobId, operation: string) => Effect.Effect<JobRecord, JobNotFound | StoreUnavailable>
  readonly addressOf: (record: JobRecord) => Effect.Effect<Address>
  readonly statusOf: (record: JobRecord) => Effect.Effect<JobStatus>
}

/** The store's failure as callers of `Jobs` see it. */
export const storeUnavailable = (operation: string) => (error: StoreError): StoreUnavailable =>
  new StoreUnavailable({ operation, cause: error })

/** A reader on this store. */
export const make = (store: JobStore["Service"], queues: Queues["Service"], owners: Owners["Service"]): JobReader => {
  const idOf = (jobId: JobId): Effect.Effect<JobId, JobNotFound> =>
    Effect.suspend(() => {
      const id = normalize(String(jobId))
      return id === undefined ? Effect.fail(new JobNotFound({ jobId })) : Effect.succeed(id)
    })

  const find = (jobId: JobId, operation: string): Effect.Effect<JobRecord, JobNotFound | StoreUnavailable> =>
    Effect.gen(function*() {
      const { tenantId: mine } = yield* RequestContext.Request
      const id = yield* idOf(jobId)
      const record = yield* Effect.mapError(store.find(id), storeUnavailable(operation))
      if (Option.isNone(record)) return yield* new JobNotFound({ jobId })
      if (mine !== undefined && tenantId(record.value.tenant) !== mine) return yield* new JobNotFound({ jobId })
      return record.value
    })

  const addressOf = (record: JobRecord) =>
    Effect.map(
      Effect.orElseSucceed(queues.byId(record.queueId), () => Option.none()),
      (known) => ({
        queue: Option.isSome(known) ? known.value.row.name : String(record.queueId),
        partition: record.partition
      })
    )

  const statusOf = (record: JobRecord): Effect.Effect<JobStatus> =>
    Effect.gen(function*() {
      const address = yield* addressOf(record)
      const live = record.state === "queued"
        ? yield* Effect.orElseSucceed(owners.view(address, record.id), () => undefined)
        : undefined
      const noted = record.state === "queued" ? record.running : undefined
      const isRunning = live?.isRunning ?? noted !== undefined
      const fraction = live?.progress ?? noted?.progress
      const { cluster: _, scheduledFor, ...request } = RequestContext.fromStored(
        record.context,
        tenantId(record.tenant)
      )
      const startedAt = live?.startedAt ?? noted?.startedAt
      const history = JobHistory.transitions({ createdAt: record.createdAt, scheduledFor, history: record.history })
      return {
        jobId: record.id,
        type: record.type,
        queue: address.queue,
        state: isRunning ? "running" : record.state,
        attempts: record.attempt,
        crashes: record.crashes,
        reruns: record.reruns,
        priority: record.lane === undefined ? undefined : Priority.laneName(record.lane),
        dedupeKey: record.dedupeKey,
        batchId: record.batchId,
        request,
        submittedAt: record.createdAt,
        dueAt: record.dueAt,
        startedAt: isRunning ? startedAt : undefined,
        endedAt: record.endedAt,
        progress: fraction === undefined || !isRunning
          ? undefined
          : { fraction, message: live?.message ?? noted?.message },
        result: record.state === "completed" ? record.result ?? undefined : undefined,
        failure: record.failure,
        error: record.failure?.error,
        history: isRunning && startedAt !== undefined
          ? [...history, { move: "started", to: "running", at: startedAt, attempt: record.attempt + 1 }]
          : history
      }
    })

  return { idOf, find, addressOf, statusOf }
}

/**
 * From a request to the row of its new job: which queue, lane and partition it goes to, and what it carries. Nothing is stored before every
 * field of it is right (`requestChecks`).
 */
import type * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type { JobRequest } from "../Job.ts"
import type { SubmitError } from "../JobError.ts"
import type { Definition } from "../JobHandlers.ts"
import type { JobId } from "../JobId.ts"
import * as JobQueue from "../JobQueue.ts"
import { type NewJob, type QueueRow, type TenantKey, tenantKey } from "../JobStore.ts"
import * as Priority from "../Priority.ts"
import type { RequestContext, Stored, Trace } from "../RequestContext.ts"
import { andThen } from "./atOnce.ts"
import { placeOf } from "./place.ts"
import type { Queues } from "./queues.ts"
import * as Checks from "./requestChecks.ts"

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

/** Of a job whose partition comes from something other than its id. */
const placeIn = ({ partitionBy }: QueueRow, tenant: TenantKey, key: string | undefined): number | undefined =>
  partitionBy === "tenant" || key !== undefined ? placeOf(tenant, key) : undefined

/** Checks and encodes one request. `at` is its place in messages: `""`, or `[3].`. It is an `Exit` where nothing had to be waited for. */
export const prepare = (
  queues: Queues["Service"],
  submission: Submission,
  request: JobRequest,
  id: JobId,
  at: string
): Effect.Effect<Prepared, SubmitError> => {
  const wrong = Checks.wrongRequest(request, at)
  if (wrong !== undefined) return wrong
  const { type } = request
  const definition = request.definition ?? submission.definitionOf(type)
  const queue = request.queue ?? submission.queue ?? definition?.queue ?? JobQueue.fallback
  return andThen(Checks.queueOf(queues, queue, at), ({ queue, row }) => {
    const priority = request.priority ?? submission.priority ?? definition?.priority ?? "normal"
    const lane = Priority.laneOf(priority)
    if (Option.isNone(lane)) return Checks.wrongPriority(priority, at)
    return andThen(Checks.payloadOf(request, at), (payload) => {
      const bytes = Buffer.byteLength(payload)
      if (bytes > queue.maxPayloadBytes) return Checks.tooLarge(bytes, queue.maxPayloadBytes, at)
      return andThen(Checks.dedupeKeyOf(request, definition, at), (dedupeKey) => {
        return andThen(Checks.keyOf(request, definition, row, at), (key) =>
          andThen(
            Checks.dueTime(request, submission.now, at),
            (dueAt) => {
              const place = placeIn(row, submission.tenant, key)
              return andThen(Checks.expiryTime(request, definition, submission.now, at), (expiresAt) =>
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

/**
 * `Jobs.cancel`: from any process. A job that waits for its time is cancelled in the table; of a ready one only its owner knows whether it
 * runs: it is told, by a message where it is in reach and through the database where it is not, and the row says what came of it.
 *
 * A caller that dies on any line leaves a job that is cancelled or one that goes on, and may ask again.
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { EventBus } from "../EventBus.ts"
import { JobAlreadyFinal, type JobNotFound, PartitionUnavailable, type StoreUnavailable } from "../JobError.ts"
import * as JobEvent from "../JobEvent.ts"
import type { JobId } from "../JobId.ts"
import * as JobMetrics from "../JobMetrics.ts"
import { isFinal } from "../JobState.ts"
import { type JobRecord, type JobStore, tenantId } from "../JobStore.ts"
import * as RequestContext from "../RequestContext.ts"
import * as Announcer from "./announcer.ts"
import { type JobReader, storeUnavailable } from "./jobReader.ts"
import { type Owners, partitionName } from "./owners.ts"
import type { Queues } from "./queues.ts"
import { monotonicMillis, onLiveClock } from "./time/liveClock.ts"
import type { Waker } from "./waker.ts"

/** Cancels a job, wherever its owner is. */
export type CancelJob = (
  jobId: JobId
) => Effect.Effect<void, JobNotFound | JobAlreadyFinal | PartitionUnavailable | StoreUnavailable>

/** How long an owner that does not answer is asked, in milliseconds. */
export const Patience = Context.Reference<number>("millrace/internal/CancelPatience", { defaultValue: () => 30_000 })

/** How long after one word to an owner the next one is sent, in milliseconds: the first may have been lost. */
const repeatMs = 1_000

/** Who asks. */
export const by = Effect.map(RequestContext.Request, ({ userId }) => userId === undefined ? {} : { by: userId })

/** Cancels jobs that `reader` finds. */
export const make = (options: {
  readonly store: JobStore["Service"]
  readonly queues: Queues["Service"]
  readonly owners: Owners["Service"]
  readonly reader: JobReader
  readonly bus: EventBus["Service"]
  readonly waker: Waker["Service"]
}): CancelJob => {
  const { owners, queues, reader: { addressOf, find }, store, waker } = options
  const publish = Announcer.tell(options.bus)
  const unavailable = storeUnavailable("cancel")

  const cancelWaiting = (record: JobRecord, who: { readonly by?: string }) =>
    Effect.gen(function*() {
      const now = yield* store.now
      const known = yield* Effect.mapError(queues.byId(record.queueId), unavailable)
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
        unavailable
      )
      if (!isCancelled) return false
      const { key, lane = 0, partition, queueId, tenant: tenantKey } = record
      // It held back those behind it.
      if (key !== undefined) waker.wake([{ queueId, partition, lane, tenant: tenantKey, seq: 0, key }])
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

  return (jobId) =>
    Effect.gen(function*() {
      const who = yield* by
      const patienceMs = yield* Patience
      const begunAt = monotonicMillis()
      // When its owner was last told, and may have cancelled it without our knowing.
      let toldAt: number | undefined
      // Asked directly it gave no answer: it may be frozen, or the way to it broken.
      let isSilent = false

      const cancelReady = (record: JobRecord) =>
        Effect.gen(function*() {
          const address = yield* addressOf(record)
          if (!isSilent && owners.reach(address) !== "database") {
            const answer = yield* Effect.option(owners.cancel(address, record.id, who.by))
            if (Option.isSome(answer)) return answer.value
            isSilent = true
          }
          const live = monotonicMillis()
          if (toldAt !== undefined && live - toldAt < repeatMs) return false
          toldAt = live
          const { id, partition, queueId } = record
          const message = { _tag: "Cancel", queueId, partition, jobId: id, by: who.by } as const
          yield* Effect.mapError(store.say([message]), unavailable)
          return false
        })

      // Each turn sees the job where it has moved to.
      for (let pause = 5;; pause = Math.min(pause * 2, 500)) {
        const record = yield* find(jobId)
        if (isFinal(record.state)) {
          if (record.state === "cancelled" && toldAt !== undefined) return
          return yield* new JobAlreadyFinal({ jobId: record.id, jobState: record.state })
        }
        if (yield* record.state === "queued" ? cancelReady(record) : cancelWaiting(record, who)) return
        if (monotonicMillis() - begunAt >= patienceMs) {
          return yield* new PartitionUnavailable({ entity: partitionName(yield* addressOf(record)) })
        }
        yield* onLiveClock(Effect.sleep(Duration.millis(pause)))
      }
    })
}

/**
 * `Jobs.cancel`: from any process. A job that waits for its time is cancelled in the table, and so is a ready one while nobody who lives owns
 * its partition. Else only its owner knows whether it runs: it is told, by a message where it is in reach and through the database where it is
 * not, and the row says what came of it.
 *
 * Who owns a partition has said at the take-over by which session it holds its shard's lock; an owner that died, or was frozen for so long
 * that the server has ended that session, owns it no more. Whoever takes over waits for the statement that cancels, and reads after it. A
 * process that has lost its lock and does not know it yet may still run the job: the row is gone, so what its handler has written is rolled
 * back, and what it has done outside, or with `transaction: "none"`, stands as it does after a crash. It is told too, to end it.
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
import { type JobRecord, type JobStore, type StoreError, tenantId } from "../JobStore.ts"
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

/** How long after one word to an owner the next one is sent, in milliseconds: the first may have been lost, and so may the owner. */
const repeatMs = 1_000

/** Who asks. */
export const by = Effect.map(RequestContext.Request, ({ userId }) => userId === undefined ? {} : { by: userId })

const isInTheWay = ({ reason }: StoreError) => reason === "LockTimeout" || reason === "Conflict"

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

  /** Through the database. */
  const tell = ({ id, partition, queueId }: JobRecord, by: string | undefined) =>
    store.say([{ _tag: "Cancel", queueId, partition, jobId: id, by }])

  /** `false`: it has moved, or somebody owns it. */
  const cancelInTable = (record: JobRecord, who: { readonly by?: string }) =>
    Effect.gen(function*() {
      const now = yield* store.now
      const known = yield* Effect.mapError(queues.byId(record.queueId), unavailable)
      const retentionMs = Option.isSome(known) ? known.value.queue.retention.cancelledMs : 0
      const isCancelled = yield* store.cancel({
        id: record.id,
        version: record.version,
        owner: undefined,
        now,
        purgeAt: now + retentionMs,
        entry: { kind: "cancelled", at: now, ...who }
      }).pipe(
        // Somebody who settles it, or takes its partition over, is slow.
        Effect.catchIf(isInTheWay, () => Effect.succeed(false)),
        Effect.mapError(unavailable)
      )
      if (!isCancelled) return false
      const { key, lane = 0, partition, queueId, tenant: tenantKey } = record
      if (record.state === "queued") yield* Effect.ignore(tell(record, who.by))
      // It held back those behind it. In a queue that moves they may be in another partition: its owner's next sweep finds them.
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
      // When it was last tried in the table.
      let triedAt: number | undefined
      // Its owner may have cancelled it without our knowing: it was told, or asked and has remembered that.
      let hasAsked = false
      // When its owner was last told.
      let toldAt: number | undefined
      // Asked directly it gave no answer: it may be frozen, or the way to it broken.
      let isSilent = false

      const isDue = (before: number | undefined) => before === undefined || monotonicMillis() - before >= repeatMs

      const cancelReady = (record: JobRecord) =>
        Effect.gen(function*() {
          const address = yield* addressOf(record)
          const reach = isSilent ? "database" : owners.reach(address)
          if (reach !== "here" && isDue(triedAt)) {
            triedAt = monotonicMillis()
            if (yield* cancelInTable(record, who)) return true
          }
          hasAsked = true
          if (reach !== "database") {
            const answer = yield* Effect.option(owners.cancel(address, record.id, who.by))
            if (Option.isSome(answer)) return answer.value
            isSilent = true
          }
          if (!isDue(toldAt)) return false
          toldAt = monotonicMillis()
          yield* Effect.mapError(tell(record, who.by), unavailable)
          return false
        })

      // Each turn sees the job where it has moved to.
      for (let pause = 5;; pause = Math.min(pause * 2, 500)) {
        const record = yield* find(jobId, "cancel")
        if (isFinal(record.state)) {
          if (record.state === "cancelled" && hasAsked) return
          return yield* new JobAlreadyFinal({ jobId: record.id, jobState: record.state })
        }
        // One that moves on meanwhile is between two attempts: its owner is asked not to start the next one.
        if (record.state !== "queued" && (yield* cancelInTable(record, who))) return
        if (yield* cancelReady(record)) return
        if (monotonicMillis() - begunAt >= patienceMs) {
          return yield* new PartitionUnavailable({ entity: partitionName(yield* addressOf(record)) })
        }
        yield* onLiveClock(Effect.sleep(Duration.millis(pause)))
      }
    })
}

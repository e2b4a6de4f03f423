/**
 * Tells of jobs that have been stored: wakes their owners, counts them, and publishes an event for each.
 */
import * as Effect from "effect/Effect"
import type { EventBus } from "../EventBus.ts"
import * as JobEvent from "../JobEvent.ts"
import type { BatchId } from "../JobId.ts"
import * as JobMetrics from "../JobMetrics.ts"
import { inlinePayloadBytes, type Ready, type ReadyJob, type Submitted, tenantId } from "../JobStore.ts"
import * as Announcer from "./announcer.ts"
import type { Prepared } from "./newJob.ts"
import type { Waker } from "./waker.ts"

/** Tells of what has become of `prepared`, one answer of the store for each. Only jobs that are new are told of. */
export type Teller = (
  prepared: ReadonlyArray<Prepared>,
  submitted: ReadonlyArray<Submitted>,
  how: Submission
) => Effect.Effect<void>

/** How they were submitted. */
export interface Submission {
  readonly batchId: BatchId | undefined
  /** Whether that was in a transaction of the caller's, in which a savepoint may have taken some of them back. */
  readonly isJoined: boolean
}

/** Whether this row needs no wake of its own: the one before it, if it is not handed over, wakes the same line, from a lower `seq` on. */
const isBehind = (ready: Ready, before: Ready | undefined): boolean =>
  before !== undefined && before.job === undefined && ready.dueAt === undefined && before.dueAt === undefined &&
  before.seq < ready.seq &&
  before.tenant === ready.tenant && before.lane === ready.lane && before.partition === ready.partition &&
  before.queueId === ready.queueId

/** Few jobs are handed over as they are. Of many their owner reads as much as it has room for. */
const handedOver = 64

/** As its owner would read it. */
const jobOf = ({ at, job }: Prepared, seq: number): ReadyJob => ({
  id: job.id,
  lane: job.lane,
  tenant: job.tenant,
  seq,
  version: 0,
  type: job.type,
  attempt: 0,
  crashes: 0,
  reruns: 0,
  createdAt: at,
  expiresAt: job.expiresAt,
  isLarge: false,
  payload: JSON.parse(job.payload),
  context: job.context === undefined ? null : JSON.parse(job.context)
})

const readyOf = (
  prepared: ReadonlyArray<Prepared>,
  submitted: ReadonlyArray<Submitted>,
  isJoined: boolean
): ReadonlyArray<Ready> => {
  const all: Array<Ready> = []
  const areFew = !isJoined && prepared.length <= handedOver
  prepared.forEach((one, index) => {
    const { dueAt, key, lane, payload, queueId, tenant } = one.job
    const { isNew = false, partition = one.job.partition, seq = 0 } = submitted[index] ?? {}
    if (!isNew) return
    const ready: Ready = { queueId, partition, lane, tenant, seq, ...(dueAt === undefined ? {} : { dueAt }) }
    // At most three bytes a character: what might be large is read when it starts. Whether a key's job is the first of its line only the table
    // knows.
    if (areFew && key === undefined && payload.length * 3 <= inlinePayloadBytes) {
      all.push({
        ...ready,
        job: () => jobOf(one, seq)
      })
    } else if (!isBehind(ready, all.at(-1))) all.push(ready)
  })
  return all
}

const eventOf = ({ at, job, queue }: Prepared, batchId: BatchId | undefined): JobEvent.JobEvent => {
  const tenant = tenantId(job.tenant)
  return new JobEvent.JobSubmitted({
    jobId: job.id,
    type: job.type,
    queue,
    at,
    ...(tenant === undefined ? {} : { tenantId: tenant }),
    ...(batchId === undefined ? {} : { batchId }),
    ...(job.dueAt === undefined ? {} : { dueAt: job.dueAt })
  }, { disableChecks: true })
}

/** How many of each type and queue. */
const counted = (fresh: ReadonlyArray<Prepared>): ReadonlyArray<readonly [Prepared, number]> => {
  const [first] = fresh
  if (first === undefined) return []
  if (fresh.every(({ job, queue }) => job.type === first.job.type && queue === first.queue)) {
    return [[first, fresh.length]]
  }
  return [...Map.groupBy(fresh, ({ job, queue }) => `${queue} ${job.type}`).values()].flatMap((group) =>
    group.slice(0, 1).map((one) => [one, group.length] as const)
  )
}

/** Tells owners, metrics and the bus. */
export const teller = (waker: Waker["Service"], bus: EventBus["Service"]): Teller => {
  const publish = Announcer.tell(bus)
  /** The one place that makes events, one at a time and only to be published. */
  const publishAll = (fresh: ReadonlyArray<Prepared>, batchId: BatchId | undefined) =>
    Announcer.isHeard(bus, "JobSubmitted")
      ? Effect.forEach(fresh, (one) => publish(eventOf(one, batchId)), { discard: true })
      : Effect.void
  return (prepared, submitted, { batchId, isJoined }) =>
    Effect.suspend(() => {
      const fresh = prepared.filter((_, index) => submitted[index]?.isNew === true)
      return Effect.andThen(
        Effect.forEach(counted(fresh), ([{ job, queue }, count]) => JobMetrics.onSubmitted(job.type, queue, count)),
        publishAll(fresh, batchId)
      ).pipe(
        // Last, for its owner may start it at once; and in any case.
        Effect.ensuring(Effect.sync(() => waker.wake(readyOf(prepared, submitted, isJoined))))
      )
    })
}

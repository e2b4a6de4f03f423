/**
 * Tells of jobs that have been stored: wakes their owners, counts them, and publishes an event for each.
 */
import * as Effect from "effect/Effect"
import type { EventBus } from "../EventBus.ts"
import * as JobEvent from "../JobEvent.ts"
import type { BatchId } from "../JobId.ts"
import * as JobMetrics from "../JobMetrics.ts"
import { type Ready, type Submitted, tenantId } from "../JobStore.ts"
import * as Announcer from "./announcer.ts"
import type { Prepared } from "./submitter.ts"
import type { Waker } from "./waker.ts"

/** Tells of what has become of `prepared`, one answer of the store for each. Only jobs that are new are told of. */
export type Teller = (
  prepared: ReadonlyArray<Prepared>,
  submitted: ReadonlyArray<Submitted>,
  batchId: BatchId | undefined
) => Effect.Effect<void>

/** Whether this row needs no wake of its own: the one before it wakes the same line, from a lower `seq` on. */
const isBehind = (ready: Ready, before: Ready | undefined): boolean =>
  before !== undefined && ready.dueAt === undefined && before.dueAt === undefined && before.seq < ready.seq &&
  before.tenant === ready.tenant && before.lane === ready.lane && before.partition === ready.partition &&
  before.queueId === ready.queueId

const readyOf = (prepared: ReadonlyArray<Prepared>, submitted: ReadonlyArray<Submitted>): ReadonlyArray<Ready> => {
  const all: Array<Ready> = []
  prepared.forEach(({ job: { dueAt, lane, partition, queueId, tenant } }, index) => {
    const { isNew = false, seq = 0 } = submitted[index] ?? {}
    if (!isNew) return
    const ready = { queueId, partition, lane, tenant, seq, ...(dueAt === undefined ? {} : { dueAt }) }
    if (!isBehind(ready, all.at(-1))) all.push(ready)
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
    Effect.forEach(fresh, (one) => publish(eventOf(one, batchId)), { discard: true })
  return (prepared, submitted, batchId) =>
    Effect.suspend(() => {
      waker.wake(readyOf(prepared, submitted))
      const fresh = prepared.filter((_, index) => submitted[index]?.isNew === true)
      return Effect.andThen(
        Effect.forEach(counted(fresh), ([{ job, queue }, count]) => JobMetrics.onSubmitted(job.type, queue, count)),
        publishAll(fresh, batchId)
      )
    })
}

/**
 * How jobs end, or are put off, without an attempt: pure settlements, written down by the partition.
 */
import { CrashLoop, HandlerMissing, type JobFailure, toFailure } from "../JobError.ts"
import type { Retention } from "../JobQueue.ts"
import { type DeadLetter, type Finish, type ReadyJob, type Settlement, tenantId } from "../JobStore.ts"
import { fromStored } from "../RequestContext.ts"

const deadLetter = ({ id, version }: ReadyJob, now: number, failure: JobFailure): DeadLetter => ({
  _tag: "DeadLetter",
  id,
  version,
  failure,
  isAttempt: false,
  entry: { kind: "dead-lettered", at: now, failure }
})

/** It was running each time its process died. */
export const crashLoop = (job: ReadyJob, now: number): Settlement =>
  deadLetter(job, now, toFailure(new CrashLoop({ crashes: job.crashes }), { class: "System" }))

/** It was not started in time. */
export const expired = ({ id, version }: ReadyJob, now: number, retention: Retention): Finish => ({
  _tag: "Finish",
  id,
  version,
  outcome: "expired",
  result: undefined,
  purgeAt: now + retention.expiredMs,
  entry: { kind: "expired", at: now }
})

/** Cancelled before it was started. */
export const cancelled = (
  { id, version }: ReadyJob,
  now: number,
  retention: Retention,
  by: string | undefined
): Finish => ({
  _tag: "Finish",
  id,
  version,
  outcome: "cancelled",
  result: undefined,
  purgeAt: now + retention.cancelledMs,
  entry: { kind: "cancelled", at: now, ...(by === undefined ? {} : { by }) }
})

/**
 * Nothing here runs its type. It is put back, for ever longer, and given up after the grace period: counted from the moment the type was
 * first missed in this process, or from the job's own being ready if that came later.
 */
export const withoutHandler = (job: ReadyJob, now: number, missingForMs: number, graceMs: number): Settlement => {
  const readySince = fromStored(job.context, tenantId(job.tenant)).scheduledFor ?? job.createdAt
  const waited = Math.max(Math.min(missingForMs, now - readySince), 0)
  if (waited >= graceMs) {
    return deadLetter(job, now, toFailure(new HandlerMissing({ type: job.type, graceMs }), { class: "Permanent" }))
  }
  const dueAt = now + Math.min(Math.max(waited, 1_000), 30_000, Math.max(graceMs - waited, 1_000))
  const { id, type, version } = job
  const failure: JobFailure = {
    class: "Permanent",
    tag: "HandlerMissing",
    message: `no handler for "${type}" here yet`
  }
  return { _tag: "PutBack", id, version, dueAt, entry: { kind: "put back", at: now, dueAt, failure } }
}

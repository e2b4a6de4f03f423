/**
 * Tells the bus and the metrics what has been committed: the one place that turns a settlement into events.
 */
import * as Effect from "effect/Effect"
import type { EventBus } from "../EventBus.ts"
import type { JobFailure } from "../JobError.ts"
import * as JobEvent from "../JobEvent.ts"
import * as JobMetrics from "../JobMetrics.ts"
import { type Finish, type ReadyJob, type Settlement, tenantId } from "../JobStore.ts"
import * as RequestContext from "../RequestContext.ts"

/** Announces for one queue. */
export interface Announcer {
  readonly started: (job: ReadyJob, at: number) => Effect.Effect<void>
  readonly progressed: (job: ReadyJob, at: number, progress: number, message: string | undefined) => Effect.Effect<void>
  readonly settled: (job: ReadyJob, settlement: Settlement, at: number) => Effect.Effect<void>
}

/** Publishes. A bus of someone else's may fail: what it would have told is committed all the same. */
export const tell = (bus: EventBus["Service"]) => (event: JobEvent.JobEvent): Effect.Effect<void> =>
  Effect.catchCause(
    Effect.suspend(() => bus.publish(event)),
    (cause) => Effect.logError("The event bus failed; its subscribers missed an event", cause)
  )

/** An announcer of one queue's jobs. */
export const make = (bus: EventBus["Service"], queue: string): Announcer => {
  const publish = tell(bus)
  const common = (job: ReadyJob, at: number) => {
    const tenant = tenantId(job.tenant)
    return { jobId: job.id, type: job.type, queue, at, ...(tenant === undefined ? {} : { tenantId: tenant }) }
  }

  /** Only a row that was not moved yet (but for becoming due) is started for the first time. */
  const firstWait = (job: ReadyJob, at: number): Effect.Effect<void> => {
    const { scheduledFor } = RequestContext.fromStored(job.context, tenantId(job.tenant))
    return job.version === (scheduledFor === undefined ? 0 : 1)
      ? JobMetrics.onStarted(job.type, queue, at - (scheduledFor ?? job.createdAt))
      : Effect.void
  }

  const finish = (job: ReadyJob, { entry, outcome }: Finish, at: number): JobEvent.JobEvent => {
    switch (outcome) {
      case "completed":
        return new JobEvent.JobCompleted({ ...common(job, at), attempt: job.attempt + 1 })
      case "cancelled":
        return new JobEvent.JobCancelled({ ...common(job, at), ...(entry.by === undefined ? {} : { by: entry.by }) })
      case "expired":
        return new JobEvent.JobExpired(common(job, at))
    }
  }

  const events = (job: ReadyJob, settlement: Settlement, at: number): ReadonlyArray<JobEvent.JobEvent> => {
    const attempt = job.attempt + 1
    const failure = settlement.entry.failure
    switch (settlement._tag) {
      case "Finish":
        return [finish(job, settlement, at)]
      case "Retry":
        return [
          ...(failure === undefined ? [] : [new JobEvent.JobFailed({ ...common(job, at), attempt, failure })]),
          new JobEvent.JobRetried({ ...common(job, at), attempt, dueAt: settlement.dueAt })
        ]
      case "DeadLetter":
        return [
          ...(settlement.isAttempt
            ? [new JobEvent.JobFailed({ ...common(job, at), attempt, failure: settlement.failure })]
            : []),
          new JobEvent.JobDeadLettered({ ...common(job, at), attempt, failure: settlement.failure })
        ]
      case "PutBack":
        return []
    }
  }

  const count = (job: ReadyJob, settlement: Settlement): Effect.Effect<void> => {
    switch (settlement._tag) {
      case "Finish":
        return JobMetrics.onFinished(job.type, queue, settlement.outcome)
      case "Retry":
        return JobMetrics.onRetried(job.type, queue, settlement.entry.failure?.class ?? "System")
      case "DeadLetter":
        return Effect.andThen(
          JobMetrics.onFinished(job.type, queue, "failed"),
          JobMetrics.onDeadLettered(job.type, queue, settlement.failure.class)
        )
      case "PutBack":
        return Effect.void
    }
  }

  const logDeadLetter = (job: ReadyJob, { class: errorClass, message, tag }: JobFailure) =>
    Effect.logWarning(`Job ${job.id} (${job.type}) is a dead letter: ${message === "" ? tag : `${tag}: ${message}`}`)
      .pipe(
        Effect.annotateLogs({ queue, errorClass, attempt: job.attempt + 1 })
      )

  return {
    started: (job, at) =>
      Effect.andThen(
        firstWait(job, at),
        publish(new JobEvent.JobStarted({ ...common(job, at), attempt: job.attempt + 1 }))
      ),
    progressed: (job, at, progress, message) =>
      publish(
        new JobEvent.JobProgressed({
          ...common(job, at),
          attempt: job.attempt + 1,
          progress,
          ...(message === undefined ? {} : { message })
        })
      ),
    settled: (job, settlement, at) => {
      const { entry } = settlement
      return Effect.all([
        settlement._tag === "DeadLetter" ? logDeadLetter(job, settlement.failure) : Effect.void,
        count(job, settlement),
        entry.kind === "attempt"
          ? JobMetrics.onEnded(job.type, queue, entry.endedAt - entry.startedAt)
          : Effect.void,
        ...events(job, settlement, at).map(publish)
      ], { discard: true })
    }
  }
}

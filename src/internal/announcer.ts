/**
 * Tells the bus and the metrics what has been committed: the one place that turns a settlement into events.
 */
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type { EventBus } from "../EventBus.ts"
import type { JobFailure } from "../JobError.ts"
import * as JobEvent from "../JobEvent.ts"
import * as JobMetrics from "../JobMetrics.ts"
import { type Finish, type ReadyJob, type Settlement, tenantId } from "../JobStore.ts"
import { inspectableCause } from "./words/safely.ts"

/**
 * Announces for one queue. What is counted is counted at once; what is left to be told is an effect, and most often nothing: `undefined`
 * where nobody listens.
 */
export interface Announcer {
  /** `scheduledFor`: when the job was to start, if not at once. */
  readonly started: (job: ReadyJob, at: number, scheduledFor: number | undefined) => Effect.Effect<void> | undefined
  readonly progressed: (job: ReadyJob, at: number, progress: number, message: string | undefined) => Effect.Effect<void>
  /** A run that its process did not outlive. */
  readonly crashed: (type: string) => void
  readonly settled: (job: ReadyJob, settlement: Settlement, at: number) => Effect.Effect<void> | undefined
  /** An attempt is abandoned: so many handlers of abandoned ones of its type run now. */
  readonly abandoned: (job: ReadyJob, running: number) => void
  /** The handler of an abandoned attempt has ended. */
  readonly abandonedEnded: (job: ReadyJob, running: number) => void
}

/** Publishes. A bus of someone else's may fail: what it would have told is committed all the same. */
export const tell = (bus: EventBus["Service"]) => (event: JobEvent.JobEvent): Effect.Effect<void> =>
  Effect.catchCause(
    Effect.suspend(() => bus.publish(event)),
    (cause) => Effect.logError("The event bus failed; its subscribers missed an event", inspectableCause(cause))
  )

/** Events that cannot be made are missed, and nothing else. */
const telling = (effect: Effect.Effect<void>): Effect.Effect<void> =>
  Effect.catchCause(effect, (cause) => Effect.logError("An event could not be made", inspectableCause(cause)))

/** Whether an event published now would be heard. */
export const isHeard = (bus: EventBus["Service"], tag?: JobEvent.JobEvent["_tag"]): boolean =>
  bus.hasSubscribers?.(tag) ?? true

/** An announcer of one queue's jobs. `context` holds the registry of metrics. */
export const make = (bus: EventBus["Service"], queue: string, context: Context.Context<never>): Announcer => {
  const publish = tell(bus)
  const metrics = JobMetrics.recorder(queue, context)
  const common = (job: ReadyJob, at: number) => {
    const tenant = tenantId(job.tenant)
    return { jobId: job.id, type: job.type, queue, at, ...(tenant === undefined ? {} : { tenantId: tenant }) }
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
      case "Rerun":
        return []
    }
  }

  const count = (job: ReadyJob, settlement: Settlement): void => {
    const { entry } = settlement
    switch (settlement._tag) {
      case "Finish":
        metrics.finished(job.type, settlement.outcome)
        break
      case "Retry":
        metrics.retried(job.type, entry.failure?.class ?? "System")
        break
      case "DeadLetter":
        metrics.finished(job.type, "failed")
        metrics.deadLettered(job.type, settlement.failure.class)
        break
      case "Rerun":
        metrics.rerun(job.type, settlement.isCrash ? "crash" : "rerun")
        break
      case "PutBack":
        break
    }
    if (entry.kind === "attempt") metrics.ended(job.type, entry.endedAt - entry.startedAt)
  }

  const logDeadLetter = (job: ReadyJob, { class: errorClass, message, tag }: JobFailure) =>
    Effect.logWarning(`Job ${job.id} (${job.type}) is a dead letter: ${message === "" ? tag : `${tag}: ${message}`}`)
      .pipe(
        Effect.annotateLogs({ queue, errorClass, attempt: job.attempt + 1 })
      )

  return {
    started: (job, at, scheduledFor) => {
      // Only a row that was not moved yet (but for becoming due) is started for the first time.
      if (job.version === (scheduledFor === undefined ? 0 : 1)) {
        metrics.started(job.type, at - (scheduledFor ?? job.createdAt))
      }
      return isHeard(bus, "JobStarted")
        ? publish(new JobEvent.JobStarted({ ...common(job, at), attempt: job.attempt + 1 }))
        : undefined
    },
    progressed: (job, at, progress, message) =>
      publish(
        new JobEvent.JobProgressed({
          ...common(job, at),
          attempt: job.attempt + 1,
          progress,
          ...(message === undefined ? {} : { message })
        })
      ),
    abandoned: ({ type }, running) => {
      metrics.abandoned(type)
      metrics.abandonedRunning(type, running)
    },
    abandonedEnded: ({ type }, running) => metrics.abandonedRunning(type, running),
    crashed: (type) => metrics.rerun(type, "crash"),
    settled: (job, settlement, at) => {
      count(job, settlement)
      const told = isHeard(bus)
        ? telling(Effect.suspend(() => Effect.forEach(events(job, settlement, at), publish, { discard: true })))
        : undefined
      if (settlement._tag !== "DeadLetter") return told
      return Effect.andThen(logDeadLetter(job, settlement.failure), told ?? Effect.void)
    }
  }
}

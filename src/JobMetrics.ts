/**
 * What Millrace counts and measures, with Effect's `Metric`. Names and attributes are promises to dashboards.
 */
import type * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import type { Outcome } from "./JobState.ts"

const attributes = (type: string, queue: string) => ({ type, queue })

/** Jobs stored by `submit`. Attributes: type, queue. */
export const submitted = Metric.counter("millrace_jobs_submitted", {
  description: "Jobs stored by submit",
  incremental: true
})

/** Jobs that ended, by `outcome`: completed, failed, cancelled, expired. Attributes: type, queue, outcome. */
export const finished = Metric.counter("millrace_jobs_finished", {
  description: "Jobs that reached a final state",
  incremental: true
})

/** Failed attempts that will be tried again. Attributes: type, queue, class. */
export const retried = Metric.counter("millrace_job_retries", {
  description: "Failed attempts that are tried again",
  incremental: true
})

/** Jobs that became dead letters. Attributes: type, queue, class. */
export const deadLettered = Metric.counter("millrace_dead_letters", {
  description: "Jobs that became dead letters",
  incremental: true
})

const milliseconds = [
  1,
  2,
  5,
  10,
  25,
  50,
  100,
  250,
  500,
  1_000,
  2_500,
  5_000,
  10_000,
  30_000,
  60_000,
  300_000,
  3_600_000
]

/** From being ready for the first time to the first line of the handler, in milliseconds. Attributes: type, queue. */
export const waitTime = Metric.histogram("millrace_job_wait_ms", {
  description: "Milliseconds from ready to the first start",
  boundaries: milliseconds
})

/** How long an attempt ran, in milliseconds. Attributes: type, queue. */
export const runTime = Metric.histogram("millrace_job_run_ms", {
  description: "Milliseconds that an attempt ran",
  boundaries: milliseconds
})

/** Attempts running now. Attributes: queue, partition. */
export const inFlight = Metric.gauge("millrace_jobs_in_flight", { description: "Attempts running now" })

/** Ready jobs of a lane, counted by the owner every few seconds up to 10,000. Attributes: queue, partition, lane. */
export const depth = Metric.gauge("millrace_lane_depth", { description: "Ready jobs waiting in a lane" })

/** Counts stored jobs. */
export const onSubmitted = (type: string, queue: string, count: number): Effect.Effect<void> =>
  Metric.update(Metric.withAttributes(submitted, attributes(type, queue)), count)

/** Counts a final state. */
export const onFinished = (type: string, queue: string, outcome: Outcome | "failed"): Effect.Effect<void> =>
  Metric.update(Metric.withAttributes(finished, { ...attributes(type, queue), outcome }), 1)

/** Counts a retry. */
export const onRetried = (type: string, queue: string, errorClass: string): Effect.Effect<void> =>
  Metric.update(Metric.withAttributes(retried, { ...attributes(type, queue), class: errorClass }), 1)

/** Counts a dead letter. */
export const onDeadLettered = (type: string, queue: string, errorClass: string): Effect.Effect<void> =>
  Metric.update(Metric.withAttributes(deadLettered, { ...attributes(type, queue), class: errorClass }), 1)

/** Records how long a job waited. */
export const onStarted = (type: string, queue: string, waitedMs: number): Effect.Effect<void> =>
  Metric.update(Metric.withAttributes(waitTime, attributes(type, queue)), Math.max(waitedMs, 0))

/** Records how long an attempt ran. */
export const onEnded = (type: string, queue: string, ranMs: number): Effect.Effect<void> =>
  Metric.update(Metric.withAttributes(runTime, attributes(type, queue)), Math.max(ranMs, 0))

/** Sets how many attempts run. */
export const setInFlight = (queue: string, partition: number, count: number): Effect.Effect<void> =>
  Metric.update(Metric.withAttributes(inFlight, { queue, partition: String(partition) }), count)

/** Sets a lane's depth. */
export const setDepth = (queue: string, partition: number, lane: string, count: number): Effect.Effect<void> =>
  Metric.update(Metric.withAttributes(depth, { queue, partition: String(partition), lane }), count)

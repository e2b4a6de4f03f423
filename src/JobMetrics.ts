/**
 * What Millrace counts and measures, with Effect's `Metric`. Names and attributes are promises to dashboards.
 */
import type * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import type { Outcome } from "./JobState.ts"

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

/** Runs that ended without counting as an attempt and run again. Attributes: type, queue, `counts`: rerun or crash. */
export const rerun = Metric.counter("millrace_job_reruns", {
  description: "Runs that count as no attempt and run again",
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

/** Attempts whose handler did not end when it was interrupted. Attributes: type, queue. */
export const abandoned = Metric.counter("millrace_attempts_abandoned", {
  description: "Attempts whose handler did not end when it was interrupted",
  incremental: true
})

/** Handlers of abandoned attempts that still run. Attributes: type, queue. */
export const abandonedRunning = Metric.gauge("millrace_attempts_abandoned_running", {
  description: "Handlers of abandoned attempts that still run"
})

/** Ready jobs of a lane, counted by the owner every few seconds up to 10,000. Attributes: queue, partition, lane. */
export const depth = Metric.gauge("millrace_lane_depth", { description: "Ready jobs waiting in a lane" })

// Series are looked up by type and queue for every job: what `withAttributes` makes is kept. Types are any text, so not for ever.
const maxSeries = 10_000

const memo = <Input, State>(metric: Metric.Metric<Input, State>, names: ReadonlyArray<string>) => {
  const series = new Map<string, Metric.Metric<Input, State>>()
  return (...values: ReadonlyArray<string>): Metric.Metric<Input, State> => {
    const key = values.length === 1 ? values[0] ?? "" : values.join("\0")
    const known = series.get(key)
    if (known !== undefined) return known
    if (series.size >= maxSeries) series.clear()
    const made = Metric.withAttributes(
      metric,
      Object.fromEntries(names.map((name, index) => [name, values[index] ?? ""]))
    )
    series.set(key, made)
    return made
  }
}

const submittedOf = memo(submitted, ["type", "queue"])
const finishedOf = memo(finished, ["type", "queue", "outcome"])
const retriedOf = memo(retried, ["type", "queue", "class"])
const rerunOf = memo(rerun, ["type", "queue", "counts"])
const deadLetteredOf = memo(deadLettered, ["type", "queue", "class"])
const waitTimeOf = memo(waitTime, ["type", "queue"])
const runTimeOf = memo(runTime, ["type", "queue"])
const abandonedOf = memo(abandoned, ["type", "queue"])
const abandonedRunningOf = memo(abandonedRunning, ["type", "queue"])
const inFlightOf = memo(inFlight, ["queue", "partition"])
const depthOf = memo(depth, ["queue", "partition", "lane"])

/** Counts stored jobs. */
export const onSubmitted = (type: string, queue: string, count: number): Effect.Effect<void> =>
  Metric.update(submittedOf(type, queue), count)

/** Counts a final state. */
export const onFinished = (type: string, queue: string, outcome: Outcome | "failed"): Effect.Effect<void> =>
  Metric.update(finishedOf(type, queue, outcome), 1)

/** Sets how many attempts run. */
export const setInFlight = (queue: string, partition: number, count: number): Effect.Effect<void> =>
  Metric.update(inFlightOf(queue, String(partition)), count)

/** Sets a lane's depth. */
export const setDepth = (queue: string, partition: number, lane: string, count: number): Effect.Effect<void> =>
  Metric.update(depthOf(queue, String(partition), lane), count)

/** What is recorded of every job: at once, into the registry of `context`. */
export interface Recorder {
  /** Counts a final state. */
  readonly finished: (type: string, outcome: Outcome | "failed") => void
  /** Counts a retry. */
  readonly retried: (type: string, errorClass: string) => void
  /** Counts a run that counts as no attempt. */
  readonly rerun: (type: string, counts: "rerun" | "crash") => void
  /** Counts a dead letter. */
  readonly deadLettered: (type: string, errorClass: string) => void
  /** How long a job waited. */
  readonly started: (type: string, waitedMs: number) => void
  /** How long an attempt ran. */
  readonly ended: (type: string, ranMs: number) => void
  /** Counts an abandoned attempt. */
  readonly abandoned: (type: string) => void
  /** How many handlers of abandoned attempts still run. */
  readonly abandonedRunning: (type: string, count: number) => void
}

/** A recorder for the jobs of one queue. */
export const recorder = (queue: string, context: Context.Context<never>): Recorder => {
  const completedOf = byType((type) => finishedOf(type, queue, "completed"))
  const waitOf = byType((type) => waitTimeOf(type, queue))
  const runOf = byType((type) => runTimeOf(type, queue))
  return {
    finished: (type, outcome) =>
      (outcome === "completed" ? completedOf(type) : finishedOf(type, queue, outcome)).updateUnsafe(1, context),
    retried: (type, errorClass) => retriedOf(type, queue, errorClass).updateUnsafe(1, context),
    rerun: (type, counts) => rerunOf(type, queue, counts).updateUnsafe(1, context),
    deadLettered: (type, errorClass) => deadLetteredOf(type, queue, errorClass).updateUnsafe(1, context),
    started: (type, waitedMs) => waitOf(type).updateUnsafe(Math.max(waitedMs, 0), context),
    ended: (type, ranMs) => runOf(type).updateUnsafe(Math.max(ranMs, 0), context),
    abandoned: (type) => abandonedOf(type, queue).updateUnsafe(1, context),
    abandonedRunning: (type, count) => abandonedRunningOf(type, queue).updateUnsafe(count, context)
  }
}

/** Most jobs are of the type of the one before. */
const byType = <A>(make: (type: string) => A): (type: string) => A => {
  let last: { readonly type: string; readonly made: A } | undefined
  return (type) => {
    if (last?.type !== type) last = { type, made: make(type) }
    return last.made
  }
}

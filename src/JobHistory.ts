/**
 * What happened to a job: one stored entry an attempt (or a replay, a cancellation, ...), written when it ends.
 *
 * A job keeps its first and last 20 entries. {@link transitions} unfolds them into the moves of JobState.
 */
import * as Schema from "effect/Schema"
import { JobFailure } from "./JobError.ts"
import { JobId } from "./JobId.ts"
import type { JobState, Move } from "./JobState.ts"

/** Times are milliseconds since 1970. */
const Millis = Schema.Finite

/** How one attempt ended. `attempt` counts from 1; a run that is not counted as one (interrupted, crashed, snoozed) has the number of the next. */
export const Attempt = Schema.Struct({
  kind: Schema.Literal("attempt"),
  attempt: Schema.Int,
  startedAt: Millis,
  endedAt: Millis,
  runner: Schema.String,
  traceId: Schema.optionalKey(Schema.String),
  spanId: Schema.optionalKey(Schema.String),
  outcome: Schema.Literals([
    "completed",
    "retried",
    "dead-lettered",
    "put back",
    "cancelled",
    "interrupted",
    "crashed"
  ]),
  /** When the job is due again, after `retried` and `put back`. */
  dueAt: Schema.optionalKey(Millis),
  /** The abandoned run that still ran when this one started: of a job of the same key, or of this job. */
  alongside: Schema.optionalKey(JobId),
  /** Who cancelled it (a user id). */
  by: Schema.optionalKey(Schema.String),
  failure: Schema.optionalKey(JobFailure)
})

/** How one attempt ended. */
export type Attempt = typeof Attempt.Type

/** Why a run ended that its process did not outlive. */
export const processDied: JobFailure = {
  class: "System",
  tag: "ProcessDied",
  message: "the process of this run died, or stalled until another one took over"
}

/** Something that happened to the job between attempts. */
export const Note = Schema.Struct({
  kind: Schema.Literals(["replayed", "cancelled", "expired", "put back", "dead-lettered"]),
  at: Millis,
  /** Who did it (a user id), absent for the system. */
  by: Schema.optionalKey(Schema.String),
  dueAt: Schema.optionalKey(Millis),
  failure: Schema.optionalKey(JobFailure)
})

/** Something that happened to the job between attempts. */
export type Note = typeof Note.Type

/** One entry of `history`. */
export const Entry = Schema.Union([Attempt, Note])

/** One entry of `history`. */
export type Entry = typeof Entry.Type

/** How many entries are kept at each end. */
export const kept = 20

/** Adds an entry, keeping the first and last {@link kept}. The SQL does the same: `history - 20` where 40 are there. */
export const append = (history: ReadonlyArray<Entry>, entry: Entry): ReadonlyArray<Entry> =>
  history.length < 2 * kept ? [...history, entry] : [...history.toSpliced(kept, 1), entry]

/** A move of the job, as `status` tells it. */
export interface Moved {
  readonly move: Move
  readonly to: JobState
  readonly at: number
  readonly attempt?: number
  readonly runner?: string
  readonly traceId?: string
  readonly spanId?: string
  /** The abandoned run that still ran when this one started: of a job of the same key, or of this job. */
  readonly alongside?: JobId
  readonly by?: string
  readonly dueAt?: number
  readonly failure?: JobFailure
}

const states = {
  completed: "completed",
  retried: "retrying",
  "dead-lettered": "failed",
  "put back": "scheduled",
  cancelled: "cancelled",
  interrupted: "queued",
  crashed: "queued",
  expired: "expired",
  replayed: "queued"
} as const

const unfold = (entry: Entry): ReadonlyArray<Moved> => {
  if (entry.kind !== "attempt") {
    const { kind, ...rest } = entry
    return [{ move: kind, to: states[kind], ...rest }]
  }
  const { attempt, by, dueAt, endedAt, failure, kind: _, outcome, startedAt, ...where } = entry
  return [
    { move: "started", to: "running", at: startedAt, attempt, ...where },
    {
      move: outcome,
      to: states[outcome],
      at: endedAt,
      attempt,
      ...where,
      ...(by === undefined ? {} : { by }),
      ...(dueAt === undefined ? {} : { dueAt }),
      ...(failure === undefined ? {} : { failure })
    }
  ]
}

/** The moves of a job in order, from its submission on. Becoming due is not stored: the next start shows it. */
export const transitions = (job: {
  readonly createdAt: number
  readonly scheduledFor: number | undefined
  readonly history: ReadonlyArray<Entry>
}): ReadonlyArray<Moved> => [
  job.scheduledFor === undefined
    ? { move: "submitted", to: "queued", at: job.createdAt }
    : { move: "submitted", to: "scheduled", at: job.createdAt, dueAt: job.scheduledFor },
  ...job.history.flatMap(unfold)
]

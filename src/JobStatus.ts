/**
 * How a job stands, as `Jobs.status` tells it.
 */
import type { JobFailure } from "./JobError.ts"
import type { Moved } from "./JobHistory.ts"
import type { BatchId, JobId } from "./JobId.ts"
import type { JobState } from "./JobState.ts"
import type { Lane } from "./Priority.ts"
import type { RequestContext } from "./RequestContext.ts"

/** How a job stands. Times are milliseconds since 1970. */
export interface JobStatus<Success = unknown, Failure = unknown> {
  readonly jobId: JobId
  readonly type: string
  readonly queue: string
  readonly state: JobState
  /** Attempts that have ended and counted. */
  readonly attempts: number
  /** Runs that ended with the death of their process, or of their database session while a statement was in flight. */
  readonly crashes: number
  /** Runs that were broken off and count neither as an attempt nor as a crash: a shutdown, lost ownership, a conflict, a server that could not do the work. */
  readonly reruns: number
  readonly priority: Lane | undefined
  readonly dedupeKey: string | undefined
  readonly batchId: BatchId | undefined
  /** Who asked for it. */
  readonly request: RequestContext
  readonly submittedAt: number
  /** When it is due, for `scheduled` and `retrying`. */
  readonly dueAt: number | undefined
  /** Since when it runs, for `running`. */
  readonly startedAt: number | undefined
  readonly endedAt: number | undefined
  readonly progress: { readonly fraction: number; readonly message: string | undefined } | undefined
  /** The result of a `completed` job. */
  readonly result: Success | undefined
  /** Why a `failed` job failed. */
  readonly failure: JobFailure | undefined
  /** The typed error of a `failed` job, where its definition names it. */
  readonly error: Failure | undefined
  /**
   * The moves, from the submission on. Not in it: becoming due (the next start shows it), and, past 40 entries, those between the first and
   * the last 20.
   */
  readonly history: ReadonlyArray<Moved>
}

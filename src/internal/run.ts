/**
 * What is known of one attempt under way, from its start until its outcome is written down, and of all that an ownership has so.
 *
 * None of it is stored but the note of a long run (`running_jobs`), which is what a crash is counted from.
 */
import type * as Deferred from "effect/Deferred"
import type * as Fiber from "effect/Fiber"
import type * as Execution from "../Execution.ts"
import type { Handler } from "../JobHandlers.ts"
import type { JobId } from "../JobId.ts"
import type { ReadyJob, Settlement } from "../JobStore.ts"

/** One attempt under way, until its outcome is written down. */
export interface Run {
  readonly job: ReadyJob
  readonly handler: Handler
  readonly startedAt: number
  /** By the real clock, to see which runs are long. */
  readonly startedLive: number
  progress: number | undefined
  message: string | undefined
  notedAt: number | undefined
  isNoteDue: boolean
  /** What its attempt is told from outside, and the attempt. */
  readonly control: Execution.Control
  /** Its handler is under way, or about to be. */
  isAttempting: boolean
  /** Its handler does not end: it is waited for no more. */
  isAbandoned: boolean
  /** Why it was interrupted: it is cancelled for good, or stopped to run again elsewhere. */
  ending: { readonly _tag: "Cancel"; readonly by: string | undefined } | { readonly _tag: "Stop" } | undefined
  /** Runs the handler, and after that whatever takes longer to settle: interrupting it then cuts short its pauses. */
  fiber: Fiber.Fiber<unknown> | undefined
  /** Whether it still takes up one of the queue's places. */
  isInPlace: boolean
  /** How it was settled, for those who wait for it; `undefined` when its row was left alone. */
  ended: Deferred.Deferred<Settlement | undefined> | undefined
}

/** The runs of one ownership. */
export interface Runs {
  /** Those whose outcome is not written down yet. */
  readonly byId: Map<JobId, Run>
  /** How many take up one of the queue's places. */
  inPlace: number
  /** Ended ones whose note is still stored. */
  readonly doneNotes: Set<JobId>
}

/**
 * What a handler knows of the job it runs.
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { JobId } from "./JobId.ts"
import type { RequestContext } from "./RequestContext.ts"

/** The job being run, as its handler sees it. */
export interface Service {
  /** Also the idempotency key for calls to other systems: the same in every attempt and after a replay. */
  readonly jobId: JobId
  readonly type: string
  readonly queue: string
  /** This attempt's number, from 1. */
  readonly attempt: number
  /** Milliseconds since 1970. */
  readonly submittedAt: number
  /** Who asked for the work, with the cluster position of this attempt. */
  readonly request: RequestContext
  /**
   * Reports how far the handler is: a fraction from 0 to 1, anything outside is clamped. Never waits and never fails; visible in `status`
   * within a second, and kept outside of the handler's transaction.
   */
  readonly progress: (fraction: number, message?: string) => Effect.Effect<void>
}

/** The job being run. Provided to every handler. */
export class CurrentJob extends Context.Service<CurrentJob, Service>()("millrace/CurrentJob") {}

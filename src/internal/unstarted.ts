/**
 * Settles jobs that no attempt is made of: expired, cancelled, given up, or put back for want of a handler.
 *
 * Promise: a job is held until its outcome is confirmed, and is read again where another one is. A crash leaves its row, or the outcome.
 */
import * as Effect from "effect/Effect"
import type { JobStore, ReadyJob, Settlement } from "../JobStore.ts"
import type { Announcer } from "./announcer.ts"
import type { Cancels } from "./cancels.ts"
import type { PartitionState } from "./partitionState.ts"

/** Answers whether the settlement is what was written. */
export type Settle = (job: ReadyJob, settlement: Settlement) => Effect.Effect<boolean>

/** Settles for one partition. */
export const make = (options: {
  readonly state: PartitionState
  readonly store: JobStore["Service"]
  readonly announcer: Announcer
  readonly cancels: Cancels
}): Settle => {
  const { announcer, cancels, state, store } = options
  const { intakeDue, release, timerDue } = state
  return (job, settlement) =>
    Effect.suspend(() => {
      if (state.owned === undefined) return Effect.succeed(false)
      return Effect.flatMap(state.owned.settler.settle(settlement), (answer) =>
        Effect.gen(function*() {
          // Whatever moved the row: reading it again shows what is left of it.
          if (typeof answer === "string") {
            release(job, answer === "superseded")
            return false
          }
          release(job, false)
          intakeDue.openUnsafe()
          if (answer._tag === "PutBack") timerDue.openUnsafe()
          else cancels.forget(job.id)
          yield* announcer.settled(job, answer, yield* store.now) ?? Effect.void
          return answer === settlement
        }))
    })
}

/**
 * What a partition does when handlers come and go: what waited for one starts, and what runs by one that goes has its grace.
 *
 * Promise: nothing starts by a handler that is going. None of it is written: a crash leaves live rows.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Observer } from "../JobHandlers.ts"
import type { ReadyJob } from "../JobStore.ts"
import * as Grace from "./grace.ts"
import type { PartitionState } from "./partitionState.ts"
import { onLiveClock } from "./time/liveClock.ts"
import { told } from "./told.ts"

/** Hears of the handlers of this process. */
export interface HandlerChanges extends Observer {
  /** Whether the job may start: the handler of its type is not going. */
  readonly stays: (job: ReadyJob) => boolean
}

/** For one ownership. `end` ends the attempts of the types that go. */
export const make = (options: {
  readonly state: PartitionState
  readonly end: Grace.End
  /** The partition's entity id. */
  readonly entity: string
  readonly loops: Scope.Scope
}): HandlerChanges => {
  const { end, entity, loops, state } = options
  const { dispatchDue, offer, parking } = state
  // Mostly the whole process is going, and then its waiting jobs need no write at all.
  const leaving = new Set<string>()
  let leavingNow = 0

  /** The process goes on after all: jobs of the types that went are taken again, and put back. */
  const stay = Effect.gen(function*() {
    yield* onLiveClock(Effect.sleep(Duration.millis(Grace.togetherMs)))
    if (leavingNow > 0) return
    leaving.clear()
    dispatchDue.openUnsafe()
  })

  return {
    stays: (job) => leaving.size === 0 || !leaving.has(job.type),
    added: (type) => {
      for (const job of parking.unpark(type)) offer(job)
      dispatchDue.openUnsafe()
    },
    removed: (type) =>
      Effect.suspend(() => {
        if (state.owned === undefined) return Effect.void
        leaving.add(type)
        // Those that wait to run alone hold back nobody meanwhile.
        for (const job of state.owned.suspects.withdraw((one) => one.type === type)) offer(job)
        leavingNow++
        return Effect.ensuring(
          end({
            attempts: state.owned.attempts,
            choose: (run) => run.job.type === type,
            tell: (most, count) =>
              told(Effect.logInfo(
                `The handler of jobs of type "${type}" goes: waiting up to ${most} for ${count} running by it in ${entity}`
              ))
          }),
          Effect.suspend(() => {
            leavingNow--
            return Effect.forkIn(stay, loops)
          })
        )
      })
  }
}

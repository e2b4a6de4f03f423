/**
 * How one partition starts jobs: takes the next one from the mailbox, and starts its attempt or does what it needs instead.
 *
 * Promise: nothing starts where the lock is not surely held. A crash on any line leaves a live row, which the next owner reads.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { JobHandlers } from "../JobHandlers.ts"
import * as JobMetrics from "../JobMetrics.ts"
import type { JobQueue } from "../JobQueue.ts"
import type { JobStore, ReadyJob } from "../JobStore.ts"
import { crashLimit } from "./accounting.ts"
import type { Attempts } from "./attempts.ts"
import type { Cancels } from "./cancels.ts"
import type { PartitionState } from "./partitionState.ts"
import type { Lock } from "./supervisor.ts"
import * as Suspects from "./suspects.ts"
import { liveClock } from "./time/liveClock.ts"
import type { Settle } from "./unstarted.ts"
import * as Verdict from "./verdict.ts"

/** How long after an unclean take-over every attempt is noted before it starts. */
const carefulMs = 60_000
const atOnce = 64

/** The loop that starts the jobs of one ownership: one turn, which waits until there may be something to start. */
export const make = (options: {
  readonly state: PartitionState
  readonly attempts: Attempts
  readonly cancels: Cancels
  readonly suspects: Suspects.Suspects
  /** Those of this partition. */
  readonly ownSuspects: Suspects.OwnSuspects
  readonly store: JobStore["Service"]
  readonly handlers: JobHandlers["Service"]
  readonly lock: Lock
  readonly queue: JobQueue
  readonly partition: number
  readonly settle: Settle
  /** Whether the job may start, as far as the handlers that are going are concerned. */
  readonly stays: (job: ReadyJob) => boolean
  /** Whether the owner before has left without a word. */
  readonly isCareful: boolean
  /** What has to be written down runs here, while the next ones start. */
  readonly loops: Scope.Scope
}): Effect.Effect<void> => {
  const { attempts, cancels, handlers, lock, loops, partition, ownSuspects, queue, settle, state, stays, store } =
    options
  const { suspects } = options
  const { dispatchDue, intakeDue, mailbox, parking, release } = state
  const carefulUntil = options.isCareful ? liveClock.currentTimeMillisUnsafe() + carefulMs : 0

  /** Starts the job, or does what it needs instead: then there is something left to do. */
  const begin = (job: ReadyJob, now: number): Effect.Effect<unknown> | undefined => {
    const cancel = cancels.of(job.id)
    if (cancel !== undefined) {
      ownSuspects.withdraw((one) => one.id === job.id)
      return Effect.forkIn(settle(job, Verdict.cancelled(job, now, queue.retention, cancel.by)), loops)
    }
    if (job.crashes >= crashLimit) return Effect.forkIn(settle(job, Verdict.crashLoop(job, now)), loops)
    if (job.attempt === 0 && job.crashes === 0 && job.expiresAt !== undefined && job.expiresAt <= now) {
      return Effect.forkIn(settle(job, Verdict.expired(job, now, queue.retention)), loops)
    }
    const handler = handlers.get(job.type)
    if (handler === undefined) {
      ownSuspects.withdraw((one) => one.id === job.id)
      parking.park(job)
      return undefined
    }
    if (Suspects.isSuspect(job) && !ownSuspects.start(job)) return undefined
    const isCareful = job.crashes > 0 || liveClock.currentTimeMillisUnsafe() < carefulUntil
    attempts.start(job, handler, now, isCareful)
    return undefined
  }

  /** Every job comes this way, also one taken from its submitter's hand: after a pause of the process nothing starts. */
  const next = (): ReadyJob | undefined => {
    if (state.isStopping || !attempts.hasPlace() || !lock.isHeld()) return undefined
    if (!suspects.isActive) return mailbox.take(stays)
    const suspect = ownSuspects.next()
    return suspect !== undefined || ownSuspects.isHeldBack() ? suspect : mailbox.take(stays)
  }

  /** At most so many: what they have to write leaves for the database while the next ones run. Answers whether there may be more. */
  const dispatch = (now: number) =>
    Effect.suspend(() => {
      const others: Array<Effect.Effect<unknown>> = []
      let job: ReadyJob | undefined
      const started = Effect.suspend(() => {
        for (let count = 0; count < atOnce; count++) {
          job = next()
          if (job === undefined) break
          const other = begin(job, now)
          if (other !== undefined) others.push(other)
        }
        const isMore = job !== undefined
        // Begun: from here on it is not this turn's to give back.
        job = undefined
        return Effect.as(Effect.all(others, { discard: true }), isMore)
      })
      // A defect here must not keep the job from ever being read again.
      return Effect.onError(started, () => Effect.sync(() => job === undefined ? undefined : release(job, true)))
    })

  return Effect.gen(function*() {
    yield* dispatchDue.await
    dispatchDue.closeUnsafe()
    while (yield* dispatch(yield* store.now)) yield* Effect.yieldNow
    intakeDue.openUnsafe()
    yield* JobMetrics.setInFlight(queue.name, partition, attempts.underWay())
  })
}

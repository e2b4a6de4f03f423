/**
 * How one partition reads: ready rows into the mailbox, and in an ordered queue the heads of the lines that have moved on.
 *
 * Promise: one reading at a time, and a store that does not answer is asked again. Reading writes nothing: a crash leaves nothing to undo.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Latch from "effect/Latch"
import type * as Semaphore from "effect/Semaphore"
import type { JobId } from "../JobId.ts"
import type { JobQueue } from "../JobQueue.ts"
import type { JobStore, Owner, StoreError } from "../JobStore.ts"
import type { Outage } from "./outage.ts"
import type { PartitionState } from "./partitionState.ts"
import { onLiveClock } from "./time/liveClock.ts"

/** Two loops of one partition. */
export interface Reading {
  /** Waits until rows may be ready, and reads until nothing is worth asking for. */
  readonly intakeTurn: (owner: Owner) => Effect.Effect<void>
  /** The next of each key whose job has ended. */
  readonly headsTurn: (owner: Owner) => Effect.Effect<void>
}

/** Reads for one partition. `isBlocked`: jobs that must not run yet. `intakeLock`: who has it sees no half of a reading. */
export const make = (options: {
  readonly state: PartitionState
  readonly store: JobStore["Service"]
  readonly queue: JobQueue
  readonly isBlocked: (id: JobId) => boolean
  readonly intakeLock: Semaphore.Semaphore
  /** Of this partition. */
  readonly outage: Outage
}): Reading => {
  const { intakeLock, isBlocked, outage, queue, state, store } = options
  const { dispatchDue, held, intakeDue, keys, keysDue, offer } = state

  const intake = (owner: Owner) =>
    intakeLock.withPermit(Effect.gen(function*() {
      const demand = held.demand(state.rooms(), state.reserves())
      if (demand === undefined) return false
      const answer = yield* store.intake(owner, queue.isOrdered ? { ...demand, isOrdered: true } : demand)
      for (const job of held.took(demand, answer, (job) => keys.admit(job))) if (!isBlocked(job.id)) offer(job)
      dispatchDue.openUnsafe()
      return true
    }))

  /** In place of an intake, so that neither sees half of what the other does. Answers whether there may be more. */
  const readHeads = (owner: Owner) =>
    intakeLock.withPermit(Effect.gen(function*() {
      const lines = keys.due()
      if (lines.length === 0) return false
      const { elsewhere, jobs } = yield* Effect.tapError(
        store.heads(owner, lines),
        () => Effect.sync(() => lines.forEach(keys.look))
      )
      for (const job of jobs) {
        // Being found out about, or read already: its end leads here again.
        if (isBlocked(job.id) || held.has(job.id) || !keys.admit(job, true)) continue
        held.admit(job)
        offer(job)
      }
      dispatchDue.openUnsafe()
      if (elsewhere.length > 0) yield* Effect.ignore(store.announce(elsewhere))
      return true
    }))

  /** Waits until it is due, then reads until there is no more. */
  const turn = (due: Latch.Latch, read: Effect.Effect<boolean, StoreError>, what: string) => {
    const watched = outage.watch(what)(read)
    return Effect.gen(function*() {
      yield* due.await
      due.closeUnsafe()
      while (yield* watched) { /* until nothing is left to ask for */ }
    }).pipe(
      Effect.catch(() => Effect.andThen(onLiveClock(Effect.sleep(Duration.millis(500))), due.open))
    )
  }

  return {
    intakeTurn: (owner) => turn(intakeDue, intake(owner), "Reading ready jobs"),
    headsTurn: (owner) => turn(keysDue, readHeads(owner), "Reading the heads of lines")
  }
}

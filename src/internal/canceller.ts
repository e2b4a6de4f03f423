/**
 * Cancels a job wherever it is in its partition: under way, waiting in memory, or not read yet.
 *
 * Promise: a job is cancelled in the table before anybody is told so. A crash on any line leaves a live row, or one that is cancelled.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Semaphore from "effect/Semaphore"
import type { JobId } from "../JobId.ts"
import type { JobQueue } from "../JobQueue.ts"
import { isFinal } from "../JobState.ts"
import type { JobStore, Owner, ReadyJob } from "../JobStore.ts"
import type { Announcer } from "./announcer.ts"
import type { Cancels } from "./cancels.ts"
import type { PartitionState } from "./partitionState.ts"
import type { Settle } from "./unstarted.ts"
import * as Verdict from "./verdict.ts"

/** Cancels a ready or running job. `false`: it is neither, or has just ended. */
export type Cancel = (id: JobId, by: string | undefined) => Effect.Effect<boolean>

/** Cancels jobs of one partition. */
export const make = (options: {
  readonly state: PartitionState
  readonly store: JobStore["Service"]
  readonly queue: JobQueue
  readonly announcer: Announcer
  readonly cancels: Cancels
  readonly intakeLock: Semaphore.Semaphore
  readonly settle: Settle
}): Cancel => {
  const { announcer, cancels, intakeLock, queue, settle, state, store } = options
  const { held, mailbox, parking } = state

  const cancelWaiting = (job: ReadyJob, by: string | undefined) =>
    Effect.flatMap(store.now, (now) => settle(job, Verdict.cancelled(job, now, queue.retention, by)))

  /** Not held: it may be read at any moment, so this takes the place of an intake. */
  const cancelUnread = (owner: Owner, id: JobId, by: string | undefined) =>
    Effect.gen(function*() {
      const found = yield* store.find(id)
      if (Option.isNone(found) || isFinal(found.value.state)) cancels.forget(id)
      if (Option.isNone(found) || found.value.state !== "queued") return false
      const { attempt, context, crashes, createdAt, key, lane, payload, reruns, tenant, type, version } = found.value
      const now = yield* store.now
      const job: ReadyJob = {
        id,
        lane: lane ?? 0,
        tenant,
        seq: 0,
        version,
        type,
        attempt,
        crashes,
        reruns,
        createdAt,
        expiresAt: undefined,
        isLarge: false,
        payload,
        context
      }
      const settlement = Verdict.cancelled(job, now, queue.retention, by)
      const { entry, purgeAt } = settlement
      for (const { lane, seq } of yield* store.reread([id])) held.passed(lane, seq)
      if (!(yield* store.cancel({ id, version, owner, now, purgeAt, entry }))) return false
      // Who waited behind it may be passed over already.
      if (state.isOrdered && key !== undefined) state.keys.look({ tenant, key })
      yield* announcer.settled(job, settlement, now) ?? Effect.void
      return true
    }).pipe(Effect.catch(() => Effect.succeed(false)))

  /** Takes a job out of where it waits in memory. */
  const withdraw = (id: JobId): ReadyJob | undefined =>
    mailbox.remove(id) ?? parking.remove(id) ?? state.owned?.suspects.withdraw((job) => job.id === id)[0]

  const cancel: Cancel = (id, by) =>
    Effect.suspend(() => {
      if (state.owned === undefined) return Effect.succeed(false)
      // Missed now, it does not start again.
      cancels.ask(id, by)
      const { attempts, owner } = state.owned
      const run = attempts.get(id)
      if (run !== undefined) return attempts.cancel(run, by)
      const waiting = withdraw(id)
      if (waiting !== undefined) return cancelWaiting(waiting, by)
      return intakeLock.withPermit(
        Effect.suspend(() => held.has(id) ? Effect.succeed(false) : cancelUnread(owner, id, by))
      )
    })

  return (id, by) =>
    Effect.tap(cancel(id, by), (isCancelled) => Effect.sync(() => isCancelled ? cancels.forget(id) : undefined))
}

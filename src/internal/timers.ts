/**
 * What a partition does when its time has come: makes due jobs ready, and looks again for what nobody told it of.
 *
 * Promise: a lost wake costs 36 seconds at most, and no job. A crash on any line leaves due rows, which the next owner promotes.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as JobMetrics from "../JobMetrics.ts"
import type { JobQueue } from "../JobQueue.ts"
import type { JobStore, Owner } from "../JobStore.ts"
import * as Priority from "../Priority.ts"
import type { Outage } from "./outage.ts"
import type { PartitionState } from "./partitionState.ts"
import { onLiveClock } from "./time/liveClock.ts"

/** Two loops of one partition. */
export interface Timers {
  /** Waits for the next due time, and makes ready what is due. */
  readonly turn: (owner: Owner) => Effect.Effect<void>
  /** The safety sweep: waits, then has everything looked at again, and measures what is left. */
  readonly sweep: Effect.Effect<void>
}

const what = "Reading due jobs"

const sweepLeastMs = 5_000
const sweepMostMs = 30_000

/** The timers of one partition. */
export const make = (options: {
  readonly state: PartitionState
  readonly store: JobStore["Service"]
  readonly queue: JobQueue
  readonly queueId: number
  readonly partition: number
  /** Of this partition. */
  readonly outage: Outage
}): Timers => {
  const { outage, partition, queue, queueId, state: { held, intakeDue, isOrdered, keys, timerDue }, store } = options
  let sweepMs = sweepLeastMs

  /** The clock is read by the very fiber that then sleeps: it may jump in between otherwise, and the job would be late. */
  const sleepUntil = (time: number) =>
    Effect.flatMap(store.now, (now) => Effect.sleep(Duration.millis(Math.max(time - now, 0))))

  const timerTurn = (owner: Owner) =>
    Effect.gen(function*() {
      timerDue.closeUnsafe()
      const due = yield* store.nextDue(owner)
      yield* outage.worked(what)
      if (Option.isNone(due)) return yield* timerDue.await
      const now = yield* store.now
      if (due.value > now) return yield* Effect.raceFirst(sleepUntil(due.value), timerDue.await)
      const promoted = yield* store.promote(owner, now, 500)
      // What is due is locked by someone, or not ours any more.
      if (promoted.length === 0) yield* onLiveClock(Effect.sleep("250 millis"))
      for (const ready of promoted) {
        if (ready.partition !== partition) continue
        // The head of a line, mostly: read by itself, for all that stands behind it has been read.
        if (isOrdered && ready.key !== undefined) keys.look({ tenant: ready.tenant, key: ready.key })
        else held.told(ready)
      }
      const elsewhere = promoted.filter((ready) => ready.partition !== partition)
      if (elsewhere.length > 0) yield* Effect.ignore(store.announce(elsewhere))
      timerDue.openUnsafe()
      intakeDue.openUnsafe()
    }).pipe(
      Effect.catch((error) => Effect.andThen(outage.failed(what, error), onLiveClock(Effect.sleep(500))))
    )

  const sweepTurn = Effect.gen(function*() {
    const jitter = yield* Random.next
    yield* onLiveClock(Effect.sleep(Duration.millis(sweepMs * (0.8 + 0.4 * jitter))))
    // Of an ordered queue it reads all that stands in line again.
    sweepMs = held.size === 0 || isOrdered ? Math.min(sweepMs * 1.5, sweepMostMs) : sweepLeastMs
    held.sweep()
    keys.sweep()
    intakeDue.openUnsafe()
    timerDue.openUnsafe()
    yield* measure
  })

  const measure = store.depth({ queueId, partition }, 10_000).pipe(
    Effect.flatMap((depths) =>
      Effect.forEach(
        Priority.lanes,
        ({ index, name }) => JobMetrics.setDepth(queue.name, partition, name, depths[index] ?? 0),
        { discard: true }
      )
    ),
    Effect.ignore
  )

  return { turn: timerTurn, sweep: sweepTurn }
}

/**
 * Writes down how attempts ended: whatever ends at the same time in one statement, tried again until the store answers.
 *
 * Promise: every settlement is answered; one bad row never holds up the others. A crash here leaves live rows: they run again.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type { JobFailure } from "../JobError.ts"
import type { Entry } from "../JobHistory.ts"
import type { JobId } from "../JobId.ts"
import type { JobStore, Owner, Settlement, StoreError } from "../JobStore.ts"
import * as Batches from "./batches.ts"
import { waiting } from "./coalescer.ts"
import type { Outage } from "./outage.ts"
import { onLiveClock } from "./time/liveClock.ts"

/**
 * What was written: the settlement, or another in its place where the database refused it. `superseded`: someone else has the outcome, or
 * the row has moved on; look again. `refused`: the database takes nothing of it; the row is
 * as it was. `stopped`: the owner ended before the store answered.
 */
export type Settled = Settlement | "superseded" | "refused" | "stopped"

/** Writes settlements, each together with whatever else is being settled. */
export interface Settler {
  /** Writes one and waits for what became of it. */
  readonly settle: (settlement: Settlement) => Effect.Effect<Settled>
  /** Writes one and calls back, without a fiber that waits. */
  readonly push: Batches.Push<Settlement, Settled, never>
}

const what = "Writing down outcomes"

/** A settlement that the database refuses becomes a dead letter; if it refuses that one too, the job waits a minute. */
const instead = (settlement: Settlement, error: StoreError, now: number): Settlement => {
  const { entry, id, version } = settlement
  if (settlement._tag === "DeadLetter") {
    return {
      _tag: "PutBack",
      id,
      version,
      dueAt: now + 60_000,
      entry: { kind: "put back", at: now, dueAt: now + 60_000 }
    }
  }
  const failure: JobFailure = { class: "System", tag: "SettlementRefused", message: error.message.replaceAll("\0", "") }
  return {
    _tag: "DeadLetter",
    id,
    version,
    failure,
    isAttempt: true,
    entry: entry.kind === "attempt"
      ? { ...entry, outcome: "dead-lettered", failure }
      : { kind: "dead-lettered", at: now, failure }
  }
}

/** What tells one entry from another. Its failure is left out: the store may have changed texts that it cannot hold. */
const essence = (entry: Entry) => {
  const { failure: _, ...rest } = entry
  return rest
}

/** A settler of one ownership. `isStopped` ends the waiting for a store that does not answer. */
export const make = (options: {
  readonly store: JobStore["Service"]
  readonly owner: Owner
  readonly isStopped: () => boolean
  /** Of this partition. */
  readonly outage: Outage
}): Effect.Effect<Settler, never, Scope.Scope> => {
  const { isStopped, outage, owner, store } = options

  /** Whether the row ended with exactly this settlement: an earlier sending had arrived after all. */
  const hasArrived = (settlement: Settlement) =>
    Effect.map(
      store.find(settlement.id),
      Option.exists((record) => {
        const last = record.history.at(-1)
        return last !== undefined && Equal.equals(essence(last), essence(settlement.entry))
      })
    )

  const answer = (settlement: Settlement, settled: ReadonlySet<JobId>, isResent: boolean) => {
    if (settled.has(settlement.id)) return Effect.succeed<Settled>(settlement)
    if (!isResent) return Effect.succeed<Settled>("superseded")
    return hasArrived(settlement).pipe(
      Effect.orElseSucceed(() => false),
      Effect.map((hasArrived): Settled => hasArrived ? settlement : "superseded")
    )
  }

  const write = (
    batch: ReadonlyArray<Settlement>,
    tries: number,
    isResent: boolean,
    refusals = 0
  ): Effect.Effect<ReadonlyArray<Settled>> =>
    Effect.flatMap(store.now, (now) =>
      store.settle(owner, batch, now).pipe(
        Effect.tap(() => outage.worked(what)),
        Effect.flatMap((settled): Effect.Effect<ReadonlyArray<Settled>> =>
          settled.size === batch.length
            ? Effect.succeed(batch)
            : Effect.forEach(batch, (settlement) => answer(settlement, settled, isResent))
        ),
        Effect.catch((error) => {
          const [only, ...others] = batch
          if (only === undefined) return Effect.succeed<ReadonlyArray<Settled>>([])
          if (error.reason === "Refused" && others.length > 0) {
            const half = Math.ceil(batch.length / 2)
            // What was of another kind may have been written before the refusal.
            return Effect.zipWith(
              write(batch.slice(0, half), 0, true),
              write(batch.slice(half), 0, true),
              (left, right) => [...left, ...right]
            )
          }
          if (error.reason === "Refused") {
            return Effect.andThen(
              Effect.logError("The database refused a settlement", error).pipe(Effect.annotateLogs("jobId", only.id)),
              refusals < 2
                ? write([instead(only, error, now)], 0, isResent, refusals + 1)
                : Effect.succeed<ReadonlyArray<Settled>>(["refused"])
            )
          }
          if (isStopped()) return Effect.succeed(batch.map((): Settled => "stopped"))
          const pause = error.reason === "Conflict" && tries < 10
            ? Duration.millis(5)
            : Duration.millis(Math.min(100 * 2 ** Math.min(tries, 6), 5_000))
          return Effect.andThen(
            // Conflicts are what two that write at once may have.
            Effect.andThen(
              error.reason === "Conflict" ? Effect.void : outage.failed(what, error),
              onLiveClock(Effect.sleep(pause))
            ),
            write(batch, tries + 1, isResent || error.reason === "Unavailable", refusals)
          )
        })
      ))

  return Effect.map(
    Batches.make({
      run: (batch: ReadonlyArray<Settlement>) => write(batch, 0, false),
      // Two, so that the database has the next one when it is done with one; not too large, for their places are free only then.
      maxBatch: 250,
      maxInFlight: 2
    }),
    (push): Settler => ({
      settle: waiting(push),
      push
    })
  )
}

/**
 * Watches the shard locks: rebalancing and the loss of a lock look alike to an entity, and only the first leaves time for grace.
 *
 * Promise: a lock that is not surely held is lost, at once and for good; who wants it again acquires it anew, with a new epoch. All by the
 * monotonic clock, from the moment a request for it was sent. A crash leaves the locks to the database, which ends them with the session.
 */
import * as Cause from "effect/Cause"
import type { RunnerAddress } from "effect/cluster/RunnerAddress"
import { RunnerStorage } from "effect/cluster/RunnerStorage"
import type { ShardId } from "effect/cluster/ShardId"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { Outage } from "./outage.ts"
import * as ShardGroups from "./shardGroups.ts"
import { inWords } from "./time/inWords.ts"
import { monotonicMillis, onLiveClock } from "./time/liveClock.ts"
import * as Standstill from "./time/standstill.ts"
import { told } from "./told.ts"

/** A shard as text: its group and number. */
export const shardName = ({ group, id }: ShardId): string => `${group}:${id}`

/** One holding of one lock. */
export interface Lock {
  /** What the database calls it; none where there is nothing to hold there. */
  readonly number?: number
  /** Whether it is surely held at this moment. A process that wakes up asks this before it takes anything: no timer of it has fired yet. */
  readonly isHeld: () => boolean
  /** Ends when it is not surely held any more: a refresh failed, came back short, or is overdue. */
  readonly lost: Effect.Effect<void>
  /** Treats it as lost: it is acquired anew, and its partitions are taken over again. */
  readonly giveUp: () => void
}

/** The lock of who needs none. */
export const always: Lock = { isHeld: () => true, lost: Effect.never, giveUp: () => {} }

/** What is known of the shard locks of this process. */
export class ShardLocks extends Context.Service<ShardLocks, {
  /** The holding of a shard's lock that is current now. */
  readonly of: (shardId: ShardId) => Lock
}>()("millrace/internal/ShardLocks") {}

interface Holding extends Lock {
  confirmedAt: number
  readonly ended: Deferred.Deferred<void>
}

const lostAlready: Lock = { isHeld: () => false, lost: Effect.void, giveUp: () => {} }

/** From when on a standstill is told of, however long the locks last: handlers and their transactions have waited for as long. */
const longMs = 3_000

/** `ranOut`: whether it had locks that were overdue by then. */
const tellOfStandstill = (stoodMs: number, ranOut: boolean, overdueMs: number) =>
  told(Effect.logWarning(
    `This process stood still for ${inWords(stoodMs)}: it was suspended, or something kept its event loop. ${
      ranOut
        ? "Its shard locks ran out meanwhile: its partitions are free for others, and it goes on with those that it gets from now on"
        : `From ${overdueMs / 1_000} s on it may lose its partitions: what computes for long belongs in a thread`
    }`
  ))

/** What is told of when the database does not do it. */
const keeping = "Keeping the shard locks"
const reading = "Reading the list of runners"

/** Decorates the runner storage; `expiration` is the lock's. `isAgreed`: whether the others number their locks as this runner does. */
export const layer = (
  expiration: Duration.Duration,
  isAgreed: Effect.Effect<boolean, unknown> = Effect.succeed(true),
  standstill: Standstill.Standstill = Standstill.make(Standstill.watchMs)
): Layer.Layer<RunnerStorage | ShardLocks, never, RunnerStorage> =>
  Layer.effectContext(Effect.gen(function*() {
    const storage = yield* RunnerStorage
    const outage = yield* Outage
    // The server ends a session that has been idle for the whole of it.
    const overdueMs = Duration.toMillis(expiration) * 0.9
    /** A question that is given up later than this was not answered in time; sooner, nobody wanted to know any more. */
    const patienceMs = Duration.toMillis(expiration) / 15
    const holdings = new Map<string, Holding>()

    const lose = (shard: string) => {
      const holding = holdings.get(shard)
      if (holding === undefined) return
      holdings.delete(shard)
      Deferred.doneUnsafe(holding.ended, Effect.void)
    }

    const isOverdue = ({ confirmedAt }: Holding) => monotonicMillis() - confirmedAt >= overdueMs

    /** The holding of a shard, if it is surely held now: whoever finds it overdue ends it. */
    const current = (shard: string): Holding | undefined => {
      const holding = holdings.get(shard)
      if (holding === undefined || !isOverdue(holding)) return holding
      lose(shard)
      return undefined
    }

    const hold = (shardId: ShardId, confirmedAt: number) => {
      const shard = shardName(shardId)
      const ended = Deferred.makeUnsafe<void>()
      const holding: Holding = {
        number: ShardGroups.lockNumber(shardId),
        confirmedAt,
        ended,
        isHeld: () => current(shard) === holding,
        lost: Deferred.await(ended),
        giveUp: () => current(shard) === holding && lose(shard)
      }
      holdings.set(shard, holding)
    }

    /** Of the shards named those that are held still. One that was lost is not, whatever the database says: its attempts were told so. */
    const confirmed = (shards: ReadonlyArray<ShardId>, sentAt: number): Array<ShardId> =>
      shards.filter((shardId) => {
        const holding = current(shardName(shardId))
        if (holding !== undefined) holding.confirmedAt = Math.max(holding.confirmedAt, sentAt)
        return holding !== undefined
      })

    /** After a standstill everything fails that was under way, whatever the database does. */
    const failed = (what: string, error: unknown) =>
      Effect.suspend(() => standstill.isRecent() ? Effect.void : outage.failed(what, error))

    /** Once this runner has left, only who takes its place concerns it; with nobody there it keeps its locks until its work has ended. */
    let left: RunnerAddress | undefined
    const runners = storage.getRunners.pipe(
      Effect.tapError((error) => failed(reading, error)),
      Effect.tap(() => outage.worked(reading))
    )
    const others: typeof storage.getRunners = Effect.flatMap(runners, (runners) => {
      const rest = runners.filter(([runner]) => !Equal.equals(runner.address, left))
      return rest.some(([, isHealthy]) => isHealthy) ? Effect.succeed(rest) : Effect.never
    })

    const decorated: RunnerStorage["Service"] = RunnerStorage.of({
      ...storage,
      unregister: (address) =>
        Effect.tap(storage.unregister(address), () =>
          Effect.sync(() => {
            left = address
          })),
      getRunners: Effect.suspend(() => left === undefined ? runners : others),
      acquire: (address, shards) =>
        Effect.suspend(() => {
          const sentAt = monotonicMillis()
          return Effect.flatMap(storage.acquire(address, shards), (acquired) =>
            Effect.gen(function*() {
              // It was agreed on at the start; but two may have joined at once, and the latter's number is the one that counts.
              if (acquired.length > 0 && !(yield* Effect.orElseSucceed(isAgreed, () => true))) {
                yield* Effect.logError("Other runners count the shards otherwise: this one lets go of its locks")
                yield* Effect.forEach(acquired, (shardId) => decorated.release(address, shardId), { discard: true })
                return []
              }
              for (const shardId of acquired) {
                lose(shardName(shardId))
                hold(shardId, sentAt)
              }
              return acquired
            }))
        }),
      refresh: (address, shards) =>
        Effect.suspend(() => {
          const asked = [...shards]
          const sentAt = monotonicMillis()
          return storage.refresh(address, asked).pipe(
            Effect.map((refreshed) => {
              const kept = new Set(refreshed.map(shardName))
              for (const shard of asked.map(shardName)) if (!kept.has(shard)) lose(shard)
              return confirmed(refreshed, sentAt)
            }),
            // The session is replaced, and its locks went with it.
            Effect.tapError(() => Effect.sync(() => asked.map(shardName).forEach(lose))),
            Effect.tapError((error) => failed(keeping, error)),
            Effect.tap(() => outage.worked(keeping)),
            Effect.onInterrupt(() =>
              Effect.suspend(() =>
                monotonicMillis() - sentAt < patienceMs ? Effect.void : failed(keeping, new Cause.TimeoutError())
              )
            )
          )
        }),
      release: (address, shardId) =>
        Effect.suspend(() => {
          lose(shardName(shardId))
          return storage.release(address, shardId)
        }),
      releaseAll: (address) =>
        Effect.suspend(() => {
          for (const shard of holdings.keys()) lose(shard)
          return storage.releaseAll(address)
        })
    })

    let hadLocks = false
    const tellIfStill = Effect.suspend(() => {
      const stoodMs = standstill.tick()
      const ranOut = (hadLocks || holdings.size > 0) && (stoodMs >= overdueMs || [...holdings.values()].some(isOverdue))
      hadLocks = holdings.size > 0
      return stoodMs < Math.min(overdueMs / 2, longMs) ? Effect.void : tellOfStandstill(stoodMs, ranOut, overdueMs)
    })
    const look = Effect.sync(() => [...holdings.keys()].forEach(current))

    // In this order: whoever hears that a lock is lost tells of it at once.
    yield* Effect.andThen(tellIfStill, look).pipe(
      Effect.repeat(Schedule.spaced(Duration.millis(Standstill.watchMs))),
      onLiveClock,
      Effect.withTracerEnabled(false),
      Effect.forkScoped
    )

    return Context.make(RunnerStorage, decorated).pipe(
      Context.add(ShardLocks, ShardLocks.of({ of: (shardId) => current(shardName(shardId)) ?? lostAlready }))
    )
  }))

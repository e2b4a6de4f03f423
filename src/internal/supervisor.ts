/**
 * Watches the shard locks: rebalancing and the loss of a lock look alike to an entity, and only the first leaves time for grace.
 */
import { RunnerStorage } from "effect/cluster/RunnerStorage"
import type { ShardId } from "effect/cluster/ShardId"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { liveClock, onLiveClock } from "./time/liveClock.ts"

/** A shard as text: its group and number. */
export const shardName = ({ group, id }: ShardId): string => `${group}:${id}`

/** What is known of the shard locks of this process. */
export class ShardLocks extends Context.Service<ShardLocks, {
  /** Ends when the lock is not surely held: a refresh failed, came back short, or is overdue. */
  readonly lost: (shardId: ShardId) => Effect.Effect<void>
}>()("millrace/internal/ShardLocks") {}

/** Decorates the runner storage; `expiration` is the lock's. */
export const layer = (expiration: Duration.Duration): Layer.Layer<RunnerStorage | ShardLocks, never, RunnerStorage> =>
  Layer.effectContext(Effect.map(RunnerStorage, (storage) => {
    const confirmedAt = new Map<string, number>()
    const confirm = (shards: Iterable<ShardId>) => {
      const now = liveClock.currentTimeMillisUnsafe()
      for (const shard of shards) confirmedAt.set(shardName(shard), now)
    }
    const overdueMs = Duration.toMillis(expiration) * 0.9
    const isHeld = (shardId: ShardId) => {
      const at = confirmedAt.get(shardName(shardId))
      return at !== undefined && liveClock.currentTimeMillisUnsafe() - at < overdueMs
    }
    // Once this runner has left, who else is there concerns it no more; asking would only log that no runner is healthy.
    let hasLeft = false
    const decorated = RunnerStorage.of({
      ...storage,
      unregister: (address) =>
        Effect.tap(storage.unregister(address), () =>
          Effect.sync(() => {
            hasLeft = true
          })),
      getRunners: Effect.suspend(() => hasLeft ? Effect.never : storage.getRunners),
      acquire: (address, shards) =>
        Effect.tap(storage.acquire(address, shards), (acquired) => Effect.sync(() => confirm(acquired))),
      refresh: (address, shards) => {
        const asked = [...shards]
        return storage.refresh(address, asked).pipe(
          Effect.tap((refreshed) =>
            Effect.sync(() => {
              for (const shard of asked) confirmedAt.delete(shardName(shard))
              confirm(refreshed)
            })
          ),
          Effect.tapError(() => Effect.sync(() => confirmedAt.clear()))
        )
      }
    })
    return Context.make(RunnerStorage, decorated).pipe(
      Context.add(
        ShardLocks,
        ShardLocks.of({
          lost: (shardId) =>
            Effect.sync(() => isHeld(shardId)).pipe(
              Effect.repeat({ while: (isHeld) => isHeld, schedule: Schedule.spaced("100 millis") }),
              Effect.asVoid,
              onLiveClock
            )
        })
      )
    )
  }))

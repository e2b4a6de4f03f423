/**
 * Many shard locks at a time, more than Effect's SqlRunnerStorage can do with: they are asked for in lots, and given back a few at a time.
 *
 * It asks for each lock in a column of one statement, and PostgreSQL takes 1,664 of them: a runner that is alone, or the first one, asks for
 * the shards of each of its groups and of `health`, and would be refused for ever. Locks are given back one by one on their one session: of
 * hundreds at the same time, when a runner joins, the last are not through in time, and for that all others are lost with the session.
 */
import { RunnerStorage } from "effect/cluster/RunnerStorage"
import type { ShardId } from "effect/cluster/ShardId"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Semaphore from "effect/Semaphore"

const lotSize = 1_000
const releasesAtATime = 4

const lotsOf = (shards: ReadonlyArray<ShardId>): ReadonlyArray<ReadonlyArray<ShardId>> =>
  Array.from(
    { length: Math.ceil(shards.length / lotSize) },
    (_, lot) => shards.slice(lot * lotSize, (lot + 1) * lotSize)
  )

/** Decorates the runner storage. */
export const layer: Layer.Layer<RunnerStorage, never, RunnerStorage> = Layer.effect(
  RunnerStorage,
  Effect.gen(function*() {
    const storage = yield* RunnerStorage
    const releases = yield* Semaphore.make(releasesAtATime)
    return RunnerStorage.of({
      ...storage,
      acquire: Effect.fnUntraced(function*(address, shards) {
        const lots = lotsOf([...shards])
        const acquired = (yield* Effect.forEach(lots, (lot) => storage.acquire(address, lot))).flat()
        // A session that was replaced between two lots took the locks of the first with it.
        return lots.length > 1 && acquired.length > 0 ? yield* storage.refresh(address, acquired) : acquired
      }),
      release: (address, shard) => releases.withPermit(storage.release(address, shard))
    })
  })
)

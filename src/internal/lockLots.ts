/**
 * Asks for many shard locks in lots. Effect's SqlRunnerStorage asks for each in a column of one statement, and PostgreSQL takes 1,664 of them:
 * a runner that is alone, or the first one, asks for the shards of each of its groups and of `health`, and would be refused for ever.
 */
import { RunnerStorage } from "effect/cluster/RunnerStorage"
import type { ShardId } from "effect/cluster/ShardId"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

const lotSize = 1_000

const lotsOf = (shards: ReadonlyArray<ShardId>): ReadonlyArray<ReadonlyArray<ShardId>> =>
  Array.from(
    { length: Math.ceil(shards.length / lotSize) },
    (_, lot) => shards.slice(lot * lotSize, (lot + 1) * lotSize)
  )

/** Decorates the runner storage. */
export const layer: Layer.Layer<RunnerStorage, never, RunnerStorage> = Layer.effect(
  RunnerStorage,
  Effect.map(RunnerStorage, (storage) =>
    RunnerStorage.of({
      ...storage,
      acquire: Effect.fnUntraced(function*(address, shards) {
        const lots = lotsOf([...shards])
        const acquired = (yield* Effect.forEach(lots, (lot) => storage.acquire(address, lot))).flat()
        // A session that was replaced between two lots took the locks of the first with it.
        return lots.length > 1 && acquired.length > 0 ? yield* storage.refresh(address, acquired) : acquired
      })
    }))
)

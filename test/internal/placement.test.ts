/**
 * Where partitions are: the same for every version of the code, spread over the shards, and where Effect has their entities.
 */
import { assert, describe, it } from "@effect/vitest"
import * as EntityId from "effect/cluster/EntityId"
import * as MessageStorage from "effect/cluster/MessageStorage"
import * as RunnerHealth from "effect/cluster/RunnerHealth"
import * as Runners from "effect/cluster/Runners"
import * as RunnerStorage from "effect/cluster/RunnerStorage"
import * as Sharding from "effect/cluster/Sharding"
import * as ShardingConfig from "effect/cluster/ShardingConfig"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Simulated from "../../scripts/simulate/placement.ts"
import { addressOf, entityIds, shardOf } from "../../src/internal/placement.ts"

const sharding = (shards: number) =>
  Sharding.layer.pipe(
    Layer.provide(Runners.layerNoop),
    Layer.provide(MessageStorage.layerNoop),
    Layer.provide(RunnerHealth.layerNoop),
    Layer.provide(RunnerStorage.layerMemory),
    Layer.provide(ShardingConfig.layer({ shardsPerGroup: shards }))
  )

const shardsOf = (queue: string, partitions: number, shards: number) =>
  Array.from({ length: partitions }, (_, partition) => shardOf({ queue, partition }, shards))

describe("placement", () => {
  it("a partition's shard never changes: two versions of the code that differ would own it both", () => {
    assert.deepStrictEqual(shardsOf("documents", 4, 16), [14, 15, 16, 1])
    assert.deepStrictEqual(shardsOf("mail", 4, 5), [4, 5, 1, 2])
  })

  it("as many partitions as shards are in all of them, and twice as many twice", () => {
    for (const queue of ["default", "documents", "mail"]) {
      assert.strictEqual(new Set(shardsOf(queue, 16, 16)).size, 16)
      assert.strictEqual(new Set(shardsOf(queue, 32, 16)).size, 16)
      assert.isTrue(shardsOf(queue, 32, 16).every((shard) => shard >= 1 && shard <= 16))
    }
  })

  it("so runners that share the shards evenly share such a queue evenly, whatever their addresses are", () => {
    for (let first = 0; first < 50; first++) {
      const runners = [first, first + 100, first + 200, first + 300]
      assert.deepStrictEqual(Simulated.spread(runners, `queue-${first}`, 16, 16), { fullest: 4, idle: 0 })
    }
  })

  it.effect.each([1, 16, 300])(
    "Effect, and the simulation, have an entity in the shard of its partition: %i shards",
    (shards) =>
      Effect.gen(function*() {
        const { getShardId } = yield* Sharding.Sharding
        const hashed = (id: string) => getShardId(EntityId.make(id), "a00").id
        const idOf = entityIds(shards, hashed)
        const ids = new Set<string>()
        for (let partition = 0; partition < 50; partition++) {
          const address = { queue: "some/documents", partition }
          const id = idOf(address)
          assert.strictEqual(hashed(id), shardOf(address, shards))
          assert.strictEqual(Simulated.shardOf("some/documents", partition, shards), hashed(id) - 1)
          assert.deepStrictEqual(addressOf(id), address)
          assert.strictEqual(idOf(address), id)
          ids.add(id)
        }
        assert.strictEqual(ids.size, 50)
      }).pipe(Effect.provide(sharding(shards)))
  )
})

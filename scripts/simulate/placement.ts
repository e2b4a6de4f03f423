/**
 * Which runner has which partition: Effect's own hash ring over addresses, and Millrace's own choice of a partition's shard.
 */
import * as RunnerAddress from "effect/cluster/RunnerAddress"
import * as HashRing from "effect/HashRing"
import { createHash } from "node:crypto"

/** The shard of a partition, from 0: a queue's in turn, from where its name says. A test compares it with the runtime's. */
export const shardOf = (queue: string, partition: number, shards: number): number =>
  (createHash("sha256").update(queue).digest().readUInt32BE(0) + partition) % shards

/** Runners are numbers here; this is where each would listen. */
const addressOf = (runner: number) => RunnerAddress.make(`10.0.${runner >> 8}.${runner & 255}`, 24431)

/** The runner of each shard. */
export const assign = (runners: Iterable<number>, shards: number): ReadonlyArray<number> => {
  const ring = HashRing.make<RunnerAddress.RunnerAddress>()
  const byAddress = new Map<string, number>()
  for (const runner of runners) {
    const address = addressOf(runner)
    byAddress.set(`${address.host}:${address.port}`, runner)
    HashRing.add(ring, address)
  }
  return (HashRing.getShards(ring, shards) ?? []).map(({ host, port }) => byAddress.get(`${host}:${port}`) ?? -1)
}

/** How a queue's partitions are spread: how many the fullest runner has, and how many runners have none. */
export const spread = (runners: ReadonlyArray<number>, queue: string, partitions: number, shards: number) => {
  const owners = assign(runners, shards)
  const counts = new Map<number, number>()
  for (let partition = 0; partition < partitions; partition++) {
    const owner = owners[shardOf(queue, partition, shards)] ?? -1
    counts.set(owner, (counts.get(owner) ?? 0) + 1)
  }
  return { fullest: Math.max(...counts.values()), idle: runners.length - counts.size }
}

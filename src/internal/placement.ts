/**
 * Which shard a partition is in: a queue's partitions are in one shard after the other, from where its name says. So as many of them as there
 * are shards, or a multiple, are spread over the runners as evenly as the shards are; by a hash of each, the fullest runner had half more.
 *
 * Effect gives an entity the shard that the hash of its id says: an id carries a number that makes it fall where it should.
 */
import { createHash } from "node:crypto"
import { type Address, partitionName } from "./owners.ts"

/** A partition's shard, from 1. All runners that live have to agree on it: it says which lock a partition's owner holds. */
export const shardOf = ({ partition, queue }: Address, shards: number): number =>
  (createHash("sha256").update(queue).digest().readUInt32BE(0) + partition) % shards + 1

/** The ids of entities, each found once. `hashed`: the shard that Effect gives an id. */
export const entityIds = (shards: number, hashed: (id: string) => number): (address: Address) => string => {
  const known = new Map<string, string>()
  const find = (address: Address) => {
    const name = partitionName(address)
    const shard = shardOf(address, shards)
    for (let number = 0;; number++) {
      const id = `${name}:${number}`
      if (hashed(id) === shard) return id
    }
  }
  return (address) => {
    const name = partitionName(address)
    const id = known.get(name) ?? find(address)
    known.set(name, id)
    return id
  }
}

/** The partition of an entity. */
export const addressOf = (entityId: string): Address => {
  const slash = entityId.lastIndexOf("/")
  return { queue: entityId.slice(0, slash), partition: Number.parseInt(entityId.slice(slash + 1), 10) }
}

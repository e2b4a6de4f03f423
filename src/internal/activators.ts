/**
 * Activates partitions: of every queue that this process declares as many as the table says, and those left over from a larger count until
 * they are empty. Every process looks for itself, so that whoever has a shard activates what is in it.
 *
 * Promise: a partition with jobs has an owner a few seconds after somebody changed the count. A crash leaves nothing to be undone.
 */
import * as Sharding from "effect/cluster/Sharding"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Scope from "effect/Scope"
import { JobStore, type PartitionKey } from "../JobStore.ts"
import { type Address, Owners } from "./owners.ts"
import { type KnownQueue, Queues } from "./queues.ts"
import { onLiveClock } from "./time/liveClock.ts"

const lookMs = 5_000

/** All that there is to activate. */
const wantedOf = (declared: ReadonlyArray<KnownQueue>, leftovers: ReadonlyArray<PartitionKey>) =>
  declared.flatMap((known) => [
    ...Array.from({ length: known.row.partitions }, (_, partition) => ({ known, partition })),
    ...leftovers.flatMap(({ partition, queueId }) => queueId === known.row.queueId ? [{ known, partition }] : [])
  ])

/**
 * One singleton a partition: starts where and when its shard is acquired, and wakes the entity until it is there (`isHere`): right after a
 * move the message may still go to the former owner. `idOf`: the entity of a partition; `groupOf`: its shard group.
 */
export const layer = (options: {
  readonly idOf: (address: Address) => string
  readonly groupOf: (id: string) => string
  readonly isHere: (partition: PartitionKey) => boolean
}): Layer.Layer<never, never, Sharding.Sharding | Owners | Queues | JobStore> =>
  Layer.effectDiscard(Effect.gen(function*() {
    const sharding = yield* Sharding.Sharding
    const owners = yield* Owners
    const queues = yield* Queues
    const store = yield* JobStore
    const scope = yield* Effect.scope
    /** By entity id, with the group that each was registered in. */
    const active = new Map<string, { readonly group: string; readonly scope: Scope.Closeable }>()

    const activate = (id: string, known: KnownQueue, partition: number) =>
      Effect.gen(function*() {
        const group = options.groupOf(id)
        if (active.get(id)?.group === group) return
        // One of the same name has to be gone first.
        yield* deactivate(id)
        const own = yield* Scope.fork(scope)
        active.set(id, { group, scope: own })
        const address = { queue: known.row.name, partition }
        const wakes = Effect.gen(function*() {
          yield* owners.wake(address, [])
          yield* Effect.sleep(options.isHere({ queueId: known.row.queueId, partition }) ? "30 seconds" : "500 millis")
        }).pipe(Effect.forever, onLiveClock)
        yield* Scope.provide(sharding.registerSingleton(id, wakes, { shardGroup: group }), own)
      })

    const deactivate = (id: string) =>
      Effect.suspend(() => {
        const known = active.get(id)
        active.delete(id)
        return known === undefined ? Effect.void : Scope.close(known.scope, Exit.void)
      })

    const bring = (leftovers: ReadonlyArray<PartitionKey>) =>
      Effect.gen(function*() {
        const wanted = new Map(
          wantedOf(queues.declared, leftovers).map((one) => [
            options.idOf({ queue: one.known.row.name, partition: one.partition }),
            one
          ])
        )
        yield* Effect.forEach([...active.keys()].filter((id) => !wanted.has(id)), deactivate, { discard: true })
        yield* Effect.forEach(wanted, ([id, { known, partition }]) => activate(id, known, partition), { discard: true })
      })

    const look = Effect.gen(function*() {
      const jitter = yield* Random.next
      yield* Effect.sleep(lookMs * (0.8 + 0.4 * jitter))
      yield* queues.refresh
      yield* bring(yield* store.leftovers)
    })

    yield* bring([])
    yield* look.pipe(
      Effect.catchCause((cause) => Effect.logDebug("Could not look for partitions: later again", cause)),
      Effect.forever,
      onLiveClock,
      Effect.withTracerEnabled(false),
      Effect.forkScoped
    )
  }))

/**
 * A queue's partition as a cluster Entity: the shard lock says who owns it, messages are commands, the work runs in the entity's scope.
 *
 * No job ever travels in a message: the table is the mailbox. A lost message costs a sweep.
 */
import * as ClusterSchema from "effect/cluster/ClusterSchema"
import * as Entity from "effect/cluster/Entity"
import { EntityId } from "effect/cluster/EntityId"
import * as Sharding from "effect/cluster/Sharding"
import type * as Context from "effect/Context"
import { SecureRandom } from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Rpc from "effect/rpc/Rpc"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { EventBus } from "./EventBus.ts"
import { type Address, entityId, outOfReach, Owners } from "./internal/owners.ts"
import * as Partition from "./internal/partition.ts"
import { type KnownQueue, Queues } from "./internal/queues.ts"
import { ShardLocks, shardName } from "./internal/supervisor.ts"
import { onLiveClock } from "./internal/time/liveClock.ts"
import { PartitionUnavailable } from "./JobError.ts"
import { JobHandlers } from "./JobHandlers.ts"
import { JobId } from "./JobId.ts"
import { JobStore } from "./JobStore.ts"

const Ready = Schema.Struct({
  queueId: Schema.Int,
  partition: Schema.Int,
  lane: Schema.Int,
  tenant: Schema.String,
  seq: Schema.Finite,
  dueAt: Schema.optionalKey(Schema.Finite)
})

const View = Schema.Struct({
  isRunning: Schema.Boolean,
  startedAt: Schema.optionalKey(Schema.Finite),
  progress: Schema.optionalKey(Schema.Finite),
  message: Schema.optionalKey(Schema.String)
})

/** What the owner holds in memory: waiting jobs by lane and tenant, and the running ones. */
export const Snapshot = Schema.Struct({
  lanes: Schema.Array(Schema.Struct({
    lane: Schema.String,
    size: Schema.Int,
    room: Schema.Int,
    tenants: Schema.Array(Schema.Struct({ tenantId: Schema.String, size: Schema.Int }))
  })),
  running: Schema.Array(JobId)
})

/** The entity. Its ids are `queue/partition`; its messages are volatile. */
export const QueueEntity = Entity.make("Queue", [
  Rpc.make("Wake", { payload: { ready: Schema.Array(Ready) } }),
  Rpc.make("Cancel", { payload: { jobId: JobId, by: Schema.optionalKey(Schema.String) }, success: Schema.Boolean }),
  Rpc.make("View", { payload: { jobId: JobId }, success: Schema.NullOr(View) }),
  Rpc.make("Snapshot", { success: Snapshot })
]).annotateRpcs(ClusterSchema.ClientTracingEnabled, false)

/** How partitions are run. */
export interface Options {
  readonly runner: string
  readonly graceMs: number
  readonly handlerGraceMs: number
  /** Services of the runtime for attempts and timers, its Clock among them. */
  readonly services: Context.Context<never>
}

const definedOnly = (view: Partition.View) => ({
  isRunning: view.isRunning,
  ...(view.startedAt === undefined ? {} : { startedAt: view.startedAt }),
  ...(view.progress === undefined ? {} : { progress: view.progress }),
  ...(view.message === undefined ? {} : { message: view.message })
})

const addressesOf = ({ row }: KnownQueue): ReadonlyArray<Address> =>
  Array.from({ length: row.partitions }, (_, partition) => ({ queue: row.name, partition }))

/** The partitions that this process owns now. */
type Local = Map<string, Partition.Partition>

const localKey = (queueId: number, partition: number) => `${queueId}/${partition}`

/** Registers the entity: whoever owns a partition's shard runs it. */
const layerEntity = (options: Options, local: Local, incarnation: string) =>
  QueueEntity.toLayer(
    Effect.gen(function*() {
      const address = yield* Entity.CurrentAddress
      const queues = yield* Queues
      const locks = yield* ShardLocks
      const [known, index] = queues.declared.flatMap((known) =>
        addressesOf(known).flatMap((candidate): ReadonlyArray<readonly [KnownQueue, number]> =>
          entityId(candidate) === address.entityId ? [[known, candidate.partition]] : []
        )
      )[0] ?? (yield* Effect.die(new Error(`No queue of this process has a partition ${address.entityId}`)))
      const partition = yield* Partition.make({
        store: yield* JobStore,
        handlers: yield* JobHandlers,
        bus: yield* EventBus,
        queue: known.queue,
        queueId: known.row.queueId,
        partition: index,
        position: { runner: options.runner, shard: shardName(address.shardId), entity: address.entityId },
        incarnation,
        services: options.services,
        graceMs: options.graceMs,
        handlerGraceMs: options.handlerGraceMs,
        lockLost: locks.lost(address.shardId)
      })
      const key = localKey(known.row.queueId, index)
      yield* Effect.acquireRelease(
        Effect.sync(() => local.set(key, partition)),
        () =>
          Effect.sync(() => local.get(key) === partition && local.delete(key))
      )
      return QueueEntity.of({
        Wake: ({ payload }) => partition.wake(payload.ready),
        Cancel: ({ payload }) => partition.cancel(payload.jobId, payload.by),
        View: ({ payload }) => {
          const view = partition.view(payload.jobId)
          return Effect.succeed(view === undefined ? null : definedOnly(view))
        },
        Snapshot: () => Effect.sync(partition.snapshot)
      })
    }),
    { concurrency: "unbounded", disableFatalDefects: true, maxIdleTime: "24855 days" }
  )

/** One activator a partition: starts where and when its shard is acquired, and wakes the entity; again, should a wake have been lost. */
const layerActivators = Layer.effectDiscard(Effect.gen(function*() {
  const sharding = yield* Sharding.Sharding
  const owners = yield* Owners
  const { declared } = yield* Queues
  yield* Effect.forEach(
    declared.flatMap(addressesOf),
    (address) =>
      sharding.registerSingleton(
        entityId(address),
        onLiveClock(Effect.repeat(owners.wake(address, []), Schedule.spaced("30 seconds")))
      ),
    { discard: true }
  )
}))

/** Messages to partitions, bounded in time. */
const layerOwners = (local: Local): Layer.Layer<Owners, never, Sharding.Sharding> =>
  Layer.effect(Owners)(Effect.gen(function*() {
    const sharding = yield* Sharding.Sharding
    const client = yield* QueueEntity.client
    const bounded = <A, E>(address: Address, effect: Effect.Effect<A, E>): Effect.Effect<A, PartitionUnavailable> =>
      Effect.suspend(() => {
        const unavailable = new PartitionUnavailable({ entity: entityId(address) })
        return effect.pipe(
          Effect.mapError(() => unavailable),
          Effect.timeoutOrElse({ duration: "40 seconds", orElse: () => Effect.fail(unavailable) }),
          onLiveClock,
          Effect.withTracerEnabled(false)
        )
      })
    const isReachable = (address: Address) =>
      sharding.hasShardId(sharding.getShardId(EntityId.make(entityId(address)), "default"))
    return Owners.of({
      isReachable,
      tell: (queueId, partition, ready) => {
        const owner = local.get(localKey(queueId, partition))
        owner?.tell(ready)
        return owner !== undefined
      },
      wake: (address, ready) =>
        client(entityId(address)).Wake({ ready }, { discard: true }).pipe(
          Effect.timeoutOption("1 second"),
          onLiveClock,
          Effect.withTracerEnabled(false),
          Effect.ignoreCause
        ),
      cancel: (address, jobId, by) =>
        isReachable(address)
          ? bounded(address, client(entityId(address)).Cancel({ jobId, ...(by === undefined ? {} : { by }) }))
          : outOfReach(address),
      cancelHere: (queueId, partition, jobId, by) => local.get(localKey(queueId, partition))?.cancel(jobId, by),
      view: (address, jobId) =>
        isReachable(address)
          ? Effect.map(bounded(address, client(entityId(address)).View({ jobId })), (view) => view ?? undefined)
          : outOfReach(address)
    })
  }))

/** The entity, its activators, and the way to reach it. */
export const layer = (
  options: Options
): Layer.Layer<
  Owners,
  never,
  Sharding.Sharding | ShardLocks | JobStore | JobHandlers | EventBus | Queues | SecureRandom
> =>
  Layer.unwrap(Effect.gen(function*() {
    const local: Local = new Map()
    const incarnation = yield* (yield* SecureRandom).uuidV4()
    return Layer.mergeAll(layerEntity(options, local, incarnation), layerActivators).pipe(
      Layer.provideMerge(layerOwners(local))
    )
  }))

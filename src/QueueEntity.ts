/**
 * A queue's partition as a cluster Entity: the shard lock says who owns it, messages are commands, the work runs in the entity's scope.
 *
 * No job ever travels in a message: the table is the mailbox. A lost message costs a sweep.
 */
import * as ClusterSchema from "effect/cluster/ClusterSchema"
import * as Entity from "effect/cluster/Entity"
import { EntityId } from "effect/cluster/EntityId"
import * as Sharding from "effect/cluster/Sharding"
import * as Context from "effect/Context"
import { SecureRandom } from "effect/crypto/SecureRandom"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Rpc from "effect/rpc/Rpc"
import * as Schema from "effect/Schema"
import { EventBus } from "./EventBus.ts"
import * as Activators from "./internal/activators.ts"
import { isDone } from "./internal/atOnce.ts"
import { Division } from "./internal/cluster.ts"
import type * as Grace from "./internal/grace.ts"
import type { Moves } from "./internal/moves.ts"
import { type Address, outOfReach, Owners, partitionName, type Reach } from "./internal/owners.ts"
import * as Partition from "./internal/partition.ts"
import { addressOf, entityIds } from "./internal/placement.ts"
import { Queues } from "./internal/queues.ts"
import * as RunWatch from "./internal/runWatch.ts"
import * as ShardGroups from "./internal/shardGroups.ts"
import { ShardLocks, shardName } from "./internal/supervisor.ts"
import * as Suspects from "./internal/suspects.ts"
import { onLiveClock } from "./internal/time/liveClock.ts"
import * as Unwritten from "./internal/unwritten.ts"
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
  dueAt: Schema.optionalKey(Schema.Finite),
  key: Schema.optionalKey(Schema.String)
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

/** The entity. Its ids are those of placement.ts; its messages are volatile, and only ever gain optional keys: runners of two versions talk. */
export const QueueEntity = Entity.make("Queue", [
  Rpc.make("Wake", { payload: { ready: Schema.Array(Ready) } }),
  Rpc.make("Cancel", {
    payload: { jobId: JobId, by: Schema.optionalKey(Schema.String) },
    success: Schema.Boolean,
    error: PartitionUnavailable
  }),
  Rpc.make("View", { payload: { jobId: JobId }, success: Schema.NullOr(View), error: PartitionUnavailable }),
  Rpc.make("Snapshot", { success: Snapshot, error: PartitionUnavailable })
]).annotateRpcs(ClusterSchema.ClientTracingEnabled, false)

/** How partitions are run. */
export interface Options {
  readonly graceMs: number
  readonly abandonAfterMs: number
  readonly handlerGraceMs: number
  /** Services of the runtime for attempts and timers, its Clock among them. */
  readonly services: Context.Context<never>
  /** The shard group that a queue's partitions are in, by the number that the table has. */
  readonly groupOf: (shardGroup: number) => string
  /** Tells of partitions that come and go. */
  readonly moves: Moves
  /** What is used of the grace period when the process leaves. */
  readonly together: Grace.Together
  /** Whether other runners can be reached by messages. */
  readonly isClustered: boolean
}

const definedOnly = (view: Partition.View) => ({
  isRunning: view.isRunning,
  ...(view.startedAt === undefined ? {} : { startedAt: view.startedAt }),
  ...(view.progress === undefined ? {} : { progress: view.progress }),
  ...(view.message === undefined ? {} : { message: view.message })
})

/** The partitions that this process owns now. */
type Local = Map<string, Partition.Partition>

const localKey = (queueId: number, partition: number) => `${queueId}/${partition}`

type Groups = (id: string) => string

/** The shard group of an entity. That of a queue nobody has heard of here is a guess: its messages time out. */
const groupsOf = (queues: Queues["Service"], { groupOf }: Options): Groups => (id) => {
  const known = queues.byName(addressOf(id).queue)
  return isDone(known) && Exit.isSuccess(known) && Option.isSome(known.value)
    ? groupOf(known.value.value.row.shardGroup)
    : groupOf(0)
}

const entityOf = (groups: Groups) => QueueEntity.annotate(ClusterSchema.ShardGroup, groups)

/** A partition of a queue that this process does not declare, though its shard is here: nobody takes it over, and whoever asks is told so. */
const unserved = (entity: string) => {
  const unavailable = Effect.fail(new PartitionUnavailable({ entity }))
  return QueueEntity.of({
    Wake: () => Effect.void,
    Cancel: () => unavailable,
    View: () => unavailable,
    Snapshot: () => unavailable
  })
}

/** Registers the entity: whoever owns a partition's shard runs it. */
const layerEntity = (
  options: Options,
  groups: Groups,
  { incarnation, local, suspects, together, unwritten }: {
    readonly local: Local
    /** This process, as long as it lives. */
    readonly incarnation: string
    readonly suspects: Suspects.Suspects
    readonly unwritten: Unwritten.Unwritten
    readonly together: Grace.Together
  }
) =>
  entityOf(groups).toLayer(
    Effect.gen(function*() {
      const address = yield* Entity.CurrentAddress
      const { host, port } = yield* Entity.CurrentRunnerAddress
      const runWatch = Context.get(options.services, RunWatch.Current)
      const queues = yield* Queues
      const locks = yield* ShardLocks
      const { partition: index, queue: name } = addressOf(address.entityId)
      const here = partitionName({ queue: name, partition: index })
      const known = queues.declared.find(({ row }) => row.name === name)
      if (known === undefined || !Number.isInteger(index)) {
        yield* Effect.logWarning(`This process has the shard of ${here} and does not declare its queue`)
        return unserved(here)
      }
      const { row } = known
      const partition = yield* Partition.make({
        store: yield* JobStore,
        handlers: yield* JobHandlers,
        bus: yield* EventBus,
        queue: queues.partOf(known, index),
        queueId: row.queueId,
        partition: index,
        position: { runner: `${host}:${port}`, shard: shardName(address.shardId), entity: here },
        incarnation,
        services: options.services,
        graceMs: options.graceMs,
        abandonAfterMs: options.abandonAfterMs,
        handlerGraceMs: options.handlerGraceMs,
        lock: locks.of(address.shardId),
        suspects,
        unwritten,
        moves: options.moves,
        runWatch,
        together
      })
      const key = localKey(row.queueId, index)
      yield* Effect.acquireRelease(
        Effect.sync(() => local.set(key, partition)),
        () => Effect.sync(() => local.get(key) === partition && local.delete(key))
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

/** How long a question to an owner waits. An owner that does not answer is frozen or gone. */
const patience = { cancel: "10 seconds", view: "1 second" } as const

/** Messages to partitions, bounded in time. */
const layerOwners = (
  options: Options,
  groups: Groups,
  { idOf, local }: { readonly idOf: (address: Address) => string; readonly local: Local }
): Layer.Layer<Owners, never, Sharding.Sharding> =>
  Layer.effect(Owners)(Effect.gen(function*() {
    const sharding = yield* Sharding.Sharding
    const client = yield* entityOf(groups).client
    const bounded = <A, E>(
      address: Address,
      within: Duration.Input,
      effect: Effect.Effect<A, E>
    ): Effect.Effect<A, PartitionUnavailable> =>
      Effect.suspend(() => {
        const unavailable = Effect.fail(new PartitionUnavailable({ entity: partitionName(address) }))
        return effect.pipe(
          Effect.catch(() => unavailable),
          // Of a runner whose version does not know the message.
          Effect.catchDefect(() => unavailable),
          Effect.timeoutOrElse({ duration: within, orElse: () => unavailable }),
          onLiveClock,
          Effect.withTracerEnabled(false)
        )
      })
    const isHere = (address: Address) => {
      const id = idOf(address)
      return sharding.hasShardId(sharding.getShardId(EntityId.make(id), groups(id)))
    }
    const reach = (address: Address): Reach => isHere(address) ? "here" : options.isClustered ? "cluster" : "database"
    return Owners.of({
      reach,
      tell: (queueId, partition, ready) => {
        const owner = local.get(localKey(queueId, partition))
        owner?.tell(ready)
        return owner !== undefined
      },
      wake: (address, ready) =>
        // While it leaves the cluster messages are dropped, and that looks like success.
        Effect.flatMap(
          sharding.isShutdown,
          (isLeaving) =>
            isLeaving
              ? Effect.succeedNone
              : Effect.timeoutOption(client(idOf(address)).Wake({ ready }, { discard: true }), "1 second")
        ).pipe(
          Effect.map(Option.isSome),
          Effect.catchCause(() => Effect.succeed(false)),
          onLiveClock,
          Effect.withTracerEnabled(false)
        ),
      cancel: (address, jobId, by) =>
        reach(address) === "database"
          ? outOfReach(address)
          : bounded(
            address,
            patience.cancel,
            client(idOf(address)).Cancel({ jobId, ...(by === undefined ? {} : { by }) })
          ),
      cancelHere: (queueId, partition, jobId, by) => local.get(localKey(queueId, partition))?.cancel(jobId, by),
      view: (address, jobId) =>
        reach(address) === "database"
          ? outOfReach(address)
          : Effect.map(
            bounded(address, patience.view, client(idOf(address)).View({ jobId })),
            (view) => view ?? undefined
          )
    })
  }))

/** The entity, its activators, and the way to reach it. */
export const layer = (
  options: Options
): Layer.Layer<
  Owners,
  never,
  Sharding.Sharding | ShardLocks | Division | JobStore | JobHandlers | EventBus | Queues | SecureRandom
> =>
  Layer.unwrap(Effect.gen(function*() {
    const queues = yield* Queues
    const sharding = yield* Sharding.Sharding
    const { shards } = yield* Division
    // Its number does not depend on the group.
    const idOf = entityIds(shards, (id) => sharding.getShardId(EntityId.make(id), ShardGroups.single).id)
    const local: Local = new Map()
    const groups = groupsOf(queues, options)
    const incarnation = yield* (yield* SecureRandom).uuidV4()
    const activators = Activators.layer({
      idOf,
      groupOf: groups,
      isHere: ({ partition, queueId }) => local.has(localKey(queueId, partition))
    })
    const entity = layerEntity(options, groups, {
      local,
      incarnation,
      suspects: Suspects.make(),
      unwritten: Unwritten.make(),
      together: options.together
    })
    return Layer.mergeAll(entity, activators)
      .pipe(
        Layer.provideMerge(layerOwners(options, groups, { idOf, local }))
      )
  }))

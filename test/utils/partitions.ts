/**
 * The runtime without a cluster: one partition a queue, owned by the test, so that a test sees what an owner holds in memory and can put
 * a second owner beside it. Jobs, waker and settler are the real ones; the store is PostgreSQL or memory.
 */
import * as NodeCrypto from "@effect/platform-node/NodeCrypto"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { randomUUID } from "node:crypto"
import * as EventBus from "../../src/EventBus.ts"
import * as Moves from "../../src/internal/moves.ts"
import { Owners, partitionName } from "../../src/internal/owners.ts"
import * as Partition from "../../src/internal/partition.ts"
import * as Queues from "../../src/internal/queues.ts"
import * as RunWatch from "../../src/internal/runWatch.ts"
import * as Supervisor from "../../src/internal/supervisor.ts"
import * as Suspects from "../../src/internal/suspects.ts"
import * as Unwritten from "../../src/internal/unwritten.ts"
import * as Waker from "../../src/internal/waker.ts"
import * as JobHandlers from "../../src/JobHandlers.ts"
import type { JobQueue } from "../../src/JobQueue.ts"
import * as Jobs from "../../src/Jobs.ts"
import { JobStore } from "../../src/JobStore.ts"
import * as MemoryJobStore from "../../src/MemoryJobStore.ts"
import * as PgJobStore from "../../src/PgJobStore.ts"
import { TestDatabase } from "./database.ts"

/** How the partitions are run. */
export interface Options {
  readonly queues: ReadonlyArray<JobQueue>
  readonly handlerGraceMs?: number
  readonly eventBus?: Layer.Layer<EventBus.EventBus>
  /** Default: always held. */
  readonly lock?: Supervisor.Lock
  /** Of these queues other ones. */
  readonly locks?: Readonly<Record<string, Supervisor.Lock>>
  /** Default: of the partitions together, by the real clock. */
  readonly suspects?: Suspects.Suspects
  /** Puts something of the test's own between the runtime and its store. */
  readonly changeStore?: (store: JobStore["Service"]) => JobStore["Service"]
}

/** The owned partitions. Messages go to the latest owner of each. */
export class Partitions extends Context.Service<Partitions, {
  /** Partition 0 of a queue. */
  readonly of: (queue: JobQueue) => Partition.Partition
  /** Takes the queue over, beside the owner before, who does not know it yet. */
  readonly takeOver: (queue: JobQueue) => Effect.Effect<Partition.Partition, never, Scope.Scope>
}>()("millrace/test/Partitions") {}

const layerPartitions = (options: Options) =>
  Layer.effectContext(Effect.gen(function*() {
    const store = yield* JobStore
    const handlers = yield* JobHandlers.JobHandlers
    const bus = yield* EventBus.EventBus
    const { declared } = yield* Queues.Queues
    const services = yield* Effect.context()
    const owned = new Map<string, Partition.Partition>()
    const takeOver = (name: string, suspects: Suspects.Suspects) =>
      Effect.gen(function*() {
        const known = declared.find(({ row }) => row.name === name)
        if (known === undefined) return yield* Effect.die(new Error(`no queue ${name}`))
        const entity = partitionName({ queue: name, partition: 0 })
        const partition = yield* Partition.make({
          store,
          handlers,
          bus,
          queue: known.queue,
          queueId: known.row.queueId,
          partition: 0,
          position: { runner: "test", shard: "default:1", entity },
          // As if each were another process.
          incarnation: randomUUID(),
          services,
          graceMs: 0,
          abandonAfterMs: 5_000,
          handlerGraceMs: options.handlerGraceMs ?? 900_000,
          lock: options.locks?.[name] ?? options.lock ?? Supervisor.always,
          suspects,
          unwritten: Unwritten.make(),
          moves: Moves.none,
          runWatch: RunWatch.make()
        })
        owned.set(entity, partition)
        return partition
      })
    const together = options.suspects ?? Suspects.make()
    yield* Effect.forEach(declared, ({ row }) => takeOver(row.name, together), { discard: true })
    const at = (entity: string) => {
      const partition = owned.get(entity)
      if (partition === undefined) throw new Error(`no partition ${entity}`)
      return partition
    }
    return Context.make(
      Owners,
      Owners.of({
        reach: (address) => owned.has(partitionName(address)) ? "here" : "database",
        tell: (queueId, _, ready) => {
          const known = declared.find(({ row }) => row.queueId === queueId)
          const partition = known === undefined
            ? undefined
            : owned.get(partitionName({ queue: known.row.name, partition: 0 }))
          partition?.tell(ready)
          return partition !== undefined
        },
        wake: (address, ready) => Effect.as(at(partitionName(address)).wake(ready), true),
        cancel: (address, jobId, by) => at(partitionName(address)).cancel(jobId, by),
        cancelHere: () => undefined,
        view: (address, jobId) =>
          Effect.sync(() => {
            const view = at(partitionName(address)).view(jobId)
            if (view === undefined) return undefined
            const { isRunning, message, progress, startedAt } = view
            return {
              isRunning,
              ...(message === undefined ? {} : { message }),
              ...(progress === undefined ? {} : { progress }),
              ...(startedAt === undefined ? {} : { startedAt })
            }
          })
      })
    ).pipe(Context.add(
      Partitions,
      Partitions.of({
        of: (queue) => at(partitionName({ queue: queue.name, partition: 0 })),
        takeOver: (queue) => takeOver(queue.name, Suspects.make())
      })
    ))
  }))

const layerOver = <R, E>(options: Options, store: Layer.Layer<JobStore | R, E>) =>
  Jobs.layer.pipe(
    Layer.provide(Waker.layer),
    Layer.provideMerge(layerPartitions(options)),
    Layer.provideMerge(Layer.mergeAll(
      JobHandlers.layer,
      options.eventBus ?? EventBus.layer(),
      NodeCrypto.layer,
      Queues.layer(options.queues).pipe(Layer.provideMerge(store))
    )),
    Layer.orDie
  )

const changed = <R, E>({ changeStore }: Options, store: Layer.Layer<JobStore, E, R>): Layer.Layer<JobStore, E, R> =>
  changeStore === undefined
    ? store
    : Layer.effect(JobStore, Effect.map(JobStore, (inner) => JobStore.of(changeStore(inner)))).pipe(
      Layer.provide(store)
    )

/** Partitions of the test's own, in memory. */
export const layerMemory = (options: Options) => layerOver(options, changed(options, MemoryJobStore.layer))

/** Partitions of the test's own, on a fresh database. */
export const layerPostgres = (options: Options) =>
  layerOver(options, changed(options, PgJobStore.layer()).pipe(Layer.provideMerge(TestDatabase.layer)))

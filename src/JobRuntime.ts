/**
 * How a process is wired: the store, the cluster that says who owns a queue, the queues' entities, and the service `Jobs`.
 *
 * A process that dies leaves its locks to the database, which frees them; the next owner takes over by epoch.
 */
import * as NodeCrypto from "@effect/platform-node/NodeCrypto"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as EventBus from "./EventBus.ts"
import * as Health from "./Health.ts"
import { closingSoon } from "./internal/closingSoon.ts"
import * as Cluster from "./internal/cluster.ts"
import type { ClusterError } from "./internal/clusterError.ts"
import * as Commands from "./internal/commands.ts"
import * as Grace from "./internal/grace.ts"
import * as Hosts from "./internal/hosts.ts"
import * as Moves from "./internal/moves.ts"
import * as Outage from "./internal/outage.ts"
import * as Owners from "./internal/owners.ts"
import * as Queues from "./internal/queues.ts"
import * as RunnerSettings from "./internal/runnerSettings.ts"
import * as RunWatch from "./internal/runWatch.ts"
import * as ShardGroups from "./internal/shardGroups.ts"
import * as StoreOptions from "./internal/sql/options.ts"
import { atMost } from "./internal/time/liveClock.ts"
import * as Standstill from "./internal/time/standstill.ts"
import * as Unserved from "./internal/unserved.ts"
import * as Waker from "./internal/waker.ts"
import * as Watchers from "./internal/watchers.ts"
import { check, checkFields, durationLike, fieldsOf, millisOf } from "./internal/words/options.ts"
import type { LayoutError } from "./JobError.ts"
import * as JobHandlers from "./JobHandlers.ts"
import { isJobQueue, type JobQueue } from "./JobQueue.ts"
import * as Jobs from "./Jobs.ts"
import type { JobStore, StoreError } from "./JobStore.ts"
import type { MigrationError } from "./Migrations.ts"
import * as PgJobStore from "./PgJobStore.ts"
import type * as Postgres from "./Postgres.ts"
import * as QueueEntity from "./QueueEntity.ts"

export { ClusterError } from "./internal/clusterError.ts"
export type { Timing, Transport } from "./internal/runnerSettings.ts"

/** What all runtimes take. */
export interface ClientOptions extends PgJobStore.Options {
  /** The queues of this program. `default` is always there. */
  readonly queues?: ReadonlyArray<JobQueue>
  /** Where events go. Default: to subscribers in all processes, see `EventBus.layerPostgres`. */
  readonly eventBus?: Layer.Layer<EventBus.EventBus, never, JobStore>
}

/** What {@link layer} takes. */
export interface Options extends ClientOptions {
  /** How long running handlers may go on at shutdown. Default 25 seconds, below Kubernetes' 30. */
  readonly gracePeriod?: Duration.Input
  /**
   * How long a handler may take to end once it is interrupted: by its timeout, by a cancel, or after the grace period. Then it is abandoned:
   * its outcome is written, its place is free, its transaction is ended, and the job can no longer commit. What it does outside of that transaction goes on. Default 5 seconds; at a
   * shutdown never more than 2.2, so that all that follows the grace period takes 5 seconds at most.
   */
  readonly abandonAfter?: Duration.Input
  /** How long jobs of a type wait for a handler before they are dead-lettered as `HandlerMissing`. Default 15 minutes. */
  readonly handlerGracePeriod?: Duration.Input
}

/** What {@link layerCluster} takes. */
export interface ClusterOptions extends Options, RunnerSettings.RunnerOptions {}

/** What a runtime gives. */
export type Services = Jobs.Jobs | JobHandlers.JobHandlers | EventBus.EventBus | JobStore | Health.Health

/** Why a runtime cannot start, beside its settings. `PostgresError`: its sessions cannot be had, or are shared by a pooler. */
export type StartError = StoreError | MigrationError | LayoutError | Postgres.PostgresError

/** The part of this process that runs jobs. */
export class Runner extends Context.Service<Runner, {
  /**
   * Leaves: starts nothing more, gives running jobs their grace period, and hands each shard over as soon as the jobs of its partitions have
   * ended, while all handlers are still there. Partitions of several queues share a shard, those of different groups never do. Returns when
   * nothing runs here any more; the process still submits.
   */
  readonly drain: Effect.Effect<void>
  /** Whether it has been told to. */
  readonly isDraining: () => boolean
}>()("millrace/Runner") {}

/**
 * Runs until it is interrupted, as by SIGTERM, and then drains before any layer closes: the program of a worker.
 *
 * @example
 * JobRuntime.run.pipe(Effect.provide(WorkerLive), NodeRuntime.runMain)
 */
export const run: Effect.Effect<never, never, Runner> = Effect.flatMap(
  Runner,
  ({ drain }) => Effect.onInterrupt(Effect.never, () => drain)
)

const clientFields = [
  ...StoreOptions.fields,
  ...fieldsOf<Omit<ClientOptions, keyof StoreOptions.Options>>({ queues: true, eventBus: true })
]
const fields = [
  ...clientFields,
  ...fieldsOf<Omit<Options, keyof ClientOptions>>({ gracePeriod: true, abandonAfter: true, handlerGracePeriod: true })
]
const clusterFields = [...fields, ...RunnerSettings.fields]

/** Wrong options are a mistake of the program and throw a `RangeError` that names the field. */
const checkOptions = (where: string, options: ClientOptions, known: ReadonlyArray<string>): void => {
  checkFields(where, options, known)
  StoreOptions.resolve(where, options)
  const { eventBus, queues = [] } = options
  check(Array.isArray(queues), where, "queues", "an array of queues", queues)
  for (const [index, queue] of queues.entries()) {
    check(isJobQueue(queue), where, `queues[${index}]`, "a queue of JobQueue.make", queue)
  }
  check(eventBus === undefined || Layer.isLayer(eventBus), where, "eventBus", "a layer of an EventBus", eventBus)
}

/** A period without an end is one too. */
const periodOf = (where: string, field: keyof Options, input: Duration.Input): number => {
  const millis = millisOf(input)
  check(millis >= 0, where, field, `a duration that is not negative, ${durationLike}`, input)
  return millis
}

const periodsOf = (
  where: string,
  { abandonAfter = "5 seconds", gracePeriod = "25 seconds", handlerGracePeriod = "15 minutes" }: Options
) => ({
  graceMs: periodOf(where, "gracePeriod", gracePeriod),
  abandonAfterMs: periodOf(where, "abandonAfter", abandonAfter),
  handlerGraceMs: periodOf(where, "handlerGracePeriod", handlerGracePeriod)
})

const schemaOf = (options: ClientOptions) => options.schema ?? "millrace"

/** How long may take to end what only has statements under way: those that a server does not answer would never. */
const closingMs = 200

const base = ({ connections, eventBus, lockTimeout, queues, schema }: ClientOptions) =>
  Layer.mergeAll(
    JobHandlers.layer,
    eventBus ?? closingSoon(closingMs, EventBus.layerPostgres()),
    Queues.layer(queues ?? []),
    NodeCrypto.layer
  ).pipe(
    Layer.provideMerge(closingSoon(closingMs, PgJobStore.layer({ schema, connections, lockTimeout }))),
    Layer.provideMerge(Layer.mergeAll(Outage.layer, Standstill.layer, RunWatch.layer))
  )

/**
 * Submits only: for web servers, whose jobs run elsewhere. Owners hear of new jobs through the database. Wrong options throw a
 * `RangeError` that names the field.
 */
export const layerClient = (
  options: ClientOptions = {}
): Layer.Layer<Services, StoreError | MigrationError | LayoutError, Postgres.Client> => {
  checkOptions("JobRuntime.layerClient", options, clientFields)
  const services = Layer.mergeAll(Jobs.layer, Health.layer({ kind: "client", isDraining: () => false }))
  return closingSoon(closingMs, services.pipe(Layer.provide(Waker.layer))).pipe(
    Layer.provide([Owners.layerNone, Hosts.layerClient, Unserved.layerClient]),
    Layer.provideMerge(base(options))
  )
}

/** The queues' entities, in a scope of their own: they end before anything that they or their handlers stand on. */
const entities = (options: Omit<QueueEntity.Options, "services" | "moves" | "together">) =>
  Layer.effectContext(Effect.gen(function*() {
    const moves = yield* Moves.make(options)
    const scope = yield* Scope.fork(yield* Effect.scope)
    const services = yield* Effect.context()
    const together = Grace.together()
    const built = yield* Layer.buildWithScope(QueueEntity.layer({ ...options, moves, services, together }), scope)
    let isDraining = false
    // The database may be away, and handlers may hang: neither holds up a process that leaves.
    const closed = Effect.suspend(() => atMost(Grace.leftMs(together, options.graceMs), Scope.close(scope, Exit.void)))
    // Once: whoever asks again waits for the same end.
    const close = yield* Effect.cached(
      Effect.uninterruptible(moves.leaving(closed, () => isDraining))
    )
    yield* Effect.addFinalizer(() => close)
    const drain = Effect.suspend(() => {
      isDraining = true
      return close
    })
    return Context.add(built, Runner, Runner.of({ drain, isDraining: () => isDraining }))
  }))

const health = (kind: "single" | "cluster") =>
  Layer.unwrap(Effect.map(Runner, ({ isDraining }) => Health.layer({ kind, isDraining })))

/**
 * Submits and runs, in one process. Of several on one database one owns all queues and the others stand by: give each the same queues and
 * handlers. Wrong options throw a `RangeError` that names the field. Give it the database below and the handlers above:
 *
 * @example
 * const MainLive = IndexFileLive.pipe(
 *   Layer.provideMerge(JobRuntime.layer({ queues: [Documents] })),
 *   Layer.provideMerge(Postgres.layer())
 * )
 */
export const layer = (
  options: Options = {}
): Layer.Layer<Services | Runner, StartError, Postgres.Client> => {
  const where = "JobRuntime.layer"
  checkOptions(where, options, fields)
  const periods = periodsOf(where, options)
  const services = Layer.mergeAll(
    Jobs.layer,
    health("single"),
    Watchers.listener,
    Commands.layer,
    Watchers.retention,
    Watchers.standby
  ).pipe(Layer.provide([Waker.layer, Unserved.layer]))
  return closingSoon(closingMs, services).pipe(
    Layer.provideMerge(entities({ ...periods, groupOf: () => ShardGroups.single, isClustered: false })),
    Layer.provide(Cluster.layerSingle(schemaOf(options))),
    Layer.provideMerge(base(options))
  )
}

/**
 * Submits and runs, as one of several processes that share the work: each partition of a queue is owned by one of them at a time, and moves
 * when one joins, leaves or dies. They find each other through the database and talk to each other directly. Misspelt options, and wrong ones
 * that {@link layer} takes, throw a `RangeError` that names the field; wrong settings of the runner fail with a `ClusterError` that does.
 *
 * @example
 * const WorkerLive = IndexFileLive.pipe(
 *   Layer.provideMerge(JobRuntime.layerCluster({ queues: [Documents], host: "10.0.0.7" })),
 *   Layer.provideMerge(Postgres.layer())
 * )
 */
export const layerCluster = (
  options: ClusterOptions = {}
): Layer.Layer<Services | Runner, StartError | ClusterError, Postgres.Client> => {
  const where = "JobRuntime.layerCluster"
  checkOptions(where, options, clusterFields)
  if (options.timing !== undefined) checkFields(where, options.timing, RunnerSettings.timingFields, "timing")
  const periods = periodsOf(where, options)
  const services = Layer.mergeAll(
    Jobs.layer,
    health("cluster"),
    Watchers.listener,
    Commands.layer,
    Watchers.retention
  ).pipe(Layer.provide([Waker.layer, Unserved.layer]))
  return closingSoon(closingMs, services).pipe(
    Layer.provideMerge(entities({ ...periods, groupOf: ShardGroups.nameOf, isClustered: true })),
    Layer.provide(runner(options)),
    Layer.provideMerge(base(options))
  )
}

/** The settings are checked first. The transports are loaded only where there is a cluster: they take a while. */
const runner = (options: ClusterOptions) =>
  Layer.unwrap(Effect.gen(function*() {
    yield* RunnerSettings.warnOfUnknown
    const settings = yield* RunnerSettings.resolve(options)
    yield* Unserved.warnOfIdle(settings.groups)
    const { byName } = yield* Effect.promise(() => import("./internal/transport.ts"))
    const schema = schemaOf(options)
    switch (settings.transport) {
      case "socket":
        return Cluster.layerRunner(schema, settings, byName.socket)
      case "http":
        return Cluster.layerRunner(schema, settings, byName.http)
      case "websocket":
        return Cluster.layerRunner(schema, settings, byName.websocket)
    }
  }))

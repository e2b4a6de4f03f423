/**
 * How a process is wired: the store, the cluster that says who owns a queue, the queues' entities, and the service `Jobs`.
 *
 * A process that dies leaves its locks to the database, which frees them; the next owner takes over by epoch.
 */
import * as NodeCrypto from "@effect/platform-node/NodeCrypto"
import * as Clock from "effect/Clock"
import * as MessageStorage from "effect/cluster/MessageStorage"
import * as RunnerAddress from "effect/cluster/RunnerAddress"
import * as RunnerHealth from "effect/cluster/RunnerHealth"
import * as Runners from "effect/cluster/Runners"
import * as Sharding from "effect/cluster/Sharding"
import * as ShardingConfig from "effect/cluster/ShardingConfig"
import * as SqlRunnerStorage from "effect/cluster/SqlRunnerStorage"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as References from "effect/References"
import * as Schedule from "effect/Schedule"
import * as EventBus from "./EventBus.ts"
import * as Commands from "./internal/commands.ts"
import * as Owners from "./internal/owners.ts"
import * as Queues from "./internal/queues.ts"
import * as Supervisor from "./internal/supervisor.ts"
import { liveClock, onLiveClock } from "./internal/time/liveClock.ts"
import * as Waker from "./internal/waker.ts"
import * as JobHandlers from "./JobHandlers.ts"
import type { JobQueue } from "./JobQueue.ts"
import * as Jobs from "./Jobs.ts"
import { JobStore, type StoreError } from "./JobStore.ts"
import type { MigrationError } from "./Migrations.ts"
import * as PgJobStore from "./PgJobStore.ts"
import * as Postgres from "./Postgres.ts"
import * as QueueEntity from "./QueueEntity.ts"

/** What both runtimes take. */
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
  /** How long jobs of a type wait for a handler before they are dead-lettered as `HandlerMissing`. Default 15 minutes. */
  readonly handlerGracePeriod?: Duration.Input
}

/** What a runtime gives. */
export type Services = Jobs.Jobs | JobHandlers.JobHandlers | EventBus.EventBus | JobStore

const lockExpiration = Duration.seconds(10)

/** One fixed address: of several single-process runtimes on one database one owns all queues, the others stand by. */
const address = RunnerAddress.make("millrace", 1)

const schemaOf = (options: ClientOptions) => options.schema ?? "millrace"

const base = (options: ClientOptions) =>
  Layer.mergeAll(
    JobHandlers.layer,
    options.eventBus ?? EventBus.layerPostgres(),
    Queues.layer(options.queues ?? []),
    NodeCrypto.layer
  ).pipe(Layer.provideMerge(PgJobStore.layer(options)))

/**
 * Submits only: for web servers, whose jobs run elsewhere. Owners hear of new jobs through the database.
 */
export const layerClient = (
  options: ClientOptions = {}
): Layer.Layer<Services, StoreError | MigrationError, Postgres.Client> =>
  Jobs.layer.pipe(
    Layer.provide(Waker.layer),
    Layer.provide(Owners.layerNone),
    Layer.provideMerge(base(options))
  )

/** The cluster of one process, always on the real clock: its locks must not expire when a test moves time. */
const cluster = (options: ClientOptions) => {
  const config = ShardingConfig.layer({
    runnerAddress: Option.some(address),
    runnerListenAddress: Option.none(),
    // One process owns them all: a few spread its locks' work, more would only be more to lose when the database goes away.
    shardsPerGroup: 16,
    shardLockExpiration: lockExpiration,
    shardLockRefreshInterval: Duration.seconds(2),
    refreshAssignmentsInterval: Duration.seconds(1),
    entityMessagePollInterval: Duration.seconds(1),
    entityMailboxCapacity: "unbounded",
    maxResidentEntities: "unbounded",
    entityTerminationTimeout: Duration.seconds(5),
    simulateRemoteSerialization: false,
    // The entities end first, with their grace period, while the locks are still held and refreshed.
    preemptiveShutdown: false
  })
  // Its tables lie in our schema, so the migrations have to come first. Two connections: with one it hangs.
  const pool = Postgres.layerPool({
    maxConnections: 2,
    applicationName: "millrace locks",
    startupParameters: { search_path: schemaOf(options) }
  })
  const storage = Layer.unwrap(Effect.as(
    JobStore,
    // Advisory locks are numbered by this name in the whole database: two schemas must not share it.
    SqlRunnerStorage.layerWith({ prefix: `${schemaOf(options)}_cluster` }).pipe(
      Layer.provide(pool),
      Layer.orDie,
      Layer.provide(Layer.succeed(References.TracerEnabled, false))
    )
  ))
  return Sharding.layer.pipe(
    Layer.provideMerge(Runners.layerNoop),
    Layer.provideMerge(MessageStorage.layerNoop),
    Layer.provide(RunnerHealth.layerNoop),
    Layer.provideMerge(Supervisor.layer(lockExpiration)),
    Layer.provide(storage),
    Layer.provide(config),
    Layer.provide(Layer.succeed(Clock.Clock, liveClock))
  )
}

/** Passes on what submitters in other processes announce. */
const listener = Layer.effectDiscard(Effect.gen(function*() {
  const store = yield* JobStore
  const owners = yield* Owners.Owners
  const queues = yield* Queues.Queues
  yield* Effect.gen(function*() {
    const announcements = yield* store.announcements
    while (true) {
      for (const ready of yield* Queue.take(announcements)) {
        const known = queues.declared.find(({ row }) => row.queueId === ready.queueId)
        if (known === undefined) continue
        const to = { queue: known.row.name, partition: ready.partition }
        if (owners.isReachable(to)) yield* owners.wake(to, [ready])
      }
    }
  }).pipe(
    Effect.scoped,
    Effect.tapError((error) => Effect.logWarning("Not listening for submitters: trying again", error)),
    Effect.retry(Schedule.spaced("1 second")),
    onLiveClock,
    Effect.withTracerEnabled(false),
    Effect.forkScoped
  )
}))

/** Prepares the days ahead and drops those that are over, once an hour. */
const retention = Layer.effectDiscard(Effect.gen(function*() {
  const store = yield* JobStore
  yield* Effect.flatMap(store.now, store.purge).pipe(
    Effect.tapError((error) => Effect.logWarning("Could not purge finished jobs", error)),
    Effect.ignore,
    Effect.repeat(Schedule.spaced("1 hour")),
    onLiveClock,
    Effect.withTracerEnabled(false),
    Effect.forkScoped
  )
}))

/** Says who owns the queues when it is someone else. */
const standby = Layer.effectDiscard(Effect.gen(function*() {
  const owners = yield* Owners.Owners
  const { declared } = yield* Queues.Queues
  const isOwner = () => declared.every(({ row }) => owners.isReachable({ queue: row.name, partition: 0 }))
  yield* Effect.gen(function*() {
    yield* Effect.sleep("3 seconds")
    if (isOwner()) return
    yield* Effect.logInfo(
      "Another process owns the queues of this schema: standing by. Programs with other queues need a `schema` of their own"
    )
    yield* Effect.sync(isOwner).pipe(
      Effect.repeat({ until: (isOwner) => isOwner, schedule: Schedule.spaced("1 second") })
    )
    yield* Effect.logInfo("The other process is gone: taken over")
  }).pipe(onLiveClock, Effect.forkScoped)
}))

/** Whoever owns the queues owns all of the database's: says so when jobs wait in one that it does not declare, once a queue. */
const undeclared = Layer.effectDiscard(Effect.gen(function*() {
  const store = yield* JobStore
  const owners = yield* Owners.Owners
  const { declared } = yield* Queues.Queues
  const known = new Set(declared.map(({ row }) => row.name))
  const look = Effect.gen(function*() {
    if (!declared.every(({ row }) => owners.isReachable({ queue: row.name, partition: 0 }))) return
    for (const { name, queueId } of yield* store.queues) {
      if (known.has(name) || !(yield* store.depth({ queueId, partition: 0 }, 1)).some((count) => count > 0)) continue
      known.add(name)
      yield* Effect.logWarning(
        `Jobs wait in the queue "${name}", and this process, which owns the queues of this database, does not declare it: ` +
          "give it to JobRuntime.layer({ queues }), with the handlers of its jobs"
      )
    }
  })
  yield* Effect.ignore(look).pipe(
    Effect.repeat(Schedule.spaced("10 seconds")),
    Effect.delay("5 seconds"),
    onLiveClock,
    Effect.withTracerEnabled(false),
    Effect.forkScoped
  )
}))

/**
 * Submits and runs, in one process. Of several on one database one owns all queues and the others stand by: give each the same queues and
 * handlers. Give it the database below and the handlers above:
 *
 * @example
 * const MainLive = IndexFileLive.pipe(
 *   Layer.provideMerge(JobRuntime.layer({ queues: [Documents] })),
 *   Layer.provideMerge(Postgres.layer())
 * )
 */
export const layer = (options: Options = {}): Layer.Layer<Services, StoreError | MigrationError, Postgres.Client> => {
  const entities = Layer.unwrap(Effect.map(Effect.context(), (services) =>
    QueueEntity.layer({
      runner: `${address.host}:${address.port}`,
      graceMs: Duration.toMillis(Duration.fromInputUnsafe(options.gracePeriod ?? "25 seconds")),
      handlerGraceMs: Duration.toMillis(Duration.fromInputUnsafe(options.handlerGracePeriod ?? "15 minutes")),
      services
    })))
  return Layer.mergeAll(Jobs.layer, listener, Commands.layer, retention, standby, undeclared).pipe(
    Layer.provide(Waker.layer),
    Layer.provide(entities),
    Layer.provide(cluster(options)),
    Layer.provideMerge(base(options))
  )
}

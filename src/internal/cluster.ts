/**
 * The cluster of a runtime: whose is which shard, by locks in the database. One process that owns all of them, or a runner among others.
 *
 * It always runs on the real clock: its locks must not expire when a test moves time. A process that dies leaves its locks to the database,
 * which ends them with the session; the others see that it is gone by its heartbeat, or by asking it.
 */
import * as Clock from "effect/Clock"
import * as MessageStorage from "effect/cluster/MessageStorage"
import * as RunnerAddress from "effect/cluster/RunnerAddress"
import * as RunnerHealth from "effect/cluster/RunnerHealth"
import * as Runners from "effect/cluster/Runners"
import type { RunnerStorage } from "effect/cluster/RunnerStorage"
import * as Sharding from "effect/cluster/Sharding"
import * as ShardingConfig from "effect/cluster/ShardingConfig"
import * as SqlRunnerStorage from "effect/cluster/SqlRunnerStorage"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as References from "effect/References"
import type { LayoutError } from "../JobError.ts"
import { JobStore, type StoreError } from "../JobStore.ts"
import * as Postgres from "../Postgres.ts"
import { closingSoon } from "./closingSoon.ts"
import type { ClusterError } from "./clusterError.ts"
import * as ClusterLog from "./clusterLog.ts"
import type { Hosts } from "./hosts.ts"
import * as ManyLocks from "./manyLocks.ts"
import * as RunnerList from "./runnerList.ts"
import type { Settings } from "./runnerSettings.ts"
import * as ShardGroups from "./shardGroups.ts"
import * as Supervisor from "./supervisor.ts"
import { liveClock } from "./time/liveClock.ts"
import * as Standstill from "./time/standstill.ts"
import type * as Transport from "./transport.ts"
import * as Unanswering from "./unanswering.ts"

/** What the numbers of the locks depend on. */
export class Division extends Context.Service<Division, {
  /** How many shards a group has. */
  readonly shards: number
  readonly expiration: Duration.Duration
}>()("millrace/internal/Division") {}

/** What the entities of a runtime stand on. */
export type Cluster = Sharding.Sharding | Supervisor.ShardLocks | Division | Hosts

const common = {
  ...ShardingConfig.defaults,
  runnerListenAddress: Option.none(),
  // How often it tries for the locks of shards that are its own and still another's.
  entityMessagePollInterval: Duration.seconds(1),
  sendRetryInterval: Duration.millis(100),
  entityMailboxCapacity: "unbounded",
  maxResidentEntities: "unbounded",
  entityTerminationTimeout: Duration.seconds(5),
  simulateRemoteSerialization: false
} satisfies ShardingConfig.ShardingConfig["Service"]

/** The locks and the list of runners, in our schema, so the migrations have to come first. Two connections: with one it hangs. */
const layerStorage = (schema: string) =>
  Layer.unwrap(Effect.as(
    JobStore,
    // Advisory locks are numbered by this name in the whole database: two schemas must not share it.
    SqlRunnerStorage.layerWith({ prefix: `${schema}_cluster` }).pipe(
      Layer.orDie,
      Layer.provide(Postgres.layerSessions({
        maxConnections: 2,
        applicationName: "millrace locks",
        startupParameters: { search_path: schema }
      })),
      Layer.provide(Layer.succeed(References.TracerEnabled, false))
    )
  ))

/** Nobody joins who counts the shards otherwise than those who live; who joined at the same moment as one who does lets go of its locks. */
const supervised = (
  schema: string,
  division: Division["Service"],
  standstill: Standstill.Standstill
): Layer.Layer<
  RunnerStorage | Supervisor.ShardLocks | Division | Hosts,
  StoreError | LayoutError | Postgres.PostgresError,
  JobStore | Postgres.Client | ShardingConfig.ShardingConfig
> =>
  Layer.unwrap(Effect.gen(function*() {
    const { expiration, shards } = division
    const store = yield* JobStore
    yield* store.agreeOnShards({ shards, expirationMs: Duration.toMillis(expiration) })
    const isAgreed = Effect.map(store.shards, Option.contains(shards))
    return Supervisor.layer(expiration, isAgreed, standstill).pipe(
      Layer.provideMerge(RunnerList.layer),
      Layer.provide(ManyLocks.layer),
      Layer.provide(layerStorage(schema)),
      Layer.merge(Layer.succeed(Division, Division.of(division)))
    )
  }))

/** How long its end is waited for: with a database that answers it takes a moment, without one its locks have ended anyway. */
const closingMs = 400

/** On the real clock, and with a log that repeats nothing. */
const watched = <A, E, R>(cluster: (standstill: Standstill.Standstill) => Layer.Layer<A, E, R>): Layer.Layer<A, E, R> =>
  Layer.unwrap(Effect.map(Standstill.Current, (standstill) =>
    closingSoon(closingMs, cluster(standstill)).pipe(
      Layer.provide(Layer.succeed(Clock.Clock, liveClock)),
      Layer.provide(ClusterLog.layer(standstill))
    )))

/** One fixed address: of several single-process runtimes on one database one owns all queues, the others stand by. */
const singleAddress = RunnerAddress.make("millrace", 1)

/** The cluster of one process. */
export const layerSingle = (
  schema: string
): Layer.Layer<Cluster, StoreError | LayoutError | Postgres.PostgresError, JobStore | Postgres.Client> => {
  // One process owns them all: a few spread its locks' work, more would only be more to lose when the database goes away.
  const division = { shards: 16, expiration: Duration.seconds(10) }
  const config = Layer.succeed(ShardingConfig.ShardingConfig, {
    ...common,
    runnerAddress: Option.some(singleAddress),
    availableShardGroups: [ShardGroups.single],
    assignedShardGroups: [ShardGroups.single],
    shardsPerGroup: division.shards,
    shardLockExpiration: division.expiration,
    shardLockRefreshInterval: Duration.seconds(3),
    refreshAssignmentsInterval: Duration.seconds(1),
    // The entities end first, with their grace period, while the locks are still held and refreshed.
    preemptiveShutdown: false
  })
  return watched((standstill) =>
    Sharding.layer.pipe(
      Layer.provide(Runners.layerNoop),
      Layer.provide(MessageStorage.layerNoop),
      Layer.provide(RunnerHealth.layerNoop),
      Layer.provideMerge(supervised(schema, division, standstill)),
      Layer.provide(config)
    )
  )
}

/** Asks the runner itself. One that is frozen does not answer; that it does not for a moment is no reason to take its partitions away. */
const layerHealth = (transport: Settings["transport"]) =>
  Layer.effect(
    RunnerHealth.RunnerHealth,
    Effect.gen(function*() {
      const runners = yield* Runners.Runners
      const unanswering = yield* Unanswering.make(transport)
      return RunnerHealth.RunnerHealth.of({
        isAlive: (address) => {
          const { failed, over } = unanswering.ask(address)
          return runners.ping(address).pipe(
            Effect.timeout("2 seconds"),
            Effect.tapError(() => failed),
            Effect.retry({ times: 2 }),
            Effect.isSuccess,
            Effect.tap(over)
          )
        }
      })
    })
  ).pipe(Layer.provide(Runners.layerRpc), Layer.provide(Layer.succeed(References.TracerEnabled, false)))

const runnerConfig = (
  { host, port, shards, timing, weight }: Settings,
  groups: ReadonlyArray<number>,
  boundPort: number
): ShardingConfig.ShardingConfig["Service"] => ({
  ...common,
  runnerAddress: Option.some(RunnerAddress.make(host, port === 0 ? boundPort : port)),
  runnerShardWeight: weight,
  availableShardGroups: ShardGroups.all,
  assignedShardGroups: [...groups.map(ShardGroups.nameOf), ShardGroups.health],
  shardsPerGroup: shards,
  shardLockExpiration: timing.lockExpiration,
  shardLockRefreshInterval: timing.lockRefresh,
  refreshAssignmentsInterval: timing.assignments,
  runnerHealthCheckInterval: timing.health,
  runnerJoinDebounce: timing.joinDebounce,
  // It leaves the list first: what of its partitions has ended moves while the rest uses its grace period.
  preemptiveShutdown: true
})

/** A runner among others. It listens before it is on the list. */
export const layerRunner = <Server>(
  schema: string,
  settings: Settings,
  transport: Transport.Transport<Server>
): Layer.Layer<Cluster, ClusterError | StoreError | LayoutError | Postgres.PostgresError, JobStore | Postgres.Client> =>
  watched((standstill) =>
    transport.runner.pipe(
      Layer.provide(layerHealth(settings.transport)),
      Layer.provideMerge(
        supervised(schema, { shards: settings.shards, expiration: settings.timing.lockExpiration }, standstill)
      ),
      Layer.provide(transport.client),
      Layer.provide(MessageStorage.layerNoop),
      Layer.provide(Layer.effect(
        ShardingConfig.ShardingConfig,
        Effect.gen(function*() {
          const { shardGroups } = yield* JobStore
          return runnerConfig(settings, yield* shardGroups(settings.groups), yield* transport.boundPort)
        })
      )),
      Layer.provide(transport.server(settings.listen))
    )
  )

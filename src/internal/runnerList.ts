/**
 * Reads along when the cluster reads who is there, once a second, and remembers who hosts which shard group, and whether this runner counts
 * as alive.
 *
 * As old as the last look; a crash leaves nothing behind.
 */
import type { Runner } from "effect/cluster/Runner"
import { RunnerStorage } from "effect/cluster/RunnerStorage"
import { ShardingConfig } from "effect/cluster/ShardingConfig"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { Hosts } from "./hosts.ts"
import * as ShardGroups from "./shardGroups.ts"

/** Decorates the runner storage. */
export const layer: Layer.Layer<Hosts | RunnerStorage, never, RunnerStorage | ShardingConfig> = Layer.effectContext(
  Effect.gen(function*() {
    const storage = yield* RunnerStorage
    const { assignedShardGroups, runnerAddress } = yield* ShardingConfig
    const self = Option.getOrUndefined(runnerAddress)
    let others: ReadonlyArray<Runner> | undefined
    let isUnreached = false
    const decorated = RunnerStorage.of({
      ...storage,
      getRunners: Effect.tap(storage.getRunners, (runners) =>
        Effect.sync(() => {
          // One that does not answer is given no shards.
          others = runners.flatMap(([runner, isHealthy]) =>
            isHealthy && !Equal.equals(runner.address, self) ? [runner] : []
          )
          isUnreached = runners.some(([runner, isHealthy]) => !isHealthy && Equal.equals(runner.address, self))
        }))
    })
    const hosts = Hosts.of({
      isHere: (shardGroup) => ShardGroups.isHostedBy(assignedShardGroups, shardGroup),
      isElsewhere: (shardGroup) =>
        others === undefined || others.some(({ groups }) => ShardGroups.isHostedBy(groups, shardGroup)),
      unreachedAt: () => isUnreached && self !== undefined ? `${self.host}:${self.port}` : undefined
    })
    return Context.make(RunnerStorage, decorated).pipe(Context.add(Hosts, hosts))
  })
)

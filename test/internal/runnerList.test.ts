/**
 * Who hosts a shard group, as the list of runners has it.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Runner from "effect/cluster/Runner"
import * as RunnerAddress from "effect/cluster/RunnerAddress"
import { RunnerStorage } from "effect/cluster/RunnerStorage"
import * as ShardingConfig from "effect/cluster/ShardingConfig"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { Hosts } from "../../src/internal/hosts.ts"
import * as RunnerList from "../../src/internal/runnerList.ts"

type Listed = readonly [runner: Runner.Runner, isHealthy: boolean]

const runner = (port: number, ...groups: ReadonlyArray<string>) =>
  Runner.make({ address: RunnerAddress.make("host", port), groups, weight: 1 })

/** What the runner at port 1 knows when it has read such a list. */
const hosting = (assignedShardGroups: ReadonlyArray<string>, ...listed: ReadonlyArray<Listed>) =>
  Effect.gen(function*() {
    const config = Layer.succeed(ShardingConfig.ShardingConfig, {
      ...ShardingConfig.defaults,
      runnerAddress: Option.some(RunnerAddress.make("host", 1)),
      assignedShardGroups: [...assignedShardGroups]
    })
    const storage = Layer.mock(RunnerStorage, { getRunners: Effect.succeed([...listed]) })
    const context = yield* Layer.build(RunnerList.layer.pipe(Layer.provide([config, storage])))
    const hosts = Context.get(context, Hosts)
    const look = Context.get(context, RunnerStorage).getRunners
    return {
      hosts,
      look,
      here: () => [0, 1, 2].filter(hosts.isHere),
      elsewhere: () => [0, 1, 2].filter(hosts.isElsewhere)
    }
  })

describe("a shard group", () => {
  it.effect("is hosted by the runner itself, and by others that are alive, as of the last look; before it by everybody", () =>
    Effect.gen(function*() {
      const self = ["a00", "default"]
      const { elsewhere, here, look } = yield* hosting(
        self,
        [runner(1, ...self), true],
        [runner(2, "a01", "default"), true],
        [runner(3, "a02", "default"), false]
      )
      assert.deepStrictEqual(elsewhere(), [0, 1, 2])
      yield* look
      assert.deepStrictEqual([here(), elsewhere()], [[0], [1]])
    }))

  it.effect("is hosted, whichever it is, by a runtime of one process", () =>
    Effect.gen(function*() {
      const single = yield* hosting(["default"])
      yield* single.look
      assert.deepStrictEqual([single.here(), single.elsewhere()], [[0, 1, 2], []])
      const beside = yield* hosting(["a00", "default"], [runner(2, "default"), true])
      yield* beside.look
      assert.deepStrictEqual(beside.elsewhere(), [0, 1, 2])
    }))
})

describe("a runner", () => {
  const self = ["a00", "default"]
  const other: Listed = [runner(2, ...self), true]

  it.effect("that others do not reach knows it from the list; one that is not on it, or has not looked, does not", () =>
    Effect.gen(function*() {
      const reached = yield* hosting(self, [runner(1, ...self), true], [runner(2, ...self), false])
      const absent = yield* hosting(self, other)
      const unreached = yield* hosting(self, [runner(1, ...self), false], other)
      assert.isUndefined(unreached.hosts.unreachedAt())
      for (const { look } of [reached, absent, unreached]) yield* look
      assert.deepStrictEqual([reached, absent, unreached].map(({ hosts }) => hosts.unreachedAt()), [
        undefined,
        undefined,
        "host:1"
      ])
    }))
})

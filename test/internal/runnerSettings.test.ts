/**
 * The settings of a runner: options before the environment, defaults last, and the first that is wrong named with what was expected.
 */
import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { resolve, type RunnerOptions } from "../../src/internal/runnerSettings.ts"

const given = (options: RunnerOptions, env: Readonly<Record<string, string>> = {}) =>
  Effect.provideService(
    resolve(options),
    ConfigProvider.ConfigProvider,
    ConfigProvider.fromEnv({ env: { HOST: "wrong", PORT: "1", ...env } })
  )

describe("settings of a runner", () => {
  it.effect("come from the options, then from MILLRACE_RUNNER_*, then from the defaults, and never from HOST and PORT", () =>
    Effect.gen(function*() {
      const { timing, ...settings } = yield* given({ port: 0 }, {
        MILLRACE_RUNNER_HOST: "10.0.0.7",
        MILLRACE_RUNNER_PORT: "4711",
        MILLRACE_RUNNER_TRANSPORT: "http",
        MILLRACE_RUNNER_GROUPS: "default, gpu",
        MILLRACE_RUNNER_LOCK_EXPIRATION: "30 seconds"
      })
      assert.deepStrictEqual(settings, {
        host: "10.0.0.7",
        port: 0,
        listen: { host: "10.0.0.7", port: 0 },
        transport: "http",
        weight: 1,
        groups: ["default", "gpu"],
        shards: 16
      })
      assert.deepStrictEqual(Object.entries(timing).map(([name, value]) => [name, Duration.toMillis(value)]), [
        ["lockExpiration", 30_000],
        ["lockRefresh", 2_000],
        ["assignments", 1_000],
        ["health", 2_000],
        ["joinDebounce", 0]
      ])
    }))

  it.effect("of the port, where nobody names one: outside of what is given to outgoing connections", () =>
    Effect.gen(function*() {
      const { listen, port } = yield* given({ host: "a" })
      assert.deepStrictEqual([port, listen.port], [24_431, 24_431])
      assert.isBelow(port, 30_000)
    }))

  it.effect("of where it listens may differ from where it is reached", () =>
    Effect.gen(function*() {
      const { host, listen, port } = yield* given({
        host: "worker-7.example",
        port: 80,
        listenHost: "0.0.0.0",
        listenPort: 3000
      })
      assert.deepStrictEqual({ host, port, listen }, {
        host: "worker-7.example",
        port: 80,
        listen: { host: "0.0.0.0", port: 3000 }
      })
    }))

  const host = "a"
  const wrong: ReadonlyArray<readonly [string, RunnerOptions, Readonly<Record<string, string>>, string, RegExp]> = [
    ["no host", {}, {}, "host", /MILLRACE_RUNNER_HOST.*received nothing/],
    ["a host that is none to be reached at", { host: "0.0.0.0" }, {}, "host", /listenHost/],
    ["a host with a scheme", { host: "http://a" }, {}, "host", /host name/],
    ["a port that is none", { host, port: 65_536 }, {}, "port", /integer from 0 to 65535, received 65536/],
    ["a port of words", { host }, { MILLRACE_RUNNER_PORT: "http" }, "port", /MILLRACE_RUNNER_PORT.*received http/],
    ["an unknown transport", { host }, { MILLRACE_RUNNER_TRANSPORT: "udp" }, "transport", /socket, http, websocket/],
    ["no weight", { host, weight: 0 }, {}, "weight", /1 to 100/],
    ["no groups", { host, groups: [] }, {}, "groups", /names of groups/],
    [
      "a group that has no name",
      { host },
      { MILLRACE_RUNNER_GROUPS: "default,,gpu" },
      "groups",
      /received default,,gpu/
    ],
    ["too many shards", { host, shards: 1_001 }, {}, "shards", /1 to 1000/],
    ["a hasty expiration", { host, timing: { lockExpiration: "1 second" } }, {}, "timing.lockExpiration", /3s/],
    [
      "a duration of an unknown unit",
      { host, timing: { joinDebounce: { second: 1 } as object } },
      {},
      "timing.joinDebounce",
      /received \{"second":1\}/
    ],
    ["a duration of words", { host }, { MILLRACE_RUNNER_HEALTH: "soon" }, "timing.health", /received soon/],
    [
      "a refresh that comes too late",
      { host, timing: { lockRefresh: "3 seconds" } },
      {},
      "timing.lockRefresh",
      /a third of lockExpiration \(6s\)/
    ]
  ]
  for (const [name, options, env, field, message] of wrong) {
    it.effect(`refuse ${name}`, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(given(options, env))
        assert.deepInclude(error, { reason: "InvalidConfig", field })
        assert.match(error.message, message)
      }))
  }
})

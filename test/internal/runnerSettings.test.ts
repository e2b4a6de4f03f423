/**
 * The settings of a runner: options before the environment, defaults last, and the first that is wrong named with what was expected.
 */
import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { resolve, type RunnerOptions, warnOfUnknown } from "../../src/internal/runnerSettings.ts"
import { recordLog } from "../utils/logged.ts"

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
        ["lockRefresh", 10_000],
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

  it.effect("that are text in the environment are read as what they are", () =>
    Effect.gen(function*() {
      const { groups, listen, port, shards, weight } = yield* given({}, {
        MILLRACE_RUNNER_HOST: "a",
        MILLRACE_RUNNER_PORT: "",
        MILLRACE_RUNNER_LISTEN_PORT: "80",
        MILLRACE_RUNNER_WEIGHT: "2",
        MILLRACE_RUNNER_SHARDS: "32",
        MILLRACE_RUNNER_GROUPS: "default"
      })
      assert.deepStrictEqual({ groups, listen, port, shards, weight }, {
        groups: ["default"],
        listen: { host: "a", port: 80 },
        port: 24_431,
        shards: 32,
        weight: 2
      })
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
  /** Options as a caller without types gives them. */
  const untyped = (options: object) => options as RunnerOptions
  const wrong: ReadonlyArray<readonly [string, RunnerOptions, Readonly<Record<string, string>>, string, RegExp]> = [
    ["no host", {}, {}, "host", /MILLRACE_RUNNER_HOST.*received nothing/],
    ["a host that is none to be reached at", { host: "0.0.0.0" }, {}, "host", /listenHost.*received "0.0.0.0"/],
    ["a host with a scheme", { host: "http://a" }, {}, "host", /host name/],
    ["a port that is none", { host, port: 65_536 }, {}, "port", /integer from 0 to 65535, received 65536/],
    [
      "a port of words",
      { host },
      { MILLRACE_RUNNER_PORT: "http" },
      "port",
      /port \(MILLRACE_RUNNER_PORT\): .*received "http"/
    ],
    ["an unknown transport", { host }, { MILLRACE_RUNNER_TRANSPORT: "udp" }, "transport", /socket, http, websocket/],
    ["no weight", { host, weight: 0 }, {}, "weight", /1 to 100/],
    ["no groups", { host, groups: [] }, {}, "groups", /names of groups/],
    [
      "a group that has no name",
      { host },
      { MILLRACE_RUNNER_GROUPS: "default,,gpu" },
      "groups",
      /GROUPS\): expected .* such as "default,mail", received "default,,gpu"/
    ],
    ["too many shards", { host, shards: 1_001 }, {}, "shards", /1 to 1000/],
    ["a hasty expiration", { host, timing: { lockExpiration: "1 second" } }, {}, "timing.lockExpiration", /3 seconds/],
    [
      "a duration of an unknown unit",
      { host, timing: { joinDebounce: { second: 1 } as object } },
      {},
      "timing.joinDebounce",
      /received \{"second":1\}/
    ],
    [
      "a duration of words",
      { host },
      { MILLRACE_RUNNER_HEALTH: "soon" },
      "timing.health",
      /timing.health \(MILLRACE_RUNNER_HEALTH\).* such as "6 seconds", received "soon"/
    ],
    ["a port that is text", untyped({ host, port: "34455" }), {}, "port", /0 to 65535, received "34455"/],
    ["a port below zero in the environment", { host }, { MILLRACE_RUNNER_PORT: "-1" }, "port", /received "-1"/],
    [
      "a group that is not in an array",
      untyped({ host, groups: "default" }),
      {},
      "groups",
      /groups \(MILLRACE_RUNNER_GROUPS\): expected an array of .* \["default", "mail"\], received "default"/
    ],
    ["a host that is no text", untyped({ host: 5 }), {}, "host", /a host name or an address, received 5/],
    ["an empty host", { host: "" }, {}, "host", /a host name or an address, received ""/],
    ["a weight that is text", untyped({ host, weight: "2" }), {}, "weight", /1 to 100, received "2"/],
    ["shards that are text", untyped({ host, shards: "16" }), {}, "shards", /1 to 1000, received "16"/],
    ["a listenHost that is no text", untyped({ host, listenHost: 5 }), {}, "listenHost", /LISTEN_HOST.*received 5/],
    ["a listenPort that is text", untyped({ host, listenPort: "80" }), {}, "listenPort", /LISTEN_PORT.*received "80"/],
    [
      "a listenPort in the environment that is none",
      { host },
      { MILLRACE_RUNNER_LISTEN_PORT: "80.5" },
      "listenPort",
      /received "80.5"/
    ],
    ["nothing in the place of a port", untyped({ host, port: null }), {}, "port", /received null/],
    [
      "a duration of an unknown word",
      untyped({ host, timing: { assignments: "10 secs" } }),
      {},
      "timing.assignments",
      /a duration from 100 milliseconds to 1 hour, such as "10 seconds" or milliseconds, received "10 secs"/
    ],
    [
      "a refresh that comes too late",
      { host, timing: { lockRefresh: "3 seconds" } },
      {},
      "timing.lockRefresh",
      /a third of lockExpiration \(6 seconds\), received 3 seconds/
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

  const warnings = (provider: ConfigProvider.ConfigProvider) =>
    Effect.gen(function*() {
      const log = recordLog()
      yield* warnOfUnknown.pipe(
        Effect.provideService(ConfigProvider.ConfigProvider, provider),
        Effect.provide(log.layer)
      )
      return log.lines.map(({ level, text }) => `${level}: ${text}`)
    })

  it.effect("of the environment that a runner does not know are named, with those that it does, where they say something", () =>
    Effect.gen(function*() {
      const [group, timing, ...rest] = yield* warnings(ConfigProvider.fromEnv({
        env: {
          MILLRACE_RUNNER_GROUP: "gpu",
          MILLRACE_RUNNER_GROUPS: "gpu",
          MILLRACE_RUNNER_LOCK_EXPIRATION: "6 seconds",
          MILLRACE_RUNNER_LOCK: "6 seconds",
          MILLRACE_RUNNER_HOSTS: "",
          MILLRACE_RUNNERS: "3",
          MILLRACE_DEMO_GROUP: "a"
        }
      }))
      assert.match(
        group!,
        /^Warn: .* MILLRACE_RUNNER_GROUP, .*There are MILLRACE_RUNNER_HOST,.* MILLRACE_RUNNER_GROUPS,/
      )
      assert.match(timing!, /MILLRACE_RUNNER_LOCK,/)
      assert.deepStrictEqual(rest, [])
      assert.deepStrictEqual(yield* warnings(ConfigProvider.fromUnknown({ MILLRACE_RUNNER_GROUP: "gpu" })), [])
    }))
})

/**
 * Wrong and misspelt options of the layers: refused when the layer is made, or by its error where the environment may be wrong too.
 */
import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as EmbeddedPostgres from "../src/EmbeddedPostgres.ts"
import * as EventBus from "../src/EventBus.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as PgJobStore from "../src/PgJobStore.ts"
import * as Postgres from "../src/Postgres.ts"

describe("what callers without types get wrong is refused before anything is started, naming the field", () => {
  const wrong: ReadonlyArray<readonly [string, object, string]> = [
    ["a misspelt option", { gracePeriods: 5 }, "gracePeriods: expected no such field, only schema, connections"],
    [
      "a queue by its name",
      { queues: ["documents"] },
      "queues[0]: expected a queue of JobQueue.make, received \"documents\""
    ],
    [
      "queues that are no array",
      { queues: "documents" },
      "queues: expected an array of queues, received \"documents\""
    ],
    ["an event bus that is no layer", { eventBus: {} }, "eventBus: expected a layer of an EventBus, received {}"],
    [
      "a number of connections that is none",
      { connections: 0 },
      "connections: expected an integer from 1 on, received 0"
    ],
    ["a schema that is no name", { schema: 5 }, "schema: expected a name, received 5"],
    [
      "a lock timeout that is none",
      { lockTimeout: "soon" },
      "lockTimeout: expected a finite duration above zero, such as \"10 seconds\" or milliseconds, received \"soon\""
    ],
    [
      "a grace period that is none",
      { gracePeriod: "soon" },
      "gracePeriod: expected a duration that is not negative, such as \"10 seconds\" or milliseconds, received \"soon\""
    ],
    [
      "a negative grace period",
      { handlerGracePeriod: -1 },
      "handlerGracePeriod: expected a duration that is not negative"
    ]
  ]
  for (const [what, options, words] of wrong) {
    it(`JobRuntime.layer and layerCluster: ${what}`, () => {
      assert.throws(() => JobRuntime.layer(options), RangeError, `JobRuntime.layer: ${words}`)
      assert.throws(() => JobRuntime.layerCluster(options), RangeError, `JobRuntime.layerCluster: ${words}`)
    })
  }

  it("JobRuntime.layerClient: an option that only a runtime has", () => {
    assert.throws(
      () => JobRuntime.layerClient({ gracePeriod: 5 } as object),
      RangeError,
      "JobRuntime.layerClient: gracePeriod: expected no such field, only schema, connections, lockTimeout, queues, eventBus"
    )
  })

  it("JobRuntime.layer: an option that only a runner among others has", () => {
    assert.throws(
      () => JobRuntime.layer({ host: "10.0.0.7" } as object),
      RangeError,
      "JobRuntime.layer: host: expected no such field, only schema, connections, lockTimeout, queues, eventBus, gracePeriod"
    )
  })

  it("JobRuntime.layerCluster: misspelt options of the runner and of its timing", () => {
    const cluster = (options: object) => () => JobRuntime.layerCluster({ host: "10.0.0.7", ...options })
    assert.throws(
      cluster({ hots: "10.0.0.7" }),
      RangeError,
      "JobRuntime.layerCluster: hots: expected no such field, only schema, connections"
    )
    assert.throws(
      cluster({ timing: { lockExpiraton: "6 seconds" } }),
      RangeError,
      "timing.lockExpiraton: expected no such field, only lockExpiration, lockRefresh, assignments, health, joinDebounce"
    )
    assert.throws(
      cluster({ timing: "6 seconds" }),
      RangeError,
      "JobRuntime.layerCluster: timing: expected an object of lockExpiration"
    )
  })

  it("EventBus.layer and layerPostgres: a capacity that is none, and a misspelt one", () => {
    for (const [name, layer] of [["layer", EventBus.layer], ["layerPostgres", EventBus.layerPostgres]] as const) {
      for (const capacity of [0, 1.5, NaN, "many"]) {
        assert.throws(
          () => layer({ capacity } as object),
          RangeError,
          `EventBus.${name}: capacity: expected an integer from 1 on`
        )
      }
      assert.throws(
        () => layer({ capcity: 5 } as object),
        RangeError,
        `EventBus.${name}: capcity: expected no such field, only capacity, received 5`
      )
    }
  })

  it.effect("EventBus: a misspelt filter, which would let the events of all tenants pass", () =>
    Effect.gen(function*() {
      const bus = yield* EventBus.EventBus
      for (const listen of [bus.stream, bus.subscribe]) {
        assert.throws(
          () => listen({ tenant: "acme" } as object),
          RangeError,
          "EventBus: filter.tenant: expected no such field, only tags, jobId, type, queue, tenantId, received \"acme\""
        )
      }
    }).pipe(Effect.provide(EventBus.layer())))

  it("PgJobStore: wrong and misspelt options, of a layer or of an effect", () => {
    for (const [name, make] of [["layer", PgJobStore.layer], ["make", PgJobStore.make]] as const) {
      const refused = (options: object, words: string) =>
        assert.throws(() => make(options), RangeError, `PgJobStore.${name}: ${words}`)
      refused({ connections: 0 }, "connections: expected an integer from 1 on, received 0")
      refused(
        { lockTimeout: "soon" },
        "lockTimeout: expected a finite duration above zero, such as \"10 seconds\" or milliseconds, received \"soon\""
      )
      refused({ shcema: "a" }, "shcema: expected no such field, only schema, connections, lockTimeout, received \"a\"")
    }
  })
})

describe("what callers without types get wrong of a database is a typed error that names the field", () => {
  const refusal = <E>(layer: Layer.Layer<never, E> | Layer.Layer<unknown, E>) =>
    Effect.scoped(Layer.build(layer)).pipe(
      Effect.flip,
      Effect.provideService(ConfigProvider.ConfigProvider, ConfigProvider.fromUnknown({ SIZE: 2 }))
    )

  const wrong: ReadonlyArray<readonly [string, object, string]> = [
    ["a port of words", { port: "5432" }, "port: expected an integer from 1 to 65535, received \"5432\""],
    ["a host that is no text", { host: 5 }, "host: expected a text, received 5"],
    ["a pool without connections", { maxConnections: 0 }, "maxConnections: expected an integer from 1 on, received 0"],
    [
      "a timeout of an unknown unit",
      { idleTimeout: { second: 5 } },
      "idleTimeout: expected a duration that is not negative, such as \"10 seconds\" or milliseconds, received {\"second\":5}"
    ],
    [
      "a timeout that is none",
      { idleInTransactionTimeout: "soon" },
      "idleInTransactionTimeout: expected a duration that is not negative, such as \"10 seconds\" or milliseconds, received \"soon\""
    ],
    ["a flag that is none", { prepare: "no" }, "prepare: expected true or false, received \"no\""]
  ]
  for (const [what, options, words] of wrong) {
    it.effect(`Postgres.layer: ${what}`, () =>
      Effect.gen(function*() {
        const { message, reason } = yield* refusal(Postgres.layer(options))
        assert.deepStrictEqual({ message, reason }, { message: `Postgres.layer: ${words}`, reason: "InvalidConfig" })
      }))
  }

  it.effect("Postgres.layer: a misspelt field, whose value is not repeated: it may be a password", () =>
    Effect.gen(function*() {
      for (
        const layer of [Postgres.layer({ pasword: "s3cret" } as object), Postgres.layer({ password: 53 } as object)]
      ) {
        const { message, reason } = yield* refusal(layer)
        assert.strictEqual(reason, "InvalidConfig")
        assert.match(message, /^Postgres.layer: pass?word: expected /)
        assert.notMatch(message, /s3cret|53|received/)
      }
      const { message } = yield* refusal(Postgres.layerConfig({ maxConections: 5 } as object))
      assert.include(message, "Postgres.layer: maxConections: expected no such field, only url, host, port")
    }))

  it.effect("EmbeddedPostgres.layer: its own options and those of its client", () =>
    Effect.gen(function*() {
      const words = (options: object) =>
        Effect.map(refusal(EmbeddedPostgres.layer(options)), ({ message, reason }) => `${reason} ${message}`)
      assert.strictEqual(
        yield* words({ datadir: "." }),
        "InvalidConfig EmbeddedPostgres.layer: datadir: expected no such field, only dataDir, isTemporary, port, database, durable, serverOptions, client"
      )
      assert.include(yield* words({ durable: 1 }), "durable: expected true or false, received 1")
      // The client of an embedded server has no server to choose.
      assert.include(
        yield* words({ client: { host: "a" } }),
        "client.host: expected no such field, only maxConnections"
      )
      assert.include(yield* words({ client: { maxConnections: 0 } }), "client.maxConnections: expected an integer")
    }))
})

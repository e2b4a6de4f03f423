import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as OtlpExporter from "effect/observability/OtlpExporter"
import * as References from "effect/References"
import * as Telemetry from "../../src/Telemetry.ts"
import { makeReceiver } from "../utils/otlpReceiver.ts"

const plain = (env: Record<string, string>) =>
  Telemetry.layer().pipe(Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env }))))

/** Without a console. */
const quiet = <A, E>(telemetry: Layer.Layer<A, E>) => Layer.provideMerge(telemetry, Logger.layer([]))

describe("OTEL_* variables", () => {
  /** One span and one log line under this environment; answers what was sent, and where to. */
  const sent = (env: Record<string, string>) =>
    Effect.gen(function*() {
      const requests: Array<string> = []
      const record: typeof globalThis.fetch = (input) => {
        requests.push(input instanceof Request ? input.url : String(input))
        return Promise.resolve(new Response("{}"))
      }
      yield* Effect.log("line").pipe(
        Effect.withSpan("span"),
        Effect.provide(quiet(plain(env).pipe(Layer.provide(Layer.succeed(FetchHttpClient.Fetch, record)))))
      )
      return requests.toSorted()
    })

  it.live("none: no request is made", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* sent({}), [])
      assert.deepStrictEqual(
        yield* sent({ OTEL_SERVICE_NAME: "a", OTEL_EXPORTER_OTLP_PROTOCOL: "grpc", OTEL_TRACES_EXPORTER: "" }),
        []
      )
    }))

  it.live("OTEL_SDK_DISABLED and none turn off", () =>
    Effect.gen(function*() {
      const on = { OTEL_EXPORTER_OTLP_ENDPOINT: "http://collector:4318" }
      assert.deepStrictEqual(yield* sent({ ...on, OTEL_SDK_DISABLED: "TRUE", OTEL_EXPORTER_OTLP_PROTOCOL: "grpc" }), [])
      assert.deepStrictEqual(yield* sent({ ...on, OTEL_METRICS_EXPORTER: "none", OTEL_LOGS_EXPORTER: "none" }), [
        "http://collector:4318/v1/traces"
      ])
    }))

  it.live("a common endpoint is a base, a signal's own is used as it is, an exporter by name has the standard one", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* sent({ OTEL_EXPORTER_OTLP_ENDPOINT: "http://c:1/otlp/" }), [
        "http://c:1/otlp/v1/logs",
        "http://c:1/otlp/v1/metrics",
        "http://c:1/otlp/v1/traces"
      ])
      assert.deepStrictEqual(yield* sent({ OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "https://t/in" }), ["https://t/in"])
      assert.deepStrictEqual(yield* sent({ OTEL_LOGS_EXPORTER: "otlp" }), ["http://localhost:4318/v1/logs"])
    }))

  it.live("headers, compression, protocol and resource reach the collector; a signal's own win", () =>
    Effect.scoped(Effect.gen(function*() {
      const receiver = yield* makeReceiver()
      yield* Effect.void.pipe(
        Effect.withSpan("span", { attributes: { long: "x".repeat(2000) } }),
        Effect.provide(plain({
          OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url,
          OTEL_EXPORTER_OTLP_HEADERS: "authorization=Bearer%20abc==, x-tenant=a",
          OTEL_EXPORTER_OTLP_TRACES_HEADERS: "x-tenant=b%2Cc",
          OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: "http/json",
          OTEL_EXPORTER_OTLP_COMPRESSION: "gzip",
          OTEL_RESOURCE_ATTRIBUTES: "service.name=from-attributes,team=docs"
        }))
      )
      const by = (path: string) => receiver.deliveries.find((delivery) => delivery.path === path)?.headers
      const traces = by("/v1/traces")
      const metrics = by("/v1/metrics")
      assert.deepStrictEqual(
        [traces?.["content-type"], traces?.["content-encoding"], traces?.["x-tenant"], traces?.authorization],
        ["application/json", "gzip", "b,c", undefined]
      )
      assert.deepStrictEqual(
        [metrics?.["content-type"], metrics?.["x-tenant"], metrics?.authorization],
        ["application/x-protobuf", "a", "Bearer abc=="]
      )
      assert.strictEqual(receiver.spans()[0]?.service, "from-attributes")
    })))

  it.live("a collector that refuses is told of once, without the key in its URL", () =>
    Effect.scoped(Effect.gen(function*() {
      const receiver = yield* makeReceiver(401)
      const lines: Array<string> = []
      const logger = Logger.make(({ fiber, message }) => {
        lines.push(`${String(message)} ${JSON.stringify(fiber.getRef(References.CurrentLogAnnotations))}`)
      })
      const env = {
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: `${receiver.url}/v1/traces?key=secret`,
        OTEL_EXPORTER_OTLP_PROTOCOL: "http/json"
      }
      yield* Effect.gen(function*() {
        const { flush } = yield* OtlpExporter.Flusher
        yield* Effect.withSpan(Effect.void, "first")
        yield* flush
        yield* Effect.withSpan(Effect.void, "second")
      }).pipe(Effect.provide(
        Telemetry.layer().pipe(
          Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env }))),
          Layer.provideMerge(Logger.layer([logger]))
        )
      ))
      assert.lengthOf(lines, 1)
      assert.include(lines[0], "401")
      assert.include(lines[0], `${receiver.url}/v1/traces`)
      assert.notInclude(lines[0], "secret")
    })))

  it.live.each([
    { variable: "OTEL_SDK_DISABLED", value: "yes", expected: "true or false" },
    { variable: "OTEL_EXPORTER_OTLP_ENDPOINT", value: "localhost:4318", expected: "http:// or https:// URL" },
    {
      variable: "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
      value: "http://me:secret@c/",
      expected: "without user and password"
    },
    { variable: "OTEL_EXPORTER_OTLP_PROTOCOL", value: "grpc", expected: "gRPC is not spoken" },
    { variable: "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", value: "udp", expected: "http/protobuf or http/json" },
    { variable: "OTEL_EXPORTER_OTLP_HEADERS", value: "authorization: Bearer secret", expected: "name=value" },
    { variable: "OTEL_EXPORTER_OTLP_HEADERS", value: "a=1,authorization=secret%zz", expected: "percent-encoded" },
    { variable: "OTEL_EXPORTER_OTLP_HEADERS", value: "a=1,authorization=secret%0A", expected: "name=value" },
    { variable: "OTEL_EXPORTER_OTLP_COMPRESSION", value: "zstd", expected: "gzip or none" },
    { variable: "OTEL_EXPORTER_OTLP_TIMEOUT", value: "10s", expected: "whole number" },
    { variable: "OTEL_TRACES_EXPORTER", value: "jaeger", expected: "otlp or none" },
    { variable: "OTEL_METRIC_EXPORT_INTERVAL", value: "0", expected: "whole number" },
    { variable: "OTEL_BSP_SCHEDULE_DELAY", value: "99999999999", expected: "2147483647" },
    { variable: "OTEL_RESOURCE_ATTRIBUTES", value: "team", expected: "name=value" }
  ])("$variable=$value is refused", ({ expected, value, variable }) =>
    Effect.gen(function*() {
      const on = { OTEL_TRACES_EXPORTER: "otlp", OTEL_LOGS_EXPORTER: "otlp", OTEL_METRICS_EXPORTER: "otlp" }
      const error = yield* Effect.flip(Effect.provide(Effect.void, plain({ ...on, [variable]: value })))
      assert.instanceOf(error, Telemetry.TelemetryError)
      assert.strictEqual(error.variable, variable)
      assert.include(error.message, expected)
      assert.notInclude(error.message, "secret")
    }))
})

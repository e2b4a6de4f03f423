/**
 * The standard `OTEL_*` variables together: what to send where, or nothing. Names and meanings are those of
 * https://opentelemetry.io/docs/specs/otel/protocol/exporter/ and .../configuration/sdk-environment-variables/.
 */
import * as Effect from "effect/Effect"
import { invalid, read, readInt, readOne, readPairs, type TelemetryError, type Value } from "./otelVariables.ts"

/** What is sent apart from the others. */
export type Signal = "TRACES" | "METRICS" | "LOGS"

/** Where one signal goes, and how. `undefined`: as Effect's exporter has it. */
export interface Destination {
  readonly url: string
  readonly protocol: "http/json" | "http/protobuf"
  readonly headers: Readonly<Record<string, string>>
  readonly compression: "gzip" | "none"
  readonly intervalMs: number | undefined
  readonly maxBatchSize: number | undefined
  readonly timeoutMs: number | undefined
}

/** All of it. A signal that is `undefined` is off. */
export interface Environment {
  readonly traces: Destination | undefined
  readonly metrics: Destination | undefined
  readonly logs: Destination | undefined
  readonly temporality: "cumulative" | "delta"
  /** From `OTEL_SERVICE_NAME`, else from `OTEL_RESOURCE_ATTRIBUTES`. */
  readonly serviceName: string | undefined
}

/** What `fetch` refuses would silence the exporter. */
const headerProblem = (name: string, value: string): string | undefined =>
  !/^[\w!#$%&'*+.^`|~-]+$/.test(name)
    ? "a name that no HTTP header can have"
    : /[^\t\x20-\x7e\x80-\xff]/.test(value)
    ? `a value (of ${name}) that no HTTP header can have`
    : undefined

const fallback = "http://localhost:4318"

const endpointOf = (signal: Signal, value: Value): Effect.Effect<string, TelemetryError> => {
  const url = URL.parse(value.text)
  if (url === null || !/^https?:$/.test(url.protocol)) {
    return invalid(value, `an http:// or https:// URL, such as ${fallback}`)
  }
  if (url.username !== "" || url.password !== "") {
    return invalid(
      value,
      "a URL without user and password (a key goes into OTEL_EXPORTER_OTLP_HEADERS)",
      "one that has them"
    )
  }
  // A signal's own endpoint is used as it is, the common one is a base.
  if (value.variable === `OTEL_EXPORTER_OTLP_${signal}_ENDPOINT`) return Effect.succeed(url.href)
  url.pathname = `${url.pathname.replace(/\/$/, "")}/v1/${signal.toLowerCase()}`
  return Effect.succeed(url.href)
}

const processor: Record<
  Signal,
  { readonly interval: string; readonly batch: ReadonlyArray<string>; readonly timeout: string }
> = {
  TRACES: {
    interval: "OTEL_BSP_SCHEDULE_DELAY",
    batch: ["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"],
    timeout: "OTEL_BSP_EXPORT_TIMEOUT"
  },
  METRICS: { interval: "OTEL_METRIC_EXPORT_INTERVAL", batch: [], timeout: "OTEL_METRIC_EXPORT_TIMEOUT" },
  LOGS: {
    interval: "OTEL_BLRP_SCHEDULE_DELAY",
    batch: ["OTEL_BLRP_MAX_EXPORT_BATCH_SIZE"],
    timeout: "OTEL_BLRP_EXPORT_TIMEOUT"
  }
}

/** On when it has an endpoint, or is asked for by name (then at the standard one); `none` turns it off. */
const destination = (signal: Signal): Effect.Effect<Destination | undefined, TelemetryError> =>
  Effect.gen(function*() {
    const exporter = yield* readOne(["otlp", "none"], "otlp or none", `OTEL_${signal}_EXPORTER`)
    if (exporter === "none") return undefined
    const both = (setting: string) => [`OTEL_EXPORTER_OTLP_${signal}_${setting}`, `OTEL_EXPORTER_OTLP_${setting}`]
    const endpoint = (yield* read(...both("ENDPOINT"))) ??
      (exporter === undefined ? undefined : { variable: "OTEL_EXPORTER_OTLP_ENDPOINT", text: fallback })
    if (endpoint === undefined) return undefined
    const { batch, interval, timeout } = processor[signal]
    return {
      url: yield* endpointOf(signal, endpoint),
      protocol: (yield* readOne(
        ["http/protobuf", "http/json"],
        "http/protobuf or http/json (OTLP over gRPC is not spoken; collectors take HTTP at port 4318)",
        ...both("PROTOCOL")
      )) ?? "http/protobuf",
      headers: yield* readPairs("name=value,name=value with percent-encoded values", headerProblem, ...both("HEADERS")),
      compression: (yield* readOne(["gzip", "none"], "gzip or none", ...both("COMPRESSION"))) ?? "none",
      intervalMs: yield* readInt(interval),
      maxBatchSize: yield* readInt(...batch),
      timeoutMs: yield* readInt(...both("TIMEOUT"), timeout)
    }
  })

/** Whether `OTEL_SDK_DISABLED` turns everything off. */
export const isDisabled: Effect.Effect<boolean, TelemetryError> = Effect.map(
  readOne(["true", "false"], "true or false", "OTEL_SDK_DISABLED"),
  (answer) => answer === "true"
)

/** Reads and checks all variables of the signals that are on. Fails at the first that cannot be used. */
export const environment: Effect.Effect<Environment, TelemetryError> = Effect.gen(function*() {
  const off = yield* isDisabled
  const traces = off ? undefined : yield* destination("TRACES")
  const metrics = off ? undefined : yield* destination("METRICS")
  const logs = off ? undefined : yield* destination("LOGS")
  if (traces === undefined && metrics === undefined && logs === undefined) {
    return { traces, metrics, logs, temporality: "cumulative", serviceName: undefined }
  }
  const attributes = yield* readPairs(
    "name=value,name=value with percent-encoded values",
    () => undefined,
    "OTEL_RESOURCE_ATTRIBUTES"
  )
  return {
    traces,
    metrics,
    logs,
    temporality: (yield* readOne(
      ["cumulative", "delta"],
      "cumulative or delta",
      "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    )) ?? "cumulative",
    serviceName: (yield* read("OTEL_SERVICE_NAME"))?.text ?? attributes["service.name"]
  }
})

/**
 * The standard `OTEL_*` variables, read through Config: what to send where, or nothing. Names and meanings are those of
 * https://opentelemetry.io/docs/specs/otel/protocol/exporter/ and .../configuration/sdk-environment-variables/.
 *
 * No error carries a header's value: it is usually a key.
 */
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"

/** A variable's value cannot be used: `expected` says what can. Nothing is sent, and the program does not start half-observed. */
export class TelemetryError extends Schema.TaggedError<TelemetryError>("millrace/TelemetryError")("TelemetryError", {
  variable: Schema.String,
  expected: Schema.String,
  /** As given; for headers only what is safe to show. */
  received: Schema.String
}) {
  readonly isRetryable = false
  override get message() {
    return `${this.variable}: expected ${this.expected}, received ${this.received}`
  }
}

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

/** What a variable says: an empty one is an unset one, as the specification has it. */
interface Value {
  readonly variable: string
  readonly text: string
}

/** The first of these variables that says something. */
const read = (...variables: ReadonlyArray<string>): Effect.Effect<Value | undefined, TelemetryError> =>
  Effect.gen(function*() {
    for (const variable of variables) {
      const text = yield* Effect.mapError(
        Config.option(Config.String(variable)),
        () => new TelemetryError({ variable, expected: "a text", received: "something else" })
      )
      const trimmed = Option.getOrElse(text, () => "").trim()
      if (trimmed !== "") return { variable, text: trimmed }
    }
    return undefined
  })

const invalid = ({ text, variable }: Value, expected: string, received = JSON.stringify(text)) =>
  Effect.fail(new TelemetryError({ variable, expected, received }))

const readOne = <const A extends string>(
  allowed: ReadonlyArray<A>,
  expected: string,
  ...variables: ReadonlyArray<string>
) =>
  Effect.flatMap(read(...variables), (value): Effect.Effect<A | undefined, TelemetryError> => {
    if (value === undefined) return Effect.undefined
    const found = allowed.find((word) => word === value.text.toLowerCase())
    return found === undefined ? invalid(value, expected) : Effect.succeed(found)
  })

/** The longest wait that a timer takes: beyond it fires at once. */
const longest = 2 ** 31 - 1

const readInt = (...variables: ReadonlyArray<string>) =>
  Effect.flatMap(read(...variables), (value): Effect.Effect<number | undefined, TelemetryError> => {
    if (value === undefined) return Effect.undefined
    const number = /^\d+$/.test(value.text) ? Number(value.text) : 0
    return number >= 1 && number <= longest
      ? Effect.succeed(number)
      : invalid(value, `a whole number from 1 to ${longest}`)
  })

/** `a=1,b=2`, values percent-encoded. `pair` says what is wrong with one, in words that are safe to show. */
const readPairs = (
  expected: string,
  pair: (key: string, value: string) => string | undefined,
  ...variables: ReadonlyArray<string>
) =>
  Effect.flatMap(read(...variables), (value) =>
    Effect.gen(function*() {
      const pairs = new Map<string, string>()
      const entries = value?.text.split(",").map((entry) => entry.trim()) ?? []
      for (const [index, entry] of entries.entries()) {
        if (value === undefined || entry === "") continue
        const at = entry.indexOf("=")
        const nth = `entry ${index + 1} of ${entries.length}`
        if (at < 1) return yield* invalid(value, expected, `${nth} without a name or without "="`)
        const key = entry.slice(0, at).trim()
        const decoded = Option.liftThrowable(decodeURIComponent)(entry.slice(at + 1).trim())
        if (Option.isNone(decoded)) {
          return yield* invalid(value, expected, `${nth} (${key}) with a "%" that encodes nothing`)
        }
        const wrong = pair(key, decoded.value)
        if (wrong !== undefined) {
          return yield* invalid(value, expected, `${nth} with ${wrong}`)
        }
        pairs.set(key, decoded.value)
      }
      return Object.fromEntries(pairs)
    }))

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

/**
 * Traces, metrics and logs over OTLP/HTTP, switched on by the standard `OTEL_*` variables; with none set, nothing is sent or asked for.
 * For an OpenTelemetry set-up of your own see `TelemetryOtel`.
 *
 * A crash loses what was not sent yet (at most one interval); jobs never wait for a collector.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as HttpClient from "effect/http/HttpClient"
import * as Layer from "effect/Layer"
import * as OtlpExporter from "effect/observability/OtlpExporter"
import * as OtlpLogger from "effect/observability/OtlpLogger"
import * as OtlpMetrics from "effect/observability/OtlpMetrics"
import * as OtlpSerialization from "effect/observability/OtlpSerialization"
import * as OtlpTracer from "effect/observability/OtlpTracer"
import { type Destination, environment } from "./internal/otelEnvironment.ts"
import type { TelemetryError } from "./internal/otelVariables.ts"

export { TelemetryError } from "./internal/otelVariables.ts"

/** What {@link layer} takes. */
export interface Options {
  /** Who sends. Wins over `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`: leave it out to let operators name the service. */
  readonly resource?: {
    readonly serviceName?: string
    readonly serviceVersion?: string
    readonly attributes?: Readonly<Record<string, string | number | boolean>>
  }
}

/** The name that OpenTelemetry gives a service without one. */
const unknownService = "unknown_service:node"

/** Effect's exporter drops what a collector refuses without a word: this says so, once until it takes something again. */
const tellingClient = Layer.effect(
  HttpClient.HttpClient,
  Effect.map(HttpClient.HttpClient, (client) => {
    const failing = new Set<string>()
    const failed = (url: string, why: string) =>
      Effect.suspend(() => {
        if (failing.has(url)) return Effect.void
        failing.add(url)
        // A query may carry a key.
        const annotations = { url: url.replace(/[?#].*$/, ""), why }
        return Effect.annotateLogs(
          Effect.logWarning("Telemetry is not delivered, and lost while this lasts"),
          annotations
        )
      })
    return HttpClient.transform(client, (sending, { url }) =>
      sending.pipe(
        Effect.tap(({ status }) =>
          status >= 400 ? failed(url, `HTTP ${status}`) : Effect.sync(() => failing.delete(url))
        ),
        Effect.tapError(({ reason }) => failed(url, reasonOf(reason.cause) ?? reason._tag))
      ))
  })
).pipe(Layer.provide(FetchHttpClient.layer))

/** What `fetch` found, such as "connect ECONNREFUSED 127.0.0.1:4318": the innermost cause. */
const reasonOf = (error: unknown): string | undefined =>
  error instanceof Error ? reasonOf(error.cause) ?? error.message : undefined

const duration = (ms: number | undefined) => ms === undefined ? undefined : Duration.millis(ms)

/**
 * Sends what `OTEL_*` variables (read through `Config`) ask for. A signal is on when it has an endpoint (`OTEL_EXPORTER_OTLP_ENDPOINT`,
 * or its own `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `_METRICS_`, `_LOGS_`), or when `OTEL_TRACES_EXPORTER` (`_METRICS_`, `_LOGS_`) is `otlp`
 * (then at `http://localhost:4318`); `none` turns it off, `OTEL_SDK_DISABLED=true` all of them.
 *
 * Also understood: `OTEL_EXPORTER_OTLP_PROTOCOL` (`http/protobuf`, the default, or `http/json`), `_HEADERS`, `_COMPRESSION`, `_TIMEOUT` (how
 * long shutdown waits for the last delivery), each also per signal; `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`;
 * `OTEL_SERVICE_NAME`, `OTEL_SERVICE_VERSION`, `OTEL_RESOURCE_ATTRIBUTES`; `OTEL_BSP_SCHEDULE_DELAY`, `OTEL_METRIC_EXPORT_INTERVAL`,
 * `OTEL_BLRP_SCHEDULE_DELAY` (milliseconds); `OTEL_BSP_MAX_EXPORT_BATCH_SIZE`, `OTEL_BLRP_MAX_EXPORT_BATCH_SIZE`. Samplers, span limits and
 * TLS files are not: take `TelemetryOtel` for those.
 *
 * Fails with a `TelemetryError` that names the variable and what it may say. Provide it below everything else, so that it is built first
 * and sends the last spans when all others have closed:
 *
 * @example
 * const MainLive = IndexFileLive.pipe(
 *   Layer.provideMerge(JobRuntime.layer({ queues: [Documents] })),
 *   Layer.provideMerge(Postgres.layer()),
 *   Layer.provideMerge(Telemetry.layer())
 * )
 */
export const layer = (options: Options = {}): Layer.Layer<OtlpExporter.Flusher, TelemetryError> =>
  Layer.unwrap(Effect.map(environment, ({ logs, metrics, serviceName, temporality, traces }) => {
    const resource = {
      ...options.resource,
      serviceName: options.resource?.serviceName ?? serviceName ?? unknownService
    }
    const settings = ({ compression, headers, intervalMs, maxBatchSize, timeoutMs, url }: Destination) => ({
      url,
      resource,
      headers,
      compression,
      exportInterval: duration(intervalMs),
      maxBatchSize,
      shutdownTimeout: duration(timeoutMs)
    })
    const spoken = (destination: Destination) =>
      Layer.provide([
        destination.protocol === "http/json" ? OtlpSerialization.layerJson : OtlpSerialization.layerProtobuf,
        tellingClient
      ])
    return Layer.mergeAll(
      OtlpExporter.layerFlusher,
      traces === undefined ? Layer.empty : OtlpTracer.layer(settings(traces)).pipe(spoken(traces)),
      metrics === undefined
        ? Layer.empty
        : OtlpMetrics.layer({ ...settings(metrics), temporality }).pipe(spoken(metrics)),
      logs === undefined ? Layer.empty : OtlpLogger.layer(settings(logs)).pipe(spoken(logs))
    )
  }))

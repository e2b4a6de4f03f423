/**
 * Traces, metrics and logs through an OpenTelemetry set-up that is there already, by `@effect/opentelemetry` (an optional peer; this module
 * alone imports it). What OpenTelemetry's packages are needed beside it is said at each layer.
 *
 * A crash loses what the processors had not sent yet; jobs never wait for them.
 */
import type * as NodeSdk from "@effect/opentelemetry/NodeSdk"
import * as OtelTracer from "@effect/opentelemetry/OtelTracer"
import * as Effect from "effect/Effect"
import type { LazyArg } from "effect/Function"
import * as Layer from "effect/Layer"
import { isDisabled } from "./internal/otelEnvironment.ts"
import type { TelemetryError } from "./internal/otelVariables.ts"

export { TelemetryError } from "./internal/otelVariables.ts"

const unlessDisabled = <E>(layer: Layer.Layer<never, E>): Layer.Layer<never, E | TelemetryError> =>
  Layer.unwrap(Effect.map(isDisabled, (off) => off ? Layer.empty : layer))

/**
 * Span processors, metric readers and log processors of the OpenTelemetry SDK, as `NodeSdk.layer` takes them. They are made, flushed and
 * shut down with the layer. Needs `@opentelemetry/api`, `resources`, `sdk-trace-base`, `sdk-trace-node`, `sdk-metrics` and `sdk-logs`.
 *
 * Provide it below everything else, as {@link Telemetry.layer}. `OTEL_SDK_DISABLED=true` turns it off.
 *
 * @example
 * const TelemetryLive = TelemetryOtel.layer(() => ({
 *   resource: { serviceName: "documents" },
 *   spanProcessor: new BatchSpanProcessor(new OTLPTraceExporter()),
 *   metricReader: new PeriodicExportingMetricReader({ exporter: new OTLPMetricExporter() })
 * }))
 */
export const layer = (evaluate: LazyArg<NodeSdk.Configuration>): Layer.Layer<never, TelemetryError> =>
  unlessDisabled(Layer.unwrap(
    // Only here: the other layers do without the SDK's packages.
    Effect.map(Effect.promise(() => import("@effect/opentelemetry/NodeSdk")), ({ layer }) => layer(evaluate))
  ))

/**
 * Spans to a provider that somebody else made and shuts down: flush it after the program, or the last spans are lost. Needs only
 * `@opentelemetry/api`.
 */
export const layerProvider = (provider: OtelTracer.OtelTracerProvider["Service"]): Layer.Layer<never, TelemetryError> =>
  unlessDisabled(OtelTracer.layer.pipe(Layer.provide(Layer.succeed(OtelTracer.OtelTracerProvider, provider))))

/**
 * Spans to the provider registered globally, such as by `node --import @opentelemetry/auto-instrumentations-node/register`. Needs only
 * `@opentelemetry/api`. With none registered nothing is recorded.
 */
export const layerGlobal: Layer.Layer<never, TelemetryError> = unlessDisabled(OtelTracer.layerGlobal)

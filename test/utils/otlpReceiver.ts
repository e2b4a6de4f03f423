/**
 * A collector for tests: a real OTLP/HTTP server that keeps what it is sent. JSON is read, protobuf is kept as bytes.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { createServer, type IncomingHttpHeaders, type Server } from "node:http"
import { gunzipSync } from "node:zlib"

const Attributes = Schema.Array(Schema.Struct({
  key: Schema.String,
  value: Schema.Struct({
    stringValue: Schema.optional(Schema.String),
    intValue: Schema.optional(Schema.Union([Schema.Number, Schema.String])),
    boolValue: Schema.optional(Schema.Boolean)
  })
}))

const Resource = Schema.Struct({ attributes: Attributes })

const Traces = Schema.Struct({
  resourceSpans: Schema.Array(Schema.Struct({
    resource: Resource,
    scopeSpans: Schema.Array(Schema.Struct({
      spans: Schema.Array(Schema.Struct({
        traceId: Schema.String,
        spanId: Schema.String,
        parentSpanId: Schema.optional(Schema.String),
        name: Schema.String,
        kind: Schema.Number,
        attributes: Attributes,
        links: Schema.optional(Schema.Array(Schema.Struct({ traceId: Schema.String, spanId: Schema.String }))),
        status: Schema.Struct({ code: Schema.Number })
      }))
    }))
  }))
})

const Points = Schema.Struct({ dataPoints: Schema.Array(Schema.Struct({ attributes: Attributes })) })

const Metrics = Schema.Struct({
  resourceMetrics: Schema.Array(Schema.Struct({
    scopeMetrics: Schema.Array(Schema.Struct({
      metrics: Schema.Array(Schema.Struct({
        name: Schema.String,
        sum: Schema.optional(Points),
        gauge: Schema.optional(Points),
        histogram: Schema.optional(Points)
      }))
    }))
  }))
})

const Logs = Schema.Struct({
  resourceLogs: Schema.Array(Schema.Struct({
    scopeLogs: Schema.Array(Schema.Struct({
      logRecords: Schema.Array(Schema.Struct({
        traceId: Schema.optional(Schema.String),
        spanId: Schema.optional(Schema.String),
        body: Schema.Struct({ stringValue: Schema.optional(Schema.String) })
      }))
    }))
  }))
})

const kinds = ["unspecified", "internal", "server", "client", "producer", "consumer"]
const statuses = ["unset", "ok", "error"]

const record = (attributes: typeof Attributes.Type): Record<string, string | number | boolean | undefined> =>
  Object.fromEntries(attributes.map(({ key, value: { boolValue, intValue, stringValue } }) => [
    key,
    stringValue ?? boolValue ?? (intValue === undefined ? undefined : Number(intValue))
  ]))

/** A span as it arrived. */
export interface Span {
  readonly service: unknown
  readonly name: string
  readonly kind: string | undefined
  readonly traceId: string
  readonly spanId: string
  /** `undefined`: it is the root of its trace. */
  readonly parentSpanId: string | undefined
  readonly attributes: Record<string, unknown>
  readonly links: ReadonlyArray<{ readonly traceId: string; readonly spanId: string }>
  readonly status: string | undefined
}

/** One delivery. */
export interface Delivery {
  readonly path: string
  readonly headers: IncomingHttpHeaders
  readonly body: Buffer
}

const spansOf = (text: string): ReadonlyArray<Span> =>
  Schema.decodeSync(Schema.fromJsonString(Traces))(text).resourceSpans.flatMap(({ resource, scopeSpans }) =>
    scopeSpans.flatMap(({ spans }) =>
      spans.map(({ attributes, kind, links, name, parentSpanId, spanId, status, traceId }) => ({
        service: record(resource.attributes)["service.name"],
        name,
        kind: kinds[kind],
        traceId,
        spanId,
        parentSpanId: parentSpanId === "" ? undefined : parentSpanId,
        attributes: record(attributes),
        links: (links ?? []).map(({ spanId, traceId }) => ({ traceId, spanId })),
        status: statuses[status.code]
      }))
    )
  )

const metricsOf = (text: string) =>
  Schema.decodeSync(Schema.fromJsonString(Metrics))(text).resourceMetrics.flatMap(({ scopeMetrics }) =>
    scopeMetrics.flatMap(({ metrics }) =>
      metrics.map(({ gauge, histogram, name, sum }) => ({
        name,
        points: (sum ?? gauge ?? histogram)?.dataPoints.map(({ attributes }) => record(attributes)) ?? []
      }))
    )
  )

const logsOf = (text: string) =>
  Schema.decodeSync(Schema.fromJsonString(Logs))(text).resourceLogs.flatMap(({ scopeLogs }) =>
    scopeLogs.flatMap(({ logRecords }) =>
      logRecords.map(({ body, spanId, traceId }) => ({ text: body.stringValue, traceId, spanId }))
    )
  )

/** Listens until the scope closes, and answers everything with `status`. */
export const makeReceiver = Effect.fnUntraced(function*(status = 200) {
  const deliveries: Array<Delivery> = []
  const server = createServer((request, response) => {
    const chunks: Array<Buffer> = []
    request.on("data", (chunk: Buffer) => chunks.push(chunk))
    request.on("end", () => {
      const bytes = Buffer.concat(chunks)
      const body = request.headers["content-encoding"] === "gzip" ? gunzipSync(bytes) : bytes
      deliveries.push({ path: request.url ?? "", headers: request.headers, body })
      response.writeHead(status, { "content-type": "application/json" }).end("{}")
    })
  })
  yield* Effect.acquireRelease(listen(server), () =>
    Effect.callback<void>((resume) => {
      server.close(() => resume(Effect.void))
      server.closeAllConnections()
    }))
  const address = server.address()
  if (address === null || typeof address === "string") return yield* Effect.die(new Error("the receiver has no port"))
  const texts = (path: string) =>
    deliveries.filter((delivery) => delivery.path.endsWith(path)).map(({ body }) => body.toString())
  return {
    url: `http://127.0.0.1:${address.port}`,
    deliveries,
    spans: () => texts("/v1/traces").flatMap(spansOf),
    metrics: () => texts("/v1/metrics").flatMap(metricsOf),
    logs: () => texts("/v1/logs").flatMap(logsOf)
  }
})

/** What {@link makeReceiver} gives. */
export type Receiver = Effect.Success<ReturnType<typeof makeReceiver>>

const listen = (server: Server): Effect.Effect<void, never, Scope.Scope> =>
  Effect.callback((resume) => {
    server.listen(0, "127.0.0.1", () => resume(Effect.void))
  })

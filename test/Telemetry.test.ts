import { assert, describe, it } from "@effect/vitest"
import { OTLPMetricExporter } from "@opentelemetry/exporter-metrics-otlp-http"
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http"
import { PeriodicExportingMetricReader } from "@opentelemetry/sdk-metrics"
import { BasicTracerProvider, BatchSpanProcessor } from "@opentelemetry/sdk-trace-base"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Metric from "effect/Metric"
import * as OtlpExporter from "effect/observability/OtlpExporter"
import * as References from "effect/References"
import * as Schema from "effect/Schema"
import { SqlClient } from "effect/sql/SqlClient"
import * as Job from "../src/Job.ts"
import type { JobId } from "../src/JobId.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Jobs from "../src/Jobs.ts"
import * as Postgres from "../src/Postgres.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import * as Telemetry from "../src/Telemetry.ts"
import * as TelemetryOtel from "../src/TelemetryOtel.ts"
import { makeDatabase } from "./utils/database.ts"
import { makeReceiver, type Receiver, type Span } from "./utils/otlpReceiver.ts"

const Documents = JobQueue.make("documents")

class TooLong extends Schema.TaggedError<TooLong>()("TooLong", {}) {}

class IndexFile extends Job.make("IndexFile", {
  payload: Schema.Struct({ path: Schema.String }),
  error: TooLong,
  queue: Documents,
  retry: RetryPolicy.none
}) {}

/** Fails for the path `bad` as often as it is told to. */
const handlers = (failures = 0) => {
  let left = failures
  return IndexFile.toLayer(({ path }) =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`select ${path}::text`.pipe(Effect.withSpan("index"))
      yield* Effect.logInfo(`indexed ${path}`)
      if (path === "bad" && left-- > 0) return yield* new TooLong()
    })
  )
}

type Setup = Layer.Layer<never, Telemetry.TelemetryError>

const plain = (env: Record<string, string>): Setup =>
  Telemetry.layer().pipe(Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env }))))

const otlp = (url: string, service: string, more: Record<string, string> = {}): Setup =>
  plain({
    OTEL_EXPORTER_OTLP_ENDPOINT: url,
    OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
    OTEL_SERVICE_NAME: service,
    ...more
  })

const sdk = (url: string, serviceName: string): Setup =>
  TelemetryOtel.layer(() => ({
    resource: { serviceName },
    spanProcessor: new BatchSpanProcessor(new OTLPTraceExporter({ url: `${url}/v1/traces` })),
    metricReader: new PeriodicExportingMetricReader({ exporter: new OTLPMetricExporter({ url: `${url}/v1/metrics` }) })
  }))

/** With a metric registry of its own, for other tests of this process count too, and without a console. */
const observed = (telemetry: Setup) =>
  Layer.provideMerge(telemetry, Layer.merge(Layer.succeed(Metric.MetricRegistry, new Map()), Logger.layer([])))

/** A process that submits and runs. Its end flushes. */
const wholeProcess = (url: string, telemetry: Setup, failures?: number) =>
  handlers(failures).pipe(
    Layer.provideMerge(JobRuntime.layer({ queues: [Documents] })),
    Layer.provideMerge(Postgres.layer({ url })),
    Layer.provideMerge(observed(telemetry))
  )

/** A process that submits only. */
const client = (url: string, telemetry: Setup) =>
  JobRuntime.layerClient({ queues: [Documents] }).pipe(
    Layer.provideMerge(Postgres.layer({ url })),
    Layer.provideMerge(observed(telemetry))
  )

/** As a web server would: inside the span of its request. */
const submit = (path: string, options?: Job.RequestOptions) =>
  Effect.flatMap(Jobs.Jobs, (jobs) => jobs.submit(IndexFile.request({ path }, options))).pipe(
    Effect.withSpan("POST /files", { kind: "server" })
  )

const ended = (jobId: JobId) => Effect.flatMap(Jobs.Jobs, (jobs) => Effect.exit(jobs.await(jobId, IndexFile)))

const only = (receiver: Receiver, name: string): Span => {
  const found = receiver.spans().filter((span) => span.name === name)
  if (found.length !== 1 || found[0] === undefined) {
    throw new Error(`${found.length} spans "${name}" among ${receiver.spans().map(({ name }) => name).join(", ")}`)
  }
  return found[0]
}

const reference = ({ spanId, traceId }: Span) => ({ traceId, spanId })

/** Names from the span up to its root, all in one trace. */
const lineage = (receiver: Receiver, span: Span): ReadonlyArray<string> => {
  const parent = receiver.spans().find(({ spanId, traceId }) =>
    spanId === span.parentSpanId && traceId === span.traceId
  )
  if (span.parentSpanId !== undefined && parent === undefined) {
    throw new Error(`the parent of "${span.name}" never arrived`)
  }
  return parent === undefined ? [span.name] : [span.name, ...lineage(receiver, parent)]
}

const failureOf = <A, E>(exit: Exit.Exit<A, E>): E => {
  const error = Exit.findErrorOption(exit)
  if (error._tag === "None") throw new Error("expected a typed failure")
  return error.value
}

describe.each([
  { name: "plain OTLP", setup: (url: string, service: string) => otlp(url, service) },
  { name: "the OpenTelemetry SDK", setup: sdk }
])("$name", ({ setup }) => {
  it.live("a job is one trace: request, send, process, the handler's span, its SQL", () =>
    Effect.scoped(Effect.gen(function*() {
      const { url } = yield* makeDatabase
      const receiver = yield* makeReceiver()
      const jobId = yield* Effect.tap(submit("a"), ended).pipe(
        Effect.provide(wholeProcess(url, setup(receiver.url, "app")))
      )

      const send = only(receiver, "send documents")
      assert.deepStrictEqual(lineage(receiver, send), ["send documents", "POST /files"])
      assert.strictEqual(send.kind, "producer")
      assert.deepStrictEqual(send.attributes, {
        "messaging.system": "millrace",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "documents",
        "messaging.message.id": jobId
      })

      const process = only(receiver, "process documents")
      assert.strictEqual(process.kind, "consumer")
      assert.strictEqual(process.service, "app")
      assert.strictEqual(process.status, "ok")
      assert.deepStrictEqual(process.links, [reference(send)])
      assert.deepStrictEqual(process.attributes, {
        "messaging.system": "millrace",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "documents",
        "messaging.destination.partition.id": "0",
        "messaging.message.id": jobId,
        "millrace.job.type": "IndexFile",
        "millrace.job.attempt": 1
      })

      const index = only(receiver, "index")
      const statement = receiver.spans().find(({ parentSpanId }) => parentSpanId === index.spanId)
      if (statement === undefined) throw new Error("the handler's statement has no span")
      assert.strictEqual(statement.kind, "client")
      assert.strictEqual(statement.attributes["db.system.name"], "postgresql")
      assert.deepStrictEqual(lineage(receiver, statement).filter((name) => name !== "sql.transaction"), [
        statement.name,
        "index",
        "process documents",
        "send documents",
        "POST /files"
      ])
    })))

  it.live("a job submitted by one process and run by another, later, is one trace", () =>
    Effect.scoped(Effect.gen(function*() {
      const { url } = yield* makeDatabase
      const receiver = yield* makeReceiver()
      const jobId = yield* submit("a").pipe(Effect.provide(client(url, setup(receiver.url, "web"))))
      yield* ended(jobId).pipe(Effect.provide(wholeProcess(url, setup(receiver.url, "worker"))))

      const send = only(receiver, "send documents")
      const process = only(receiver, "process documents")
      assert.deepStrictEqual([send.service, process.service], ["web", "worker"])
      assert.deepStrictEqual(lineage(receiver, process), ["process documents", "send documents", "POST /files"])
      assert.deepStrictEqual(process.links, [reference(send)])
    })))

  it.live("a scheduled job begins a trace of its own, with a link to who submitted it", () =>
    Effect.scoped(Effect.gen(function*() {
      const { url } = yield* makeDatabase
      const receiver = yield* makeReceiver()
      yield* Effect.flatMap(submit("a", { delay: "20 millis" }), ended).pipe(
        Effect.provide(wholeProcess(url, setup(receiver.url, "app")))
      )

      const send = only(receiver, "send documents")
      const process = only(receiver, "process documents")
      assert.deepStrictEqual(lineage(receiver, process), ["process documents"])
      assert.notStrictEqual(process.traceId, send.traceId)
      assert.deepStrictEqual(process.links, [reference(send)])
    })))

  it.live("a dead letter replayed after a restart goes on in its trace, each attempt a span that says how it ended", () =>
    Effect.scoped(Effect.gen(function*() {
      const { url } = yield* makeDatabase
      const receiver = yield* makeReceiver()
      const jobId = yield* Effect.tap(submit("bad"), ended).pipe(
        Effect.provide(wholeProcess(url, setup(receiver.url, "app"), 1))
      )
      const status = yield* Effect.flatMap(
        Jobs.Jobs,
        (jobs) => Effect.andThen(jobs.replayJob(jobId), Effect.andThen(ended(jobId), jobs.status(jobId)))
      ).pipe(
        Effect.provide(wholeProcess(url, setup(receiver.url, "app")))
      )

      assert.strictEqual(status.state, "completed")
      const send = only(receiver, "send documents")
      const attempts = receiver.spans().filter(({ name }) => name === "process documents")
      assert.deepStrictEqual(
        attempts.map(({ attributes, parentSpanId, status, traceId }) => ({
          isInTrace: traceId === send.traceId && parentSpanId === send.spanId,
          error: attributes["error.type"],
          status
        })),
        [
          { isInTrace: true, error: "TooLong", status: "error" },
          { isInTrace: true, error: undefined, status: "ok" }
        ]
      )
    })))

  it.live("the metrics of jobs arrive", () =>
    Effect.scoped(Effect.gen(function*() {
      const { url } = yield* makeDatabase
      const receiver = yield* makeReceiver()
      yield* Effect.flatMap(submit("a"), ended).pipe(Effect.provide(wholeProcess(url, setup(receiver.url, "app"))))

      const points = (name: string) => receiver.metrics().findLast((metric) => metric.name === name)?.points
      const job = { type: "IndexFile", queue: "documents" }
      assert.deepStrictEqual(points("millrace_jobs_submitted"), [job])
      assert.deepStrictEqual(points("millrace_jobs_finished"), [{ ...job, outcome: "completed" }])
      assert.deepStrictEqual(points("millrace_job_wait_ms"), [job])
      assert.deepStrictEqual(points("millrace_job_run_ms"), [job])
    })))
})

describe("spans of submissions", () => {
  const recorded = <A, E>(program: Effect.Effect<A, E, Jobs.Jobs>) =>
    Effect.scoped(Effect.gen(function*() {
      const { url } = yield* makeDatabase
      const receiver = yield* makeReceiver()
      yield* program.pipe(Effect.provide(wholeProcess(url, otlp(receiver.url, "app"))))
      return receiver
    }))

  it.live("an open request names the queue that its type's definition says", () =>
    Effect.gen(function*() {
      const receiver = yield* recorded(Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        yield* ended(yield* jobs.submit({ type: "IndexFile", payload: { path: "a" } }))
      }))
      assert.strictEqual(only(receiver, "send documents").attributes["messaging.destination.name"], "documents")
      only(receiver, "process documents")
    }))

  it.live("a batch says how many it sends, and has a destination only if it has one", () =>
    Effect.gen(function*() {
      const request = IndexFile.request({ path: "a" })
      const receiver = yield* recorded(Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        yield* jobs.submit([request, request])
        yield* jobs.submit([request, { ...request, queue: "default" }])
      }))
      const one = only(receiver, "send documents").attributes
      assert.strictEqual(one["messaging.batch.message_count"], 2)
      assert.notProperty(one, "messaging.message.id")
      assert.notProperty(only(receiver, "send").attributes, "messaging.destination.name")
    }))

  it.live("a refused submission says why", () =>
    Effect.gen(function*() {
      const receiver = yield* recorded(Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        yield* Effect.exit(jobs.submit({ type: "IndexFile", queue: "nowhere" }))
      }))
      const { attributes, status } = only(receiver, "send nowhere")
      assert.deepStrictEqual([attributes["error.type"], status], ["UnknownQueue", "error"])
    }))

  it.live("a job submitted without tracing is still traced when it runs: a root without a link", () =>
    Effect.gen(function*() {
      const receiver = yield* recorded(
        Effect.flatMap(Effect.withTracerEnabled(submit("a"), false), ended)
      )
      const { links, parentSpanId } = only(receiver, "process documents")
      assert.deepStrictEqual({ links, parentSpanId }, { links: [], parentSpanId: undefined })
    }))

  it.live("a handler's log line carries the trace of its job", () =>
    Effect.gen(function*() {
      const receiver = yield* recorded(Effect.flatMap(submit("a"), ended))
      const line = receiver.logs().find(({ text }) => text === "indexed a")
      assert.strictEqual(line?.traceId, only(receiver, "send documents").traceId)
    }))
})

describe("an OpenTelemetry provider of the user's own", () => {
  it.live("gets the spans, and is left running", () =>
    Effect.scoped(Effect.gen(function*() {
      const { url } = yield* makeDatabase
      const receiver = yield* makeReceiver()
      const provider = new BasicTracerProvider({
        spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter({ url: `${receiver.url}/v1/traces` }))]
      })
      yield* Effect.flatMap(submit("a"), ended).pipe(
        Effect.provide(wholeProcess(url, TelemetryOtel.layerProvider(provider)))
      )
      assert.deepStrictEqual(receiver.spans(), [])
      yield* Effect.promise(() => provider.shutdown())
      assert.deepStrictEqual(lineage(receiver, only(receiver, "process documents")), [
        "process documents",
        "send documents",
        "POST /files"
      ])
    })))

  it.live("none registered: jobs run, and no job joins the trace of zeros", () =>
    Effect.scoped(Effect.gen(function*() {
      const { url } = yield* makeDatabase
      const receiver = yield* makeReceiver()
      const jobId = yield* submit("a").pipe(Effect.provide(client(url, TelemetryOtel.layerGlobal)))
      yield* ended(jobId).pipe(Effect.provide(wholeProcess(url, otlp(receiver.url, "worker"))))
      assert.deepStrictEqual(only(receiver, "process documents").links, [])
    })))
})

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
        Effect.provide(observed(plain(env).pipe(Layer.provide(Layer.succeed(FetchHttpClient.Fetch, record)))))
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
      assert.strictEqual(only(receiver, "span").service, "from-attributes")
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
      const exit = yield* Effect.exit(Effect.provide(Effect.void, plain({ ...on, [variable]: value })))
      const error = failureOf(exit)
      assert.instanceOf(error, Telemetry.TelemetryError)
      assert.strictEqual(error.variable, variable)
      assert.include(error.message, expected)
      assert.notInclude(error.message, "secret")
    }))
})

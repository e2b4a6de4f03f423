import { assert, describe, it } from "@effect/vitest"
import { OTLPMetricExporter } from "@opentelemetry/exporter-metrics-otlp-http"
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http"
import { PeriodicExportingMetricReader } from "@opentelemetry/sdk-metrics"
import { BasicTracerProvider, BatchSpanProcessor } from "@opentelemetry/sdk-trace-base"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Metric from "effect/Metric"
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

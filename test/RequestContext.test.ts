/**
 * Who asked for the work travels with it: captured by `submit`, stored, restored around the handler, and nothing of anybody else's.
 */
import { assert, layer } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Tracer from "effect/Tracer"
import * as CurrentJob from "../src/CurrentJob.ts"
import * as Job from "../src/Job.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import { JobId } from "../src/JobId.ts"
import * as Jobs from "../src/Jobs.ts"
import * as RequestContext from "../src/RequestContext.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { Spans } from "./utils/recordingTracer.ts"
import { failureOf, layerRuntime, untilState } from "./utils/runtime.ts"

const ada: RequestContext.RequestContext = {
  tenantId: "acme",
  userId: "ada",
  requestId: "r-1",
  roles: ["admin", "writer"],
  origin: { ip: "192.0.2.1", userAgent: "curl/8" }
}

/** What a handler saw of its request, by the job's payload. */
const watch = Effect.fnUntraced(function*(type: string) {
  const seen = new Map<unknown, RequestContext.RequestContext>()
  yield* JobHandlers.register(type, (payload) =>
    Effect.gen(function*() {
      const request = yield* RequestContext.Request
      assert.deepStrictEqual((yield* CurrentJob.CurrentJob).request, request)
      seen.set(payload, request)
    }))
  return seen
})

const withoutTrace = ({ cluster: _cluster, trace: _trace, ...rest }: RequestContext.RequestContext) => rest

/** The spans of one job's attempts. */
const attemptsOf = (jobId: JobId) =>
  Effect.map(
    Spans,
    ({ all }) =>
      all.filter(({ attributes }) =>
        attributes.get("messaging.message.id") === jobId && attributes.has("millrace.job.attempt")
      )
  )

const sendOf = (traceId: string) =>
  Effect.map(Spans, ({ all }) => all.filter((span) => span.traceId === traceId && span.name.startsWith("send ")))

const parentId = (span: Tracer.Span | undefined) =>
  span === undefined ? undefined : Option.getOrUndefined(span.parent)?.spanId

layer(layerRuntime().pipe(Layer.provideMerge(Spans.layer)), { excludeTestServices: true })(
  "the request context",
  (it) => {
    it.effect("is captured at submit and restored in the handler, with the cluster position of the attempt", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const seen = yield* watch("Watch")
        const jobId = yield* RequestContext.provide(jobs.submit({ type: "Watch", payload: 1 }), ada)
        yield* jobs.await(jobId)
        const request = seen.get(1) ?? {}
        assert.deepStrictEqual(withoutTrace(request), ada)
        assert.deepInclude(request.cluster, { runner: "millrace:1", entity: "default/0" })
        assert.match(request.cluster?.shard ?? "", /^default:\d+$/)
        // What status tells is what was asked, not where it ran.
        assert.deepStrictEqual(withoutTrace((yield* jobs.status(jobId)).request), ada)
        assert.isUndefined((yield* jobs.status(jobId)).request.cluster)
      }))

    it.effect("is the system's when nobody is named, whoever else submits at the same time", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const seen = yield* watch("Mixed")
        const who = (n: number): RequestContext.RequestContext =>
          n % 3 === 0 ? {} : { tenantId: `t${n % 3}`, userId: `u${n}` }
        const ids = yield* Effect.forEach(Array.from({ length: 60 }, (_, n) => n), (n) =>
          n % 3 === 0
            ? jobs.submit({ type: "Mixed", payload: n })
            : RequestContext.provide(jobs.submit({ type: "Mixed", payload: n }), who(n)), { concurrency: "unbounded" })
        yield* Effect.forEach(ids, (id) => jobs.await(id))
        for (let n = 0; n < 60; n++) {
          assert.deepStrictEqual(withoutTrace(seen.get(n) ?? { userId: "nobody saw it" }), who(n))
        }
      }))

    it.effect("of whoever registers a handler, or wakes the queue, is not the job's", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const seen = yield* RequestContext.provide(watch("Registered"), { tenantId: "registrar", userId: "registrar" })
        class Typed extends Job.make("TypedRegistered") {}
        const typed = yield* Deferred.make<RequestContext.RequestContext>()
        const live = Typed.toLayer(() =>
          Effect.flatMap(RequestContext.Request, (request) => Effect.asVoid(Deferred.succeed(typed, request)))
        )
        yield* RequestContext.provide(Layer.build(live), { tenantId: "registrar", userId: "registrar" })
        // A system job; the one after it, which wakes the owner again, is somebody's.
        const first = yield* jobs.submit({ type: "Registered", payload: "system" })
        const second = yield* RequestContext.provide(jobs.submit({ type: "Registered", payload: "ada" }), ada)
        yield* jobs.submit(Typed.request(undefined))
        yield* Effect.forEach([first, second], (id) => jobs.await(id))
        assert.deepStrictEqual(withoutTrace(seen.get("system") ?? ada), {})
        assert.deepStrictEqual(withoutTrace(seen.get("ada") ?? {}), ada)
        assert.deepStrictEqual(withoutTrace(yield* Deferred.await(typed)), {})
      }))

    it.effect("is the same in every attempt, and after a replay by somebody else", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const seen: Array<RequestContext.RequestContext> = []
        yield* JobHandlers.register("Again", () =>
          Effect.flatMap(RequestContext.Request, (request) => {
            seen.push(withoutTrace(request))
            return seen.length < 3 ? Effect.fail("again") : Effect.void
          }), { retry: RetryPolicy.delays([0]) })
        const jobId = yield* RequestContext.provide(jobs.submit({ type: "Again" }), ada)
        yield* untilState(jobId, "failed")
        yield* RequestContext.provide(jobs.replayJob(jobId), { userId: "operator" })
        yield* jobs.await(jobId)
        assert.deepStrictEqual(seen, [ada, ada, ada])
      }))

    it.effect("of a handler is that of the jobs it submits: tenant, user, request and trace", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const seen = yield* watch("Child")
        yield* JobHandlers.register("Parent", () => jobs.submit({ type: "Child", payload: "nested" }))
        const parent = yield* jobs.submit({ type: "Parent" }).pipe(
          RequestContext.provide(ada),
          Effect.withSpan("request")
        )
        const child = JobId.make(String(yield* jobs.await(parent)))
        yield* RequestContext.provide(jobs.await(child), { tenantId: "acme" })
        assert.strictEqual(
          (yield* failureOf(RequestContext.provide(jobs.status(child), { tenantId: "globex" })))._tag,
          "JobNotFound"
        )
        const request = seen.get("nested") ?? {}
        assert.deepStrictEqual(withoutTrace(request), ada)
        const [attempt] = yield* attemptsOf(parent)
        const [nested] = yield* attemptsOf(child)
        assert.strictEqual(nested?.traceId, attempt?.traceId)
        // request > send > process (parent) > send > process (child)
        const sends = yield* sendOf(nested?.traceId ?? "")
        const send = sends.find(({ spanId }) => spanId === parentId(nested))
        assert.strictEqual(parentId(send), attempt?.spanId)
        assert.strictEqual(request.trace?.spanId, send?.spanId)
        // The child ran here, whatever its submitter's position was.
        assert.strictEqual(request.cluster?.entity, "default/0")
      }))

    // ------------------------------------------------------------------------------------------------ spans

    it.effect("an attempt's span is a child of the submitting span and has a link to it", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        yield* watch("Traced")
        const jobId = yield* jobs.submit({ type: "Traced" }).pipe(
          Effect.withSpan("http request"),
          RequestContext.provide(ada)
        )
        yield* jobs.await(jobId)
        const { all } = yield* Spans
        const request = all.findLast(({ name }) => name === "http request")
        const [send] = yield* sendOf(request?.traceId ?? "")
        assert.strictEqual(parentId(send), request?.spanId)
        assert.strictEqual(send?.kind, "producer")
        const attempts = yield* attemptsOf(jobId)
        assert.strictEqual(attempts.length, 1)
        const [attempt] = attempts
        assert.deepInclude({
          name: attempt?.name,
          kind: attempt?.kind,
          traceId: attempt?.traceId,
          parent: parentId(attempt)
        }, {
          name: "process default",
          kind: "consumer",
          traceId: request?.traceId,
          parent: send?.spanId
        })
        assert.deepStrictEqual(attempt?.links.map(({ span }) => span.spanId), [send?.spanId])
        const attributes = Object.fromEntries(attempt?.attributes ?? [])
        assert.deepInclude(attributes, {
          "messaging.system": "millrace",
          "messaging.destination.name": "default",
          "messaging.destination.partition.id": "0",
          "messaging.message.id": jobId,
          "millrace.job.type": "Traced",
          "millrace.job.attempt": 1,
          "millrace.tenant.id": "acme"
        })
        // History names the same span.
        const { history } = yield* jobs.status(jobId)
        assert.deepInclude(history.at(-1) ?? {}, { traceId: attempt?.traceId, spanId: attempt?.spanId })
      }))

    it.effect("a delayed job's attempt begins a trace of its own, with a link to the submitting span", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        yield* watch("Delayed")
        const jobId = yield* jobs.submit({ type: "Delayed", delay: "10 millis" }).pipe(
          Effect.withSpan("delaying request")
        )
        yield* jobs.await(jobId)
        const { all } = yield* Spans
        const request = all.findLast(({ name }) => name === "delaying request")
        const [send] = yield* sendOf(request?.traceId ?? "")
        const [attempt] = yield* attemptsOf(jobId)
        assert.isDefined(attempt)
        assert.isUndefined(parentId(attempt))
        assert.notStrictEqual(attempt?.traceId, request?.traceId)
        assert.deepStrictEqual(attempt?.links.map(({ span }) => ({ traceId: span.traceId, spanId: span.spanId })), [
          { traceId: request?.traceId, spanId: send?.spanId }
        ])
      }))

    it.effect("each attempt of a retried job has a span of its own under the same parent, and a failed one says why", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        let runs = 0
        yield* JobHandlers.register(
          "TwiceTraced",
          () => Effect.suspend(() => ++runs < 2 ? Effect.fail({ _tag: "NotYet" }) : Effect.void),
          {
            retry: RetryPolicy.delays([0])
          }
        )
        const jobId = yield* jobs.submit({ type: "TwiceTraced" })
        yield* jobs.await(jobId)
        const attempts = yield* attemptsOf(jobId)
        assert.deepStrictEqual(
          attempts.map(({ attributes }) => attributes.get("millrace.job.attempt")),
          [1, 2]
        )
        assert.strictEqual(new Set(attempts.map(parentId)).size, 1)
        assert.strictEqual(new Set(attempts.map(({ spanId }) => spanId)).size, 2)
        assert.deepStrictEqual(attempts.map(({ attributes }) => attributes.get("error.type")), ["NotYet", undefined])
      }))

    it.effect("a handler's own spans are children of its attempt, wherever the handler was registered", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const handler = () =>
          Effect.andThen(Effect.annotateCurrentSpan("by", "the handler"), Effect.withSpan(Effect.void, "inner work"))
        yield* Effect.withSpan(JobHandlers.register("Inner", handler), "registering")
        class TypedInner extends Job.make("TypedInner") {}
        yield* Effect.withSpan(Layer.build(TypedInner.toLayer(handler)), "registering")
        const { jobIds } = yield* jobs.submit([{ type: "Inner" }, TypedInner.request(undefined)])
        for (const jobId of jobIds) {
          yield* jobs.await(jobId)
          const [attempt] = yield* attemptsOf(jobId)
          assert.strictEqual(attempt?.attributes.get("by"), "the handler")
          const { all } = yield* Spans
          assert.isDefined(all.find((span) => span.name === "inner work" && parentId(span) === attempt?.spanId))
        }
      }))

    it.effect("all spans of the runtime are those of senders, attempts and handlers: no bookkeeping fills the traces", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        yield* watch("Quiet")
        const { all } = yield* Spans
        const before = all.length
        const jobId = yield* jobs.submit({ type: "Quiet" })
        yield* jobs.await(jobId)
        yield* jobs.status(jobId)
        assert.deepStrictEqual(all.slice(before).map(({ name }) => name), ["send default", "process default"])
      }))
  }
)

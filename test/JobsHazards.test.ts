/**
 * What callers of `Jobs` can do wrong, and what they must not get away with: ids, texts, contexts and sizes at the edge of what is stored.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as CurrentJob from "../src/CurrentJob.ts"
import { failed } from "../src/internal/submitError.ts"
import { JobNotFound, type SubmitError } from "../src/JobError.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import { JobId } from "../src/JobId.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Jobs from "../src/Jobs.ts"
import { JobStore, StoreError, tenantKey } from "../src/JobStore.ts"
import * as Postgres from "../src/Postgres.ts"
import * as RequestContext from "../src/RequestContext.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { TestDatabase } from "./utils/database.ts"
import { holdLock, terminate, untilWaiting } from "./utils/holds.ts"
import { failureOf, layerRuntime, listen, makeStops, untilState } from "./utils/runtime.ts"
import { newId, newJob } from "./utils/storeFixture.ts"
import { tcpProxy } from "./utils/tcpProxy.ts"

const Large = JobQueue.make("large", { maxPayloadBytes: JobQueue.maxJsonBytes })

/** A type of the test's own, tried once, whose handler does what the test says. */
const register = <R>(type: string, handler: (payload: unknown) => Effect.Effect<unknown, unknown, R>) =>
  JobHandlers.register(type, handler, { retry: RetryPolicy.none })

/** An id as some other system spells it: the type says it is none of ours. */
const shout = (jobId: JobId) => jobId.toUpperCase() as JobId

/** A context as a caller without types makes it. */
const untyped = (request: unknown) => request as RequestContext.RequestContext

/** The field that a submission was refused for. */
const fieldOf = (error: SubmitError) => error.reason._tag === "InvalidField" ? error.reason.field : error.reason._tag

const tomorrow = Effect.map(DateTime.now, DateTime.add({ days: 1 }))

layer(layerRuntime({ queues: [Large] }), { excludeTestServices: true })("hazards of Jobs", (it) => {
  // ------------------------------------------------------------------------------------------------ ids

  it.effect("a job id in upper case is no JobId, and names the same job to status, cancel, await and replayJob", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      yield* register("Shouted", () => stops.stop("running"))
      assert.isFalse(Schema.is(JobId)("0190A0B0-1234-7ABC-8DEF-0123456789AB"))
      const jobId = yield* jobs.submit({ type: "Shouted" })
      yield* stops.arrived("running")
      const waiting = yield* Effect.forkScoped(failureOf(jobs.await(shout(jobId))))
      assert.deepInclude(yield* jobs.status(shout(jobId)), { jobId, state: "running" })
      const { heard: told } = yield* listen({ type: "Shouted" }, ({ _tag }) => _tag === "JobCancelled")
      // The owner knows that it runs: it is interrupted before it is cancelled.
      yield* jobs.cancel(shout(jobId))
      assert.deepStrictEqual((yield* told).map((event) => event.jobId), [jobId])
      assert.deepInclude(yield* Fiber.join(waiting), { jobId, jobState: "cancelled" })
      const { history } = yield* jobs.status(jobId)
      assert.deepStrictEqual(history.map(({ move }) => move), ["submitted", "started", "cancelled"])
      assert.deepInclude(yield* failureOf(jobs.cancel(shout(jobId))), { _tag: "JobAlreadyFinal", jobId })

      yield* register("ShoutedDead", () => Effect.fail("no"))
      const dead = yield* jobs.submit({ type: "ShoutedDead" })
      yield* untilState(dead, "failed")
      const { heard: replayed } = yield* listen({ type: "ShoutedDead" }, ({ _tag }) => _tag === "JobReplayed")
      yield* jobs.replayJob(shout(dead))
      assert.deepStrictEqual((yield* replayed).map((event) => event.jobId), [dead])
    }))

  // ------------------------------------------------------------------------------------------------ tenants

  it.effect("guarantee 7: a stored context that does not decode never makes a tenant's handler the system's", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const store = yield* JobStore
      const { queueId } = yield* store.declareQueue("large")
      const seen: Array<RequestContext.RequestContext> = []
      yield* register("Undecodable", () =>
        Effect.gen(function*() {
          seen.push((yield* CurrentJob.CurrentJob).request, yield* RequestContext.Request)
        }))
      const job = newJob({
        queueId,
        tenant: tenantKey("acme"),
        type: "Undecodable",
        context: "{\"tenantId\":\"acme\",\"userId\":null}"
      })
      // One whose context names another tenant than its row, one of the system's whose context names a tenant.
      const other = { ...job, id: newId(), context: "{\"tenantId\":\"other\"}" }
      const system = { ...job, id: newId(), tenant: tenantKey(undefined), context: "{\"tenantId\":\"other\"}" }
      const stored = yield* store.submit([job, other, system], { batchId: undefined, now: yield* store.now })
      yield* store.announce(
        stored.map(({ seq }, index) => ({
          queueId,
          partition: 0,
          lane: 2,
          tenant: index === 2 ? system.tenant : job.tenant,
          seq
        }))
      )
      for (const { id } of [job, other, system]) yield* jobs.await(id)
      const tenants = seen.map(({ tenantId }) => tenantId ?? "the system").toSorted((left, right) =>
        left < right ? -1 : 1
      )
      assert.deepStrictEqual(tenants, ["acme", "acme", "acme", "acme", "the system", "the system"])
      assert.deepStrictEqual((yield* jobs.status(job.id)).request, { tenantId: "acme" })
      assert.deepStrictEqual((yield* jobs.status(system.id)).request, {})
    }))

  it.effect("a request context that could not be read back is refused at submit, by the name of its field", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const cyclic: Record<string, unknown> = {}
      cyclic["self"] = cyclic
      for (
        const [field, request] of [
          ["request.userId", { tenantId: "acme", userId: null }],
          ["request.roles.1", { roles: ["admin", 7] }],
          ["request.origin.ip", { origin: { ip: 1 } }],
          ["request.trace.spanId", { trace: { traceId: "a", sampled: true } }],
          ["request.userId", { userId: "a\0b" }],
          ["request.requestId", { requestId: "\ud800" }],
          ["request.roles[1]", { roles: ["admin", "\udfff"] }],
          ["request.origin.userAgent", { origin: { userAgent: "\ud800" } }],
          ["request.tenantId", { tenantId: "\ud800" }],
          ["request.tenantId", { tenantId: "x".repeat(201) }],
          ["request", { userId: "x".repeat(8_000) }],
          ["request", cyclic],
          ["request", null]
        ] as const
      ) {
        const error = yield* failureOf(RequestContext.provide(jobs.submit({ type: "Refused" }), untyped(request)))
        assert.strictEqual(fieldOf(error), field, JSON.stringify(error))
        assert.isFalse(error.isRetryable)
      }
      // What says nothing is nothing; what fits is taken.
      const runAt = yield* tomorrow
      const request = untyped({ tenantId: "acme", userId: undefined, requestId: "x".repeat(7_900) })
      const jobId = yield* RequestContext.provide(jobs.submit({ type: "Fits", runAt }), request)
      const { trace: _, ...stored } = (yield* jobs.status(jobId)).request
      assert.deepStrictEqual(stored, { tenantId: "acme", requestId: "x".repeat(7_900) })
    }))

  it.effect("texts that PostgreSQL would make one are refused: half a surrogate pair merges no tenants and no dedupe keys", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      for (const half of ["\ud800", "\udfff", "a\ud83d"]) {
        assert.strictEqual(fieldOf(yield* failureOf(jobs.submit({ type: half }))), "type")
        assert.strictEqual(fieldOf(yield* failureOf(jobs.submit([{ type: "Half", dedupeKey: half }]))), "[0].dedupeKey")
        const asTenant = RequestContext.provide(jobs.submit({ type: "Half" }), { tenantId: half })
        assert.strictEqual(fieldOf(yield* failureOf(asTenant)), "request.tenantId")
      }
      const runAt = yield* tomorrow
      const whole = RequestContext.provide({ tenantId: "\u{1f600}" })
      const jobId = yield* whole(jobs.submit({ type: "\u{1f600}", dedupeKey: "\u{1f600}", runAt }))
      assert.deepInclude(yield* whole(jobs.status(jobId)), { type: "\u{1f600}", dedupeKey: "\u{1f600}" })
      const replaced = RequestContext.provide(jobs.status(jobId), { tenantId: "\ufffd" })
      assert.instanceOf(yield* failureOf(replaced), JobNotFound)
    }))

  // ------------------------------------------------------------------------------------------------ sizes

  it.effect("the largest payload with the largest result is stored and read back; a larger result is a dead letter, not a wedge", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const text = "x".repeat(JobQueue.maxJsonBytes - 2)
      yield* register("Echo", Effect.succeed)
      const largest = yield* jobs.submit({ type: "Echo", payload: text, queue: Large })
      assert.strictEqual(yield* jobs.await(largest), text)
      const larger = yield* failureOf(jobs.submit({ type: "Echo", payload: `${text}x`, queue: Large }))
      assert.strictEqual(larger.reason._tag, "PayloadTooLarge")

      let runs = 0
      const handler = () =>
        Effect.sync(() => {
          runs++
          return `${text}x`
        })
      yield* JobHandlers.register("TooLarge", handler, { retry: RetryPolicy.delays([0, 0]) })
      yield* JobHandlers.register("TooLargeAlone", handler, { transaction: "none" })
      for (const type of ["TooLarge", "TooLargeAlone"]) {
        const jobId = yield* jobs.submit({ type, queue: Large })
        const error = yield* failureOf(jobs.await(jobId))
        assert.deepInclude(error, { _tag: "JobUnsuccessful", errorTag: "ResultTooLarge" })
        const { attempts, failure, state } = yield* jobs.status(jobId)
        assert.deepStrictEqual({ attempts, class: failure?.class, state }, {
          attempts: 1,
          class: "Permanent",
          state: "failed"
        })
        assert.include(failure?.message, "return a reference")
      }
      assert.strictEqual(runs, 2)
    }))
})

// -------------------------------------------------------------------------------------------------- of a client

/** The network between the process under test and the database; the test itself has a way of its own. */
class Network extends Context.Service<Network, {
  readonly cut: Effect.Effect<void>
  readonly direct: PgClient
}>()("millrace/test/JobsNetwork") {}

const client = Layer.unwrap(Effect.gen(function*() {
  const { url } = yield* TestDatabase
  const direct = yield* PgClient
  const { cut, url: through } = yield* tcpProxy(url)
  return JobRuntime.layerClient({ lockTimeout: "200 millis" }).pipe(
    Layer.provideMerge(Postgres.layer({ url: through })),
    Layer.merge(Layer.succeed(Network, { cut, direct }))
  )
})).pipe(Layer.provideMerge(TestDatabase.layer))

describe("hazards of Jobs, in a process that only submits", () => {
  it.live("an answer that is lost is not told as \"nothing stored\": the ids are given, and their jobs may come to be there", () =>
    Effect.gen(function*() {
      const { cut, direct } = yield* Network
      const jobs = yield* Jobs.Jobs
      yield* direct`create function public.hold_job() returns trigger language plpgsql set lock_timeout = 0 as
        $$ begin perform pg_advisory_xact_lock_shared(2); return null; end $$`
      yield* direct`create constraint trigger hold after insert on millrace.jobs deferrable initially deferred
        for each row execute function public.hold_job()`
      const { release } = yield* holdLock(direct, 2)
      const sent = yield* Effect.forkScoped(failureOf(jobs.submit([{ type: "Lost" }, { type: "Lost" }])))
      yield* untilWaiting(direct, 1, "advisory")
      yield* cut
      // Sent again and again, it waits for its own first sending, and gives up.
      const error = yield* Fiber.join(sent)
      assert.strictEqual(error.reason._tag, "OutcomeUnknown")
      assert.isFalse(error.isRetryable)
      const ids = error.reason._tag === "OutcomeUnknown" ? error.reason.jobIds : []
      assert.include(error.message, ids[0] ?? "no id")
      yield* release
      const stored = Effect.forEach(ids, (id) => Effect.option(jobs.status(id)))
      yield* Effect.repeat(stored, {
        until: (found) => found.every(Option.isSome),
        schedule: Schedule.spaced("5 millis")
      })
      assert.strictEqual(ids.length, 2)
    }).pipe(Effect.scoped, Effect.provide(client)))

  it.live("a submission that is lost with its transaction is told as not stored; data that the server refuses is refused for good", () =>
    Effect.gen(function*() {
      const { direct } = yield* Network
      const sql = yield* PgClient
      const jobs = yield* Jobs.Jobs
      let lost: SubmitError | undefined
      yield* Effect.exit(sql.withTransaction(Effect.gen(function*() {
        const [session] = yield* sql<{ readonly pid: number }>`select pg_backend_pid() as pid`
        yield* terminate(direct, session!.pid)
        lost = yield* failureOf(jobs.submit({ type: "Lost" }))
        return yield* lost
      })))
      assert.strictEqual(lost?.reason._tag, "StoreUnavailable")
      assert.isTrue(lost?.isRetryable)

      yield* direct`alter table millrace.jobs add constraint no_such_type check (type <> 'Forbidden')`
      const refused = yield* failureOf(jobs.submit({ type: "Forbidden" }))
      assert.strictEqual(refused.reason._tag, "Refused")
      assert.isFalse(refused.isRetryable)
      assert.include(refused.message, "no_such_type")
    }).pipe(Effect.scoped, Effect.provide(client)))
})

describe("what a failure of the store means to a submitter", () => {
  it("only what was sent and not answered is an unknown outcome", () => {
    const cause = new Error("the test's")
    const of = (reason: StoreError["reason"], isUncertain?: true) =>
      failed(
        new StoreError({ reason, operation: "submit", cause, ...(isUncertain === undefined ? {} : { isUncertain }) }),
        []
      ).reason._tag
    assert.strictEqual(of("Unavailable", true), "OutcomeUnknown")
    assert.strictEqual(of("Unavailable"), "StoreUnavailable")
    assert.strictEqual(of("Conflict"), "StoreUnavailable")
    assert.strictEqual(of("LockTimeout"), "DedupeKeyBusy")
    assert.strictEqual(of("Refused"), "Refused")
  })
})

import { assert, layer } from "@effect/vitest"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import * as CurrentJob from "../src/CurrentJob.ts"
import * as EventBus from "../src/EventBus.ts"
import * as Job from "../src/Job.ts"
import {
  DeadLetterNotFound,
  DedupeKeyTaken,
  Discard,
  InvalidField,
  JobAlreadyFinal,
  JobNotFound,
  JobUnsuccessful,
  type SubmitError
} from "../src/JobError.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import { JobId } from "../src/JobId.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as Jobs from "../src/Jobs.ts"
import * as RequestContext from "../src/RequestContext.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { failureOf, layerRuntime, listen, makeStops, until, untilState } from "./utils/runtime.ts"
import { newId } from "./utils/storeFixture.ts"

const Small = JobQueue.make("small", { concurrency: 5, maxPayloadBytes: 100 })
const Keyed = JobQueue.make("keyed", { partitionBy: "key" })

class Refused extends Schema.TaggedError<Refused>()("Refused", { why: Schema.String }) {}

class Greet extends Job.make("Greet", {
  payload: Schema.Struct({ name: Schema.String }),
  success: Schema.Struct({ greeting: Schema.String, at: Schema.Date }),
  error: Refused,
  retry: RetryPolicy.none,
  priority: "high",
  dedupeKey: ({ name }) => `greet ${name}`
}) {}

const epoch = new Date(0)

const GreetLive = Greet.toLayer(({ name }) =>
  name === "nobody"
    ? Effect.fail(new Refused({ why: "no such person" }))
    : Effect.succeed({ greeting: `Hello, ${name}`, at: epoch })
)

/** Rows in the three places a job can be in. */
const countRows = Effect.gen(function*() {
  const sql = yield* SqlClient
  const [row] = yield* sql<{ n: number }>`select ((select count(*) from millrace.jobs)
    + (select count(*) from millrace.dead_letters) + (select count(*) from millrace.finished_jobs))::int as n`
  return row?.n ?? -1
})

/** A type of the test's own, whose handler does what the test says. */
const register = <R>(
  type: string,
  handler: (payload: unknown) => Effect.Effect<unknown, unknown, R>,
  options?: JobHandlers.Options
) => JobHandlers.register(type, handler, { retry: RetryPolicy.none, ...options })

const rolledBack = new Error("rolled back")

const tomorrow = Effect.map(DateTime.now, DateTime.add({ days: 1 }))

layer(GreetLive.pipe(Layer.provideMerge(layerRuntime({ queues: [Small, Keyed], lockTimeout: "250 millis" }))), {
  excludeTestServices: true
})("Jobs", (it) => {
  // ------------------------------------------------------------------------------------------------ submit

  it.effect("submit of one request answers its id, and the job runs", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const jobId = yield* jobs.submit(Greet.request({ name: "Ada" }))
      assert.isTrue(Schema.is(JobId)(jobId))
      assert.deepStrictEqual(yield* jobs.await(jobId, Greet), { greeting: "Hello, Ada", at: epoch })
    }))

  it.effect("submit of a batch answers ids in the order of its requests, under one batch id", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const names = Array.from({ length: 50 }, (_, index) => `person ${index}`)
      const { batchId, jobIds } = yield* jobs.submit(names.map((name) => Greet.request({ name })))
      const results = yield* Effect.forEach(jobIds, (id) => jobs.await(id, Greet), { concurrency: 10 })
      assert.deepStrictEqual(results.map(({ greeting }) => greeting), names.map((name) => `Hello, ${name}`))
      const statuses = yield* Effect.forEach(jobIds, (id) => jobs.status(id))
      assert.deepStrictEqual([...new Set(statuses.map((status) => status.batchId))], [batchId])
    }))

  it.effect("a plain request takes queue, priority and dedupe key of the definition that its type has here", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const runAt = yield* tomorrow
      const typed = yield* jobs.submit(Greet.request({ name: "Bea" }, { runAt }))
      const plain = yield* jobs.submit({ type: "Greet", payload: { name: "Bea" }, runAt })
      assert.strictEqual(plain, typed)
      const { dedupeKey, priority, queue } = yield* jobs.status(typed)
      assert.deepStrictEqual({ dedupeKey, priority, queue }, {
        dedupeKey: "greet Bea",
        priority: "high",
        queue: "default"
      })
    }))

  it.effect("a request's own dedupe key wins over its definition's", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const runAt = yield* tomorrow
      const first = yield* jobs.submit(Greet.request({ name: "Cleo" }, { runAt, dedupeKey: "mine" }))
      const second = yield* jobs.submit(Greet.request({ name: "Cleo" }, { runAt }))
      const third = yield* jobs.submit({ type: "anything", dedupeKey: "mine", runAt })
      assert.notStrictEqual(second, first)
      assert.strictEqual(third, first)
    }))

  it.effect("priority: a request's own wins over the batch's, the batch's over the definition's", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const runAt = yield* tomorrow
      const { jobIds } = yield* jobs.submit([
        Greet.request({ name: "Dan" }, { runAt, priority: "critical" }),
        Greet.request({ name: "Eve" }, { runAt }),
        { type: "plain", runAt },
        { type: "plain", runAt, priority: 30 }
      ], { priority: "low" })
      const alone = yield* jobs.submit(Greet.request({ name: "Fay" }, { runAt }))
      const lanes = yield* Effect.forEach(
        [...jobIds, alone],
        (id) => Effect.map(jobs.status(id), ({ priority }) => priority)
      )
      assert.deepStrictEqual(lanes, ["critical", "low", "low", "normal", "high"])
    }))

  it.effect("a batch's queue is its requests' default, by value or by name", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const runAt = yield* tomorrow
      const { jobIds } = yield* jobs.submit([{ type: "plain", runAt }, { type: "plain", runAt, queue: "default" }], {
        queue: Small
      })
      const queues = yield* Effect.forEach(jobIds, (id) => Effect.map(jobs.status(id), ({ queue }) => queue))
      assert.deepStrictEqual(queues, ["small", "default"])
    }))

  it.effect("duplicates inside a batch collapse into the first one", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const runAt = yield* tomorrow
      const request = (dedupeKey: string) => ({ type: "plain", runAt, dedupeKey })
      const { jobIds } = yield* jobs.submit([request("a"), request("b"), request("a"), { type: "plain", runAt }])
      assert.strictEqual(jobIds[2], jobIds[0])
      assert.strictEqual(new Set(jobIds).size, 3)
    }))

  it.effect("two tenants can hold the same dedupe key", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const runAt = yield* tomorrow
      const submit = jobs.submit({ type: "plain", runAt, dedupeKey: "shared" })
      const ids = yield* Effect.forEach(["a", "b", ""], (tenantId) => RequestContext.provide(submit, { tenantId }))
      assert.strictEqual(new Set([...ids, yield* submit]).size, 4)
    }))

  // ------------------------------------------------------------------------------------------------ what submit refuses

  const circular: Record<string, unknown> = {}
  circular["self"] = circular

  const refusals: ReadonlyArray<readonly [string, Job.JobRequest, { readonly _tag: string; readonly field?: string }]> =
    [
      ["an empty type", { type: "" }, { _tag: "InvalidField", field: "type" }],
      ["a type with NUL", { type: "a\0b" }, { _tag: "InvalidField", field: "type" }],
      ["a priority that is no lane", { type: "T", priority: "urgent" as "high" }, {
        _tag: "InvalidField",
        field: "priority"
      }],
      ["a priority above 100", { type: "T", priority: 101 }, { _tag: "InvalidField", field: "priority" }],
      ["a priority that is no number", { type: "T", priority: Number.NaN }, {
        _tag: "InvalidField",
        field: "priority"
      }],
      ["an unknown queue", { type: "T", queue: "nowhere" }, { _tag: "UnknownQueue", field: "queue" }],
      ["a payload above the queue's limit", { type: "T", queue: Small, payload: "x".repeat(99) }, {
        _tag: "PayloadTooLarge",
        field: "payload"
      }],
      ["a time that is text", { type: "T", runAt: "tomorrow" as never }, { _tag: "InvalidField", field: "runAt" }],
      ["a dedupe key that is a number", { type: "T", dedupeKey: 5 as never }, {
        _tag: "InvalidField",
        field: "dedupeKey"
      }],
      ["an empty dedupe key", { type: "T", dedupeKey: "" }, { _tag: "InvalidField", field: "dedupeKey" }],
      ["a dedupe key of 513 characters", { type: "T", dedupeKey: "x".repeat(513) }, {
        _tag: "InvalidField",
        field: "dedupeKey"
      }],
      ["a dedupe key with NUL", { type: "T", dedupeKey: "a\0b" }, { _tag: "InvalidField", field: "dedupeKey" }],
      ["both runAt and delay", { type: "T", runAt: 1, delay: 1 }, { _tag: "InvalidField", field: "delay" }],
      ["a negative delay", { type: "T", delay: -1 }, { _tag: "InvalidField", field: "delay" }],
      ["an endless delay", { type: "T", delay: "Infinity" }, { _tag: "InvalidField", field: "delay" }],
      ["a delay that is none", { type: "T", delay: "soon" as "1 second" }, { _tag: "InvalidField", field: "delay" }],
      ["a runAt that is NaN", { type: "T", runAt: Number.NaN }, { _tag: "InvalidField", field: "runAt" }],
      ["a runAt that is an invalid date", { type: "T", runAt: new Date("never") }, {
        _tag: "InvalidField",
        field: "runAt"
      }],
      ["a runAt after the year 9999", { type: "T", runAt: 1e15 }, { _tag: "InvalidField", field: "runAt" }],
      ["a negative expiresIn", { type: "T", expiresIn: -1 }, { _tag: "InvalidField", field: "expiresIn" }],
      ["a delay that ends after the year 9999", { type: "T", delay: "3000000 days" }, {
        _tag: "InvalidField",
        field: "delay"
      }],
      ["an expiresIn that ends after the year 9999", { type: "T", expiresIn: "3000000 days" }, {
        _tag: "InvalidField",
        field: "expiresIn"
      }],
      ["a payload with a BigInt", { type: "T", payload: { n: 1n } }, { _tag: "InvalidField", field: "payload" }],
      ["a payload with a function", { type: "T", payload: { f: () => 1 } }, { _tag: "InvalidField", field: "payload" }],
      ["a payload that holds itself", { type: "T", payload: circular }, { _tag: "InvalidField", field: "payload" }],
      ["a typed payload that its schema does not take", Greet.request({ name: 1 as unknown as string }), {
        _tag: "InvalidField",
        field: "payload.name"
      }],
      ["a misspelt option", { type: "T", dealy: "1 hour" } as Job.JobRequest, { _tag: "InvalidField", field: "dealy" }],
      ["a misspelt dedupe key", { type: "T", dedupekey: "a" } as Job.JobRequest, {
        _tag: "InvalidField",
        field: "dedupekey"
      }],
      ["a misspelt option of a typed request", Greet.request({ name: "a" }, { Key: "a" } as Job.RequestOptions), {
        _tag: "InvalidField",
        field: "Key"
      }],
      ["a key that is no text", { type: "T", key: 5 as never }, { _tag: "InvalidField", field: "key" }],
      ["a definition that is none", { type: "T", definition: null as never }, {
        _tag: "InvalidField",
        field: "definition"
      }],
      ["a delay that is NaN", { type: "T", delay: NaN }, { _tag: "InvalidField", field: "delay" }],
      ["a delay of an unknown unit", { type: "T", delay: { hour: 1 } as object }, {
        _tag: "InvalidField",
        field: "delay"
      }],
      ["a queue that is none", { type: "T", queue: {} as never }, { _tag: "InvalidField", field: "queue" }],
      ["a priority without words", { type: "T", priority: Object.create(null) }, {
        _tag: "InvalidField",
        field: "priority"
      }]
    ]

  for (const [what, request, expected] of refusals) {
    it.effect(`submit refuses ${what}, names the field, and stores nothing`, () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const before = yield* countRows
        const pick = (
          { isRetryable, reason }: { readonly isRetryable: boolean; readonly reason: { readonly _tag: string } }
        ) => ({
          _tag: reason._tag,
          isRetryable,
          ...("field" in reason ? { field: reason.field } : {})
        })
        assert.deepStrictEqual(pick(yield* failureOf(jobs.submit(request))), { ...expected, isRetryable: false })
        const good = { type: "never stored" }
        const ofBatch = yield* failureOf(jobs.submit([good, good, good, request, good]))
        assert.deepStrictEqual(pick(ofBatch), { ...expected, isRetryable: false, field: `[3].${expected.field}` })
        assert.include(ofBatch.message, `[3].${expected.field}: `)
        assert.strictEqual(yield* countRows, before)
      }))
  }

  it.effect("submit refuses a tenant that PostgreSQL could not store, and does not blame the database", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const { isRetryable, reason } = yield* failureOf(
        RequestContext.provide(jobs.submit({ type: "T" }), { tenantId: "a\0b" })
      )
      assert.deepStrictEqual({ isRetryable, tag: reason._tag }, { isRetryable: false, tag: "InvalidField" })
    }))

  it.effect("submit says what was expected of a field, and shows what it got", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const words = (request: unknown, ...rest: ReadonlyArray<unknown>) =>
        Effect.map(failureOf(jobs.submit(request as [], ...rest as [])), ({ message }) => message)
      assert.strictEqual(yield* words(Greet.request({ name: 5 as never })), "payload.name: expected string, received 5")
      assert.strictEqual(
        yield* words(Greet.request({} as never)),
        "payload.name: expected string, received nothing"
      )
      class SignUp
        extends Job.make("SignUp", { payload: Schema.Struct({ password: Schema.Redacted(Schema.String) }) })
      {}
      assert.strictEqual(
        yield* words(SignUp.request({ password: "hunter2" as never })),
        "payload.password: expected Redacted, received a string"
      )
      class Many extends Job.make("Many", { payload: Schema.Struct({ items: Schema.Array(Schema.Number) }) }) {}
      assert.strictEqual(
        yield* words(Many.request({ items: [1, 2, "3" as never] })),
        "payload.items[2]: expected number, received \"3\""
      )
      assert.strictEqual(
        yield* words([Many.request({} as never)]),
        "[0].payload.items: expected array, received nothing"
      )
      assert.strictEqual(
        yield* words({ type: "T", runAt: 1_000, delay: "5 seconds" }),
        "delay: expected either runAt or delay, not both, received runAt 1000 and delay \"5 seconds\""
      )
      assert.strictEqual(
        yield* words({ type: "T", runAt: "2027-01-01" }),
        "runAt: expected a time between 1970 and 9999 (a DateTime, a Date or milliseconds since 1970), received \"2027-01-01\""
      )
      assert.strictEqual(
        yield* words({ type: "T", dedupeKey: 1 }),
        "dedupeKey: expected a text of 1 to 512 characters without NUL and unpaired surrogates, received 1"
      )
      for (const field of ["delay", "expiresIn"]) {
        assert.strictEqual(
          yield* words([{ type: "T", [field]: "10 secs" }]),
          `[0].${field}: expected a duration that is finite and not negative, such as "10 seconds" or milliseconds, received "10 secs"`
        )
      }
      assert.strictEqual(
        yield* words([Greet.request(5 as never)]),
        "[0].payload: expected a payload of Greet (object), received 5"
      )
      assert.strictEqual(
        yield* words({ type: "T", payload: { n: 1n } }),
        "payload: expected a JSON value, received {\"n\":1n}"
      )
      assert.include(
        yield* words({ type: "T", dealy: "1 hour" }),
        "dealy: expected no such field, only type, payload, definition, queue"
      )
      assert.strictEqual(
        yield* words([{ type: "T" }], { prioirty: "low" }),
        "options.prioirty: expected no such field, only queue, priority, received \"low\""
      )
      assert.include(
        yield* words([{ type: "T" }], { priority: "urgent" }),
        "options.priority: expected critical, high, "
      )
      for (const none of [null, undefined, "T", 5]) {
        assert.include(yield* words(none), "request: expected a request or an array of requests, received ")
        assert.include(yield* words([{ type: "T" }, none]), "[1]: expected a request: an object with a type, received ")
      }
    }))

  it.effect("a key function that throws is told with what it threw, and nothing is stored; one that cannot be asked is not", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const before = yield* countRows
      const boom = new TypeError("no such customer")
      const nobody = () => {
        throw boom
      }
      const payload = Schema.Struct({ n: Schema.Int })
      class Once extends Job.make("Once", { payload, dedupeKey: nobody }) {}
      class InLine extends Job.make("InLine", { payload, queue: Keyed, key: nobody }) {}
      yield* Layer.build(Layer.mergeAll(Once.toLayer(() => Effect.void), InLine.toLayer(() => Effect.void)))
      for (const [field, definition] of [["dedupeKey", Once], ["key", InLine]] as const) {
        const { type } = definition
        const plain = { type, payload: { n: 1 }, queue: definition.queue }
        for (const request of [definition.request({ n: 1 }), plain]) {
          for (const [asked, at] of [[jobs.submit(request), ""], [jobs.submit([request]), "[0]."]] as const) {
            const error = yield* failureOf<unknown, SubmitError, never>(asked)
            assert(error.reason instanceof InvalidField)
            assert.strictEqual(error.reason.cause, boom)
            assert.strictEqual(
              error.message,
              `${at}${field}: expected the ${field} function of ${type} to return a key, received a thrown TypeError: no such customer`
            )
          }
        }
      }
      assert.strictEqual(yield* countRows, before)
      // What does not decode is told when the job runs.
      yield* jobs.submit({ type: "Once", payload: { n: "one" } })
    }))

  it.effect("submit looks at a request's own fields only: not at what a library has put on every object", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const inherited = { polyfill: true }
      yield* jobs.submit(Object.assign(Object.create(inherited), { type: "inherits" }))
      yield* jobs.submit([{ type: "inherits" }], Object.assign(Object.create(inherited), { priority: "low" }))
    }))

  it.effect("submit refuses an empty batch", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const { isRetryable, reason } = yield* failureOf(jobs.submit([]))
      assert.deepStrictEqual({ isRetryable, tag: reason._tag }, { isRetryable: false, tag: "EmptyBatch" })
    }))

  it.effect("the error of an unknown queue lists the known ones", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const { message } = yield* failureOf(jobs.submit({ type: "T", queue: "smal" }))
      assert.include(message, "\"smal\"")
      assert.include(message, "default, small")
    }))

  it.effect("the largest payload that a queue takes is taken", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      yield* register("Echo98", Effect.succeed)
      const payload = "x".repeat(98)
      const jobId = yield* jobs.submit({ type: "Echo98", queue: Small, payload })
      assert.strictEqual(yield* jobs.await(jobId), payload)
    }))

  it.effect("a payload of any JSON arrives as it was given", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      yield* register("Echo", Effect.succeed)
      const payloads = [
        0,
        -1.5,
        "",
        "\u0000 \u{1f600} \\",
        [],
        {},
        { "": [{ a: null }] },
        true,
        Array.from({ length: 1000 }, (_, i) => i)
      ]
      const { jobIds } = yield* jobs.submit(payloads.map((payload) => ({ type: "Echo", payload })))
      assert.deepStrictEqual(yield* Effect.forEach(jobIds, (id) => jobs.await(id)), payloads)
    }))

  it.effect("no payload is null, and a result of null is no result", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const seen: Array<unknown> = []
      yield* register("Null", (payload) => Effect.sync(() => seen.push(payload)).pipe(Effect.as(null)))
      const { jobIds } = yield* jobs.submit([{ type: "Null" }, { type: "Null", payload: null }])
      assert.deepStrictEqual(yield* Effect.forEach(jobIds, (id) => jobs.await(id)), [undefined, undefined])
      assert.deepStrictEqual(seen, [null, null])
    }))

  // ------------------------------------------------------------------------------------------------ inside a transaction

  it.effect("a job submitted in the caller's transaction is not seen before the commit, and runs right after it", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* SqlClient
      const bus = yield* EventBus.EventBus
      const heard: Array<string> = []
      const events = yield* bus.subscribe({ type: "InTransaction" })
      yield* Effect.forkScoped(Stream.runForEach(events, ({ _tag }) => Effect.sync(() => heard.push(_tag))))
      yield* register("InTransaction", () => Effect.succeed("done"))
      const jobId = yield* sql.withTransaction(Effect.gen(function*() {
        const id = yield* jobs.submit({ type: "InTransaction" })
        // Found by nobody else, and nothing told: not by a sweep of the owner, not by an event.
        assert.instanceOf(yield* failureOf(jobs.status(id)), JobNotFound)
        const later = yield* jobs.submit(Greet.request({ name: "somebody else" }))
        assert.instanceOf(yield* failureOf(jobs.status(later)), JobNotFound)
        assert.deepStrictEqual(heard, [])
        return id
      }))
      assert.strictEqual(yield* jobs.await(jobId), "done")
      yield* until(Effect.sync(() => heard.includes("JobCompleted")))
      assert.deepStrictEqual(heard, ["JobSubmitted", "JobStarted", "JobCompleted"])
    }))

  it.effect("a job submitted in a transaction that rolls back is gone, and no event tells of it", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* SqlClient
      const { heard: told } = yield* listen({ type: "RolledBack" }, ({ _tag }) => _tag === "JobCompleted")
      yield* register("RolledBack", () => Effect.void)
      let lost = newId()
      const exit = yield* sql.withTransaction(Effect.gen(function*() {
        lost = yield* jobs.submit({ type: "RolledBack", dedupeKey: "rolled back" })
        return yield* Effect.fail(rolledBack)
      })).pipe(Effect.exit)
      assert.deepStrictEqual(exit, Exit.fail(rolledBack))
      assert.instanceOf(yield* failureOf(jobs.status(lost)), JobNotFound)
      // Its dedupe key is free again.
      const kept = yield* jobs.submit({ type: "RolledBack", dedupeKey: "rolled back" })
      assert.notStrictEqual(kept, lost)
      const events = yield* told
      assert.deepStrictEqual(events.map(({ _tag, jobId }) => ({ _tag, jobId })), [
        { _tag: "JobSubmitted", jobId: kept },
        { _tag: "JobStarted", jobId: kept },
        { _tag: "JobCompleted", jobId: kept }
      ])
    }))

  it.effect("a job submitted in a savepoint that rolls back is gone, those around it run", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* SqlClient
      yield* register("Savepoint", Effect.succeed)
      const { after, before, inside } = yield* sql.withTransaction(Effect.gen(function*() {
        const before = yield* jobs.submit({ type: "Savepoint", payload: "before" })
        let inside = before
        yield* sql.withTransaction(Effect.gen(function*() {
          inside = yield* jobs.submit({ type: "Savepoint", payload: "inside" })
          return yield* Effect.fail(rolledBack)
        })).pipe(Effect.ignore)
        const after = yield* jobs.submit([{ type: "Savepoint", payload: "after", dedupeKey: "after" }])
        return { after: after.jobIds[0] ?? before, before, inside }
      }))
      assert.strictEqual(yield* jobs.await(before), "before")
      assert.strictEqual(yield* jobs.await(after), "after")
      assert.instanceOf(yield* failureOf(jobs.status(inside)), JobNotFound)
    }))

  it.effect("no event tells of a job submitted in a savepoint that rolls back", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* SqlClient
      const { heard: told } = yield* listen({ type: "SavepointEvents", tags: ["JobSubmitted"] }, ({ queue }) =>
        queue === "small")
      const runAt = yield* tomorrow
      yield* sql.withTransaction(Effect.gen(function*() {
        const inside = sql.withTransaction(
          Effect.andThen(jobs.submit({ type: "SavepointEvents", runAt }), Effect.fail(rolledBack))
        )
        yield* Effect.ignore(inside)
        yield* jobs.submit({ type: "SavepointEvents", runAt, queue: Small })
      }))
      assert.strictEqual((yield* told).length, 1)
    }))

  it.effect("a dedupe key held by another open transaction costs the caller the submission, not the transaction", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* SqlClient
      const stops = yield* makeStops
      const runAt = yield* tomorrow
      const submit = jobs.submit({ type: "Busy", dedupeKey: "busy", runAt })
      const holder = yield* Effect.forkScoped(sql.withTransaction(Effect.tap(submit, () => stops.stop("held"))))
      yield* stops.arrived("held")
      const outcome = yield* sql.withTransaction(Effect.gen(function*() {
        const error = yield* failureOf(submit)
        const rows = yield* sql<{ one: number }>`select 1 as one`
        return { error, rows }
      }))
      assert.strictEqual(outcome.error.reason._tag, "DedupeKeyBusy")
      assert.isTrue(outcome.error.isRetryable)
      assert.deepStrictEqual(outcome.rows, [{ one: 1 }])
      yield* stops.releaseAll
      const held = yield* Fiber.join(holder)
      assert.strictEqual(yield* submit, held)
    }))

  // ------------------------------------------------------------------------------------------------ status

  it.effect("status tells the whole life of a job: every attempt with its times, runner, trace and error, and who replayed it", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      let runs = 0
      yield* register(
        "Flaky",
        () => Effect.suspend(() => ++runs < 3 ? Effect.fail({ run: runs }) : Effect.succeed({ run: runs })),
        {
          retry: RetryPolicy.delays([1])
        }
      )
      const jobId = yield* jobs.submit({ type: "Flaky", payload: 7, priority: 80, dedupeKey: "flaky" }).pipe(
        RequestContext.provide({ userId: "ada", requestId: "r1" }),
        Effect.withSpan("outer")
      )
      yield* untilState(jobId, "failed")
      yield* RequestContext.provide(jobs.replayJob(jobId), { userId: "bob" })
      assert.deepStrictEqual(yield* jobs.await(jobId), { run: 3 })
      const status = yield* jobs.status(jobId)

      const { attempts, crashes, endedAt, failure, priority, queue, request, result, state, submittedAt, type } = status
      assert.deepStrictEqual({ attempts, crashes, queue, result, state, type }, {
        attempts: 1,
        crashes: 0,
        queue: "default",
        result: { run: 3 },
        state: "completed",
        type: "Flaky"
      })
      assert.isUndefined(failure)
      assert.include(["critical", undefined], priority)
      assert.deepInclude(request, { userId: "ada", requestId: "r1" })
      assert.isDefined(request.trace)

      assert.deepStrictEqual(
        status.history.map(({ attempt, by, move, to }) => ({ move, to, attempt, by })),
        [
          { move: "submitted", to: "queued", attempt: undefined, by: undefined },
          { move: "started", to: "running", attempt: 1, by: undefined },
          { move: "retried", to: "retrying", attempt: 1, by: undefined },
          { move: "started", to: "running", attempt: 2, by: undefined },
          { move: "dead-lettered", to: "failed", attempt: 2, by: undefined },
          { move: "replayed", to: "queued", attempt: undefined, by: "bob" },
          { move: "started", to: "running", attempt: 1, by: undefined },
          { move: "completed", to: "completed", attempt: 1, by: undefined }
        ]
      )
      const times = status.history.map(({ at }) => at)
      assert.deepStrictEqual(times, times.toSorted((left, right) => left - right))
      assert.strictEqual(times[0], submittedAt)
      assert.isAtLeast(endedAt ?? 0, times.at(-1) ?? 0)
      for (const move of status.history.filter(({ attempt }) => attempt !== undefined)) {
        assert.strictEqual(move.runner, "millrace:1")
        assert.strictEqual(move.traceId, request.trace?.traceId)
        assert.match(move.spanId ?? "", /^[0-9a-f]{16}$/)
      }
      const failures = status.history.flatMap(({ failure }) => failure === undefined ? [] : [failure.error])
      assert.deepStrictEqual(failures, [{ run: 1 }, { run: 2 }])
    }))

  it.effect("status types the result and the error by the definition", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const good = yield* jobs.submit(Greet.request({ name: "Gus" }))
      yield* jobs.await(good, Greet)
      const completed = yield* jobs.status(good, Greet)
      assert.deepStrictEqual(completed.result, { greeting: "Hello, Gus", at: epoch })
      assert.isUndefined(completed.error)
      const bad = yield* jobs.submit(Greet.request({ name: "nobody" }))
      yield* untilState(bad, "failed")
      const failed = yield* jobs.status(bad, Greet)
      assert.isUndefined(failed.result)
      assert.deepStrictEqual(failed.error, new Refused({ why: "no such person" }))
      const { class: errorClass, tag } = failed.failure ?? { class: undefined, tag: undefined }
      assert.deepStrictEqual({ errorClass, tag }, { errorClass: "Business", tag: "Refused" })
    }))

  it.effect("status of a running job shows since when it runs, its attempt and its latest progress", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      yield* register("Slow", () =>
        Effect.gen(function*() {
          const { progress } = yield* CurrentJob.CurrentJob
          yield* progress(0.25, "a quarter")
          yield* progress(7, "too much")
          yield* stops.stop("half way")
          yield* progress(Number.NaN)
          yield* stops.stop("again")
        }))
      const jobId = yield* jobs.submit({ type: "Slow" })
      yield* stops.arrived("half way")
      const running = yield* jobs.status(jobId)
      assert.strictEqual(running.state, "running")
      assert.strictEqual(running.attempts, 0)
      assert.deepStrictEqual(running.progress, { fraction: 1, message: "too much" })
      assert.isAtLeast(running.startedAt ?? 0, running.submittedAt)
      assert.deepInclude(running.history.at(-1), { move: "started", to: "running", attempt: 1 })
      yield* stops.release("half way")
      yield* stops.arrived("again")
      assert.deepStrictEqual((yield* jobs.status(jobId)).progress, { fraction: 0, message: undefined })
      yield* stops.releaseAll
      yield* jobs.await(jobId)
      const ended = yield* jobs.status(jobId)
      assert.deepStrictEqual({ progress: ended.progress, startedAt: ended.startedAt }, {
        progress: undefined,
        startedAt: undefined
      })
    }))

  it.effect("a job that waits while others run is queued, not running", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      yield* register("Hold", (payload) => stops.stop(String(payload)))
      const { jobIds } = yield* jobs.submit(
        Array.from({ length: 8 }, (_, payload) => ({ type: "Hold", payload, queue: Small }))
      )
      yield* Effect.forEach([0, 1, 2, 3, 4], (n) => stops.arrived(String(n)))
      const states = yield* Effect.forEach(jobIds, (id) => Effect.map(jobs.status(id), ({ state }) => state))
      assert.deepStrictEqual(states, [...Array.from({ length: 5 }, () => "running"), "queued", "queued", "queued"])
      yield* stops.releaseAll
      yield* Effect.forEach(jobIds, (id) => jobs.await(id))
    }))

  it.effect("an id that was never stored is not found", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const jobId = newId()
      assert.deepStrictEqual(yield* failureOf(jobs.status(jobId)), new JobNotFound({ jobId }))
      assert.deepStrictEqual(yield* failureOf(jobs.await(jobId)), new JobNotFound({ jobId }))
      assert.deepStrictEqual(yield* failureOf(jobs.cancel(jobId)), new JobNotFound({ jobId }))
      assert.deepStrictEqual(yield* failureOf(jobs.replayJob(jobId)), new DeadLetterNotFound({ jobId }))
    }))

  it.effect("a text that is no id at all is not found, and is no defect", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const jobId = "not-an-id" as JobId
      assert.deepStrictEqual(yield* failureOf(jobs.status(jobId)), new JobNotFound({ jobId }))
    }))

  // ------------------------------------------------------------------------------------------------ await

  it.effect("await gives the typed result, also long after the end", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const jobId = yield* jobs.submit(Greet.request({ name: "Hal" }))
      const waiting = yield* Effect.forkScoped(jobs.await(jobId, Greet))
      assert.deepStrictEqual(yield* Fiber.join(waiting), { greeting: "Hello, Hal", at: epoch })
      assert.deepStrictEqual(yield* jobs.await(jobId, Greet), { greeting: "Hello, Hal", at: epoch })
    }))

  it.effect("await fails with the typed error, or with JobUnsuccessful where no definition is given", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const jobId = yield* jobs.submit(Greet.request({ name: "nobody" }))
      assert.deepStrictEqual(yield* failureOf(jobs.await(jobId, Greet)), new Refused({ why: "no such person" }))
      const untyped = yield* failureOf(jobs.await(jobId))
      assert.instanceOf(untyped, JobUnsuccessful)
      assert.deepInclude(untyped, { jobId, jobState: "failed", errorTag: "Refused" })
    }))

  it.effect("await of a job that died outside its schema is JobUnsuccessful, also with its definition", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      yield* register("Dies", () => Effect.die(new Error("boom")))
      const jobId = yield* jobs.submit({ type: "Dies" })
      const error = yield* failureOf(jobs.await(jobId, Greet))
      assert.instanceOf(error, JobUnsuccessful)
      assert.deepInclude(error, { jobState: "failed", errorMessage: "boom" })
    }))

  it.effect("await of a job that is cancelled meanwhile ends", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const jobId = yield* jobs.submit({ type: "never", runAt: yield* tomorrow })
      const waiting = yield* Effect.forkScoped(failureOf(jobs.await(jobId)))
      yield* jobs.cancel(jobId)
      assert.deepInclude(yield* Fiber.join(waiting), { _tag: "JobUnsuccessful", jobState: "cancelled" })
    }))

  // ------------------------------------------------------------------------------------------------ cancel

  it.effect("cancel of a queued job: it never runs, and history says who did it", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      const ran: Array<unknown> = []
      yield* register("Queued", (payload) =>
        Effect.andThen(Effect.sync(() => ran.push(payload)), stops.stop(String(payload))))
      const { jobIds } = yield* jobs.submit(
        Array.from({ length: 7 }, (_, payload) => ({ type: "Queued", payload, queue: Small }))
      )
      yield* Effect.forEach([0, 1, 2, 3, 4], (n) =>
        stops.arrived(String(n)))
      const [cancelled, kept] = jobIds.slice(5)
      yield* RequestContext.provide(jobs.cancel(cancelled!), { userId: "carol" })
      const status = yield* jobs.status(cancelled!)
      assert.deepInclude(status, { state: "cancelled", attempts: 0 })
      assert.deepInclude(status.history.at(-1), { move: "cancelled", to: "cancelled", by: "carol" })
      yield* stops.releaseAll
      yield* jobs.await(kept!)
      assert.sameMembers(ran, [0, 1, 2, 3, 4, 6])
    }))

  it.effect("cancel of scheduled and retrying jobs", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      yield* register("FailsFirst", () => Effect.fail("no"), { retry: RetryPolicy.fixed("1 hour", { maxAttempts: 2 }) })
      const scheduled = yield* jobs.submit({ type: "FailsFirst", delay: "1 hour" })
      const retrying = yield* jobs.submit({ type: "FailsFirst" })
      yield* untilState(retrying, "retrying")
      for (const jobId of [scheduled, retrying]) {
        yield* jobs.cancel(jobId)
        assert.strictEqual((yield* jobs.status(jobId)).state, "cancelled")
      }
    }))

  it.effect("cancel of a running job interrupts it, rolls its writes back and counts no attempt", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* SqlClient
      const stops = yield* makeStops
      const ends: Array<string> = []
      yield* sql`create table cancelled (name text)`
      yield* register("Running", () =>
        Effect.gen(function*() {
          yield* sql`insert into cancelled values ('written')`
          yield* stops.stop("written")
        }).pipe(Effect.onExit((exit) => Effect.sync(() => ends.push(exit._tag)))))
      const jobId = yield* jobs.submit({ type: "Running", dedupeKey: "running" })
      yield* stops.arrived("written")
      yield* RequestContext.provide(jobs.cancel(jobId), { userId: "dora" })
      assert.deepStrictEqual(ends, ["Failure"])
      assert.deepStrictEqual(yield* sql`select * from cancelled`, [])
      const status = yield* jobs.status(jobId)
      assert.deepInclude(status, { state: "cancelled", attempts: 0 })
      assert.deepInclude(status.history.at(-1), { move: "cancelled", by: "dora", attempt: 1 })
      assert.notStrictEqual(yield* jobs.submit({ type: "Running", dedupeKey: "running", delay: "1 day" }), jobId)
    }))

  it.effect("cancel of a job that has ended fails with its state", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const completed = yield* jobs.submit(Greet.request({ name: "Ian" }))
      yield* jobs.await(completed)
      assert.deepStrictEqual(
        yield* failureOf(jobs.cancel(completed)),
        new JobAlreadyFinal({ jobId: completed, jobState: "completed" })
      )
      const failed = yield* jobs.submit(Greet.request({ name: "nobody" }))
      yield* untilState(failed, "failed")
      assert.deepStrictEqual(
        yield* failureOf(jobs.cancel(failed)),
        new JobAlreadyFinal({ jobId: failed, jobState: "failed" })
      )
    }))

  it.effect("of two cancellations at the same time one succeeds, and the other says that the job is cancelled", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      yield* register("CancelledTwice", () => stops.stop("running"))
      const running = yield* jobs.submit({ type: "CancelledTwice" })
      const scheduled = yield* jobs.submit({ type: "CancelledTwice", delay: "1 day" })
      yield* stops.arrived("running")
      for (const jobId of [scheduled, running]) {
        const exits = yield* Effect.all([Effect.exit(jobs.cancel(jobId)), Effect.exit(jobs.cancel(jobId))], {
          concurrency: 2
        })
        for (const exit of exits.filter(Exit.isFailure)) {
          assert.deepStrictEqual(
            Exit.findErrorOption(exit),
            Option.some(new JobAlreadyFinal({ jobId, jobState: "cancelled" }))
          )
        }
        assert.isAbove(exits.filter(Exit.isSuccess).length, 0)
        assert.strictEqual((yield* jobs.status(jobId)).state, "cancelled")
      }
    }))

  it.effect("a job that its handler discards is cancelled, and no dead letter", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      yield* register("Discards", () => Effect.fail(new Discard({ because: "not needed any more" })))
      const jobId = yield* jobs.submit({ type: "Discards" })
      assert.deepInclude(yield* failureOf(jobs.await(jobId)), { jobState: "cancelled" })
      const { history } = yield* jobs.status(jobId)
      assert.strictEqual(history.at(-1)?.failure?.message, "not needed any more")
    }))

  // ------------------------------------------------------------------------------------------------ replay

  /** A type that fails until it is told to succeed. */
  const failing = Effect.fnUntraced(function*(type: string) {
    const mode = { isGood: false }
    yield* register(type, () => Effect.suspend(() => mode.isGood ? Effect.succeed("good") : Effect.fail("bad")))
    return mode
  })

  it.effect("replayJob runs the dead letter again under the same id, its attempts counted anew", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const mode = yield* failing("Replayed")
      const { batchId, jobIds: [jobId] } = yield* jobs.submit([{ type: "Replayed", payload: 1 }])
      yield* untilState(jobId!, "failed")
      yield* jobs.replayJob(jobId!)
      // It fails again, and can be replayed again.
      yield* until(Effect.map(jobs.status(jobId!), ({ history, state }) => state === "failed" && history.length === 6))
      mode.isGood = true
      yield* jobs.replayJob(jobId!)
      assert.strictEqual(yield* jobs.await(jobId!), "good")
      const status = yield* jobs.status(jobId!)
      assert.deepInclude(status, { attempts: 1, batchId })
      assert.deepStrictEqual(status.history.map(({ move }) => move), [
        "submitted",
        "started",
        "dead-lettered",
        "replayed",
        "started",
        "dead-lettered",
        "replayed",
        "started",
        "completed"
      ])
    }))

  it.effect("replayJob called by many at the same time replays once", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const mode = yield* failing("ReplayedOnce")
      const jobId = yield* jobs.submit({ type: "ReplayedOnce" })
      yield* untilState(jobId, "failed")
      mode.isGood = true
      const exits = yield* Effect.forEach(Array.from({ length: 10 }), () => Effect.exit(jobs.replayJob(jobId)), {
        concurrency: 10
      })
      assert.strictEqual(exits.filter(Exit.isSuccess).length, 1)
      for (const exit of exits.filter(Exit.isFailure)) {
        assert.strictEqual(
          Exit.findErrorOption(exit).pipe((error) => error._tag === "Some" ? error.value._tag : ""),
          "DeadLetterNotFound"
        )
      }
      yield* jobs.await(jobId)
      const { history } = yield* jobs.status(jobId)
      assert.strictEqual(history.filter(({ move }) => move === "replayed").length, 1)
    }))

  it.effect("replayJob of a job that is no dead letter fails and names its state", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const completed = yield* jobs.submit(Greet.request({ name: "Jim" }))
      yield* jobs.await(completed)
      const scheduled = yield* jobs.submit({ type: "T", delay: "1 day" })
      for (const [jobId, jobState] of [[completed, "completed"], [scheduled, "scheduled"]] as const) {
        const error = yield* failureOf(jobs.replayJob(jobId))
        assert.deepStrictEqual(error, new DeadLetterNotFound({ jobId, jobState }))
        assert.include(error.message, `is ${jobState}`)
      }
    }))

  it.effect("replayJob of a running job says that it is running", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      yield* register("NotDead", () => stops.stop("running"))
      const jobId = yield* jobs.submit({ type: "NotDead" })
      yield* stops.arrived("running")
      assert.deepStrictEqual(
        yield* failureOf(jobs.replayJob(jobId)),
        new DeadLetterNotFound({ jobId, jobState: "running" })
      )
    }))

  it.effect("replayJob of a dead letter whose dedupe key is held by a live job fails, and it can be replayed later", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const mode = yield* failing("Keyed")
      const dead = yield* jobs.submit({ type: "Keyed", dedupeKey: "keyed" })
      yield* untilState(dead, "failed")
      const live = yield* jobs.submit({ type: "Keyed", dedupeKey: "keyed", delay: "1 day" })
      const error = yield* failureOf(jobs.replayJob(dead))
      assert.deepStrictEqual(error, new DedupeKeyTaken({ jobId: dead }))
      assert.isTrue(error.isRetryable)
      assert.strictEqual((yield* jobs.status(dead)).state, "failed")
      yield* jobs.cancel(live)
      mode.isGood = true
      yield* jobs.replayJob(dead)
      assert.strictEqual(yield* jobs.await(dead), "good")
    }))

  it.effect("replayJob inside a transaction of the caller's that rolls back has happened all the same, and its owner hears of it", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* SqlClient
      const mode = yield* failing("ReplayedInside")
      const jobId = yield* jobs.submit({ type: "ReplayedInside" })
      yield* untilState(jobId, "failed")
      mode.isGood = true
      const { heard: told } = yield* listen({ jobId }, ({ _tag }) => _tag === "JobCompleted")
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* sql`select 1`
        yield* jobs.replayJob(jobId)
        return yield* Effect.fail(rolledBack)
      })).pipe(Effect.ignore)
      assert.deepStrictEqual((yield* told).map(({ _tag }) => _tag), ["JobReplayed", "JobStarted", "JobCompleted"])
    }))

  // ------------------------------------------------------------------------------------------------ tenants (guarantee 7)

  it.effect("another tenant's job is not found: not by status, await, cancel or replayJob", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const as = (tenantId: string) => RequestContext.provide({ tenantId, userId: "x" })
      yield* register("Theirs", () => Effect.fail("bad"))
      const scheduled = yield* as("acme")(jobs.submit({ type: "Theirs", delay: "1 day" }))
      const dead = yield* as("acme")(jobs.submit({ type: "Theirs" }))
      yield* untilState(dead, "failed")
      for (const other of ["globex", "", "=", "@acme", "ACME"]) {
        for (const jobId of [scheduled, dead]) {
          const notFound = new JobNotFound({ jobId })
          assert.deepStrictEqual(yield* failureOf(as(other)(jobs.status(jobId))), notFound)
          assert.deepStrictEqual(yield* failureOf(as(other)(jobs.await(jobId))), notFound)
          assert.deepStrictEqual(yield* failureOf(as(other)(jobs.cancel(jobId))), notFound)
          assert.deepStrictEqual(yield* failureOf(as(other)(jobs.replayJob(jobId))), new DeadLetterNotFound({ jobId }))
        }
      }
      // Their own tenant and the system can.
      assert.strictEqual((yield* as("acme")(jobs.status(scheduled))).state, "scheduled")
      assert.strictEqual((yield* jobs.status(dead)).state, "failed")
      yield* as("acme")(jobs.cancel(scheduled))
      yield* jobs.replayJob(dead)
    }))

  it.effect("a job of the system is not found by a tenant", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const jobId = yield* jobs.submit({ type: "T", delay: "1 day" })
      assert.deepStrictEqual(
        yield* failureOf(RequestContext.provide(jobs.status(jobId), { tenantId: "acme" })),
        new JobNotFound({ jobId })
      )
    }))

  // ------------------------------------------------------------------------------------------------ times

  it.effect("runAt takes a DateTime, a Date or milliseconds; a time that has passed is now", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const due = yield* tomorrow
      const millis = DateTime.toEpochMillis(due)
      for (const runAt of [due, new Date(millis), millis]) {
        const jobId = yield* jobs.submit({ type: "T", runAt })
        const { dueAt, history, state } = yield* jobs.status(jobId)
        assert.deepStrictEqual({ dueAt, state }, { dueAt: millis, state: "scheduled" })
        assert.deepInclude(history[0], { move: "submitted", to: "scheduled", dueAt: millis })
      }
      const past = yield* jobs.submit(Greet.request({ name: "Kim" }, { runAt: 1 }))
      yield* jobs.await(past, Greet)
      const { history: [submitted] } = yield* jobs.status(past)
      assert.deepInclude(submitted, { to: "queued" })
    }))

  it.effect("a delayed job runs when it is due, not before", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const jobId = yield* jobs.submit(Greet.request({ name: "Lea" }, { delay: "20 millis" }))
      yield* jobs.await(jobId, Greet)
      const { history, submittedAt } = yield* jobs.status(jobId)
      const started = history.find(({ move }) => move === "started")
      assert.isAtLeast((started?.at ?? 0) - submittedAt, 20)
    }))

  it.effect("a job that was not started in time expires and never runs", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      const ran: Array<unknown> = []
      yield* register("Expires", (payload) =>
        Effect.andThen(Effect.sync(() => ran.push(payload)), stops.stop(String(payload))))
      yield* jobs.submit(Array.from({ length: 5 }, (_, payload) => ({ type: "Expires", payload, queue: Small })))
      yield* Effect.forEach([0, 1, 2, 3, 4], (n) =>
        stops.arrived(String(n)))
      const jobId = yield* jobs.submit({ type: "Expires", payload: 5, queue: Small, expiresIn: 0 })
      yield* stops.releaseAll
      assert.deepInclude(yield* failureOf(jobs.await(jobId)), { jobState: "expired" })
      assert.sameMembers(ran, [0, 1, 2, 3, 4])
      const { history } = yield* jobs.status(jobId)
      assert.deepStrictEqual(history.map(({ move }) => move), ["submitted", "expired"])
    }))
})

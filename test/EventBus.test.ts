import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as CurrentJob from "../src/CurrentJob.ts"
import * as EventBus from "../src/EventBus.ts"
import * as AwaitEnd from "../src/internal/awaitEnd.ts"
import * as JobEvent from "../src/JobEvent.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import type { JobId } from "../src/JobId.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Jobs from "../src/Jobs.ts"
import { JobStore } from "../src/JobStore.ts"
import * as MemoryJobStore from "../src/MemoryJobStore.ts"
import * as PgJobStore from "../src/PgJobStore.ts"
import * as Postgres from "../src/Postgres.ts"
import * as RequestContext from "../src/RequestContext.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { databaseUrl, TestDatabase } from "./utils/database.ts"
import { layerRecordingBus, Recorded } from "./utils/recordingBus.ts"
import { failureOf, layerRuntime, makeStops, until, untilState } from "./utils/runtime.ts"
import { failure, newId } from "./utils/storeFixture.ts"

const completed = (
  rest: Partial<{ jobId: JobId; type: string; queue: string; tenantId: string; attempt: number }> = {}
) => new JobEvent.JobCompleted({ jobId: newId(), type: "T", queue: "q", at: 1, attempt: 1, ...rest })

describe("the bus of one process", () => {
  it.effect("a filter passes what has all of its fields, and no filter passes everything", () =>
    Effect.gen(function*() {
      const bus = yield* EventBus.EventBus
      const jobId = newId()
      const mine = completed({ jobId, type: "A", queue: "one", tenantId: "acme" })
      const events = [
        mine,
        completed({ type: "A", queue: "one", tenantId: "globex" }),
        completed({ type: "B", queue: "one", tenantId: "acme" }),
        completed({ type: "A", queue: "two", tenantId: "acme" }),
        completed({ type: "A", queue: "one" }),
        new JobEvent.JobFailed({ jobId, type: "A", queue: "one", at: 1, attempt: 1, failure, tenantId: "acme" })
      ]
      const last = new JobEvent.JobExpired({ jobId: newId(), type: "last", queue: "last", at: 2 })
      const cases: ReadonlyArray<readonly [JobEvent.Filter | undefined, ReadonlyArray<number>]> = [
        [undefined, [0, 1, 2, 3, 4, 5]],
        [{}, [0, 1, 2, 3, 4, 5]],
        [{ jobId }, [0, 5]],
        [{ type: "A" }, [0, 1, 3, 4, 5]],
        [{ queue: "one" }, [0, 1, 2, 4, 5]],
        [{ tenantId: "acme" }, [0, 2, 3, 5]],
        [{ tags: ["JobFailed"] }, [5]],
        [{ tags: ["JobFailed", "JobCompleted"], type: "A", queue: "one", tenantId: "acme" }, [0, 5]],
        [{ tags: [] }, []]
      ]
      const streams = yield* Effect.forEach(
        cases,
        ([filter]) => Effect.all([bus.subscribe(filter), bus.subscribe({ tags: ["JobExpired"] })])
      )
      yield* Effect.forEach([...events, last], bus.publish, { discard: true })
      for (const [index, [filter, expected]] of cases.entries()) {
        const [stream, ends] = streams[index]!
        const passed = yield* Stream.runCollect(Stream.take(stream, expected.length))
        assert.deepStrictEqual(
          passed.map((event) => events.indexOf(event as typeof mine)),
          [...expected],
          JSON.stringify(filter)
        )
        assert.deepStrictEqual(yield* Stream.runCollect(Stream.take(ends, 1)), [last])
      }
    }).pipe(Effect.provide(EventBus.layer())))

  it.effect("whoever has subscribed hears what is published right after it", () =>
    Effect.gen(function*() {
      const bus = yield* EventBus.EventBus
      const before = completed()
      const after = completed()
      yield* bus.publish(before)
      const events = yield* bus.subscribe()
      yield* bus.publish(after)
      assert.deepStrictEqual(yield* Stream.runCollect(Stream.take(events, 1)), [after])
    }).pipe(Effect.provide(EventBus.layer())))

  it.effect("a slow subscriber loses its oldest events, a fast one none, and the publisher never waits", () =>
    Effect.gen(function*() {
      const bus = yield* EventBus.EventBus
      const events = Array.from({ length: 100 }, (_, attempt) => completed({ attempt }))
      const slow = yield* bus.subscribe()
      const heard: Array<JobEvent.JobEvent> = []
      const begun = yield* Latch.make(false)
      const fast = yield* Effect.forkScoped(
        Stream.runForEach(Stream.onStart(bus.stream(), begun.open), (event) => Effect.sync(() => heard.push(event)))
      )
      yield* begun.await
      for (const event of events) {
        const count = heard.length
        yield* bus.publish(event)
        yield* Effect.repeat(Effect.yieldNow, { until: () => heard.length > count })
      }
      assert.deepStrictEqual(heard, events)
      assert.deepStrictEqual(yield* Stream.runCollect(Stream.take(slow, 8)), events.slice(-8))
      yield* Fiber.interrupt(fast)
    }).pipe(Effect.provide(EventBus.layer({ capacity: 8 }))))

  it.effect("a subscription ends with its scope", () =>
    Effect.gen(function*() {
      const bus = yield* EventBus.EventBus
      const scope = yield* Scope.make()
      const events = yield* Scope.provide(bus.subscribe(), scope)
      yield* Scope.close(scope, Exit.void)
      yield* bus.publish(completed())
      const exit = yield* Effect.exit(Stream.runCollect(events))
      assert.isTrue(Exit.isFailure(exit) || exit.value.length === 0)
    }).pipe(Effect.provide(EventBus.layer())))
})

// ------------------------------------------------------------------------------------------------ of all processes

/** What one process of several has. */
const processOf = Effect.fnUntraced(function*<E>(runtime: Layer.Layer<JobRuntime.Services, E, PgClient>) {
  const url = yield* databaseUrl
  const context = yield* Layer.build(Layer.fresh(runtime.pipe(Layer.provideMerge(Postgres.layer({ url })))))
  return {
    bus: Context.get(context, EventBus.EventBus),
    jobs: Context.get(context, Jobs.Jobs),
    store: Context.get(context, JobStore),
    sql: Context.get(context, PgClient),
    /** Runs an effect there. */
    inside: Effect.provide(context)
  }
})

/** One that works and one that only submits. */
const two = Effect.gen(function*() {
  const worker = yield* processOf(JobRuntime.layer({ gracePeriod: 0 }))
  return { worker, client: yield* processOf(JobRuntime.layerClient()) }
})

/** Waits until a process knows that another one wants to hear of this. */
const untilWanted = (bus: EventBus.EventBus["Service"], tag?: JobEvent.JobEvent["_tag"]) =>
  until(Effect.sync(() => bus.hasSubscribers?.(tag) === true))

/** Ends the sessions that listen. */
const stopListening = (sql: PgClient) =>
  sql`select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database() and query like 'LISTEN%'`

const every = ["JobSubmitted", "JobCompleted", "JobDeadLettered", "Missed"] as const

describe("the bus of all processes", () => {
  it.live("a process that only submits hears the life of a job that runs elsewhere; of a failure it hears what it was", () =>
    Effect.gen(function*() {
      const { client, worker } = yield* two
      yield* worker.inside(
        JobHandlers.register("Fails", () => Effect.fail({ _tag: "TooLong", text: "x".repeat(1_000) }), {
          retry: RetryPolicy.delays([0])
        })
      )
      const events = yield* client.bus.subscribe({ type: "Fails" })
      yield* untilWanted(worker.bus)
      const jobId = yield* RequestContext.provide(client.jobs.submit({ type: "Fails" }), { tenantId: "acme" })
      const heard = yield* Stream.runCollect(Stream.takeUntil(events, ({ _tag }) => _tag === "JobDeadLettered"))
      assert.deepStrictEqual(
        heard.map(({ _tag }) => _tag),
        ["JobSubmitted", "JobStarted", "JobFailed", "JobRetried", "JobStarted", "JobFailed", "JobDeadLettered"]
      )
      for (const event of heard) assert.deepInclude(event, { jobId, type: "Fails", queue: "default", tenantId: "acme" })
      const last = heard.at(-1)
      const told = last?._tag === "JobDeadLettered" ? last.failure : undefined
      const { failure: stored } = yield* client.jobs.status(jobId)
      assert.deepStrictEqual(told, { class: "Business", tag: "TooLong", message: stored!.message.slice(0, 200) })
      assert.isAbove(stored!.message.length, 200)
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layerDatabase)))

  it.live("await in a process that only submits is woken by the event: it need not look again for a long time", () =>
    Effect.gen(function*() {
      const { client, worker } = yield* two
      const stops = yield* makeStops
      yield* worker.inside(JobHandlers.register("Awaited", () => Effect.as(stops.stop("running"), "done")))
      const jobId = yield* client.jobs.submit({ type: "Awaited" })
      const hour = 3_600_000
      const waiting = yield* client.jobs.await(jobId).pipe(
        Effect.provideService(AwaitEnd.Pauses, { first: hour, last: hour }),
        Effect.forkScoped
      )
      yield* stops.arrived("running")
      yield* untilWanted(worker.bus, "JobCompleted")
      // Only of ends: what else happens to jobs is not even sent.
      assert.isFalse(worker.bus.hasSubscribers?.("JobStarted"))
      yield* stops.release("running")
      assert.strictEqual(yield* Fiber.join(waiting), "done")
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layerDatabase)))

  it.live("guarantee 8: of a submission that is rolled back no process hears", () =>
    Effect.gen(function*() {
      const { client, worker } = yield* two
      const events = yield* worker.bus.subscribe({ tags: ["JobSubmitted"] })
      // It listens from its first submission on.
      yield* client.jobs.submit({ type: "First", delay: "1 day" })
      yield* untilWanted(client.bus, "JobSubmitted")
      const { jobs, sql } = client
      yield* Effect.exit(
        sql.withTransaction(Effect.andThen(jobs.submit({ type: "Gone", delay: "1 day" }), Effect.fail("no")))
      )
      const stays = yield* sql.withTransaction(jobs.submit({ type: "Stays", delay: "1 day" }))
      const heard = yield* Stream.runCollect(Stream.takeUntil(events, ({ jobId }) => jobId === stays))
      assert.deepStrictEqual(heard.map(({ type }) => type).filter((type) => type !== "First"), ["Stays"])
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layerDatabase)))

  it.live("where nobody elsewhere wants them, events are not sent", () =>
    Effect.gen(function*() {
      const { client, worker } = yield* two
      yield* worker.inside(JobHandlers.register("Unheard", () => Effect.void))
      const payloads = yield* client.sql.listen("millrace_wake")
      const jobId = yield* client.jobs.submit({ type: "Unheard" })
      yield* until(Effect.map(client.jobs.status(jobId), ({ state }) => state === "completed"))
      yield* client.sql`select pg_notify('millrace_wake', 'last')`
      const heard: Array<string> = []
      while (heard.at(-1) !== "last") heard.push((yield* Queue.take(payloads)).payload)
      assert.deepStrictEqual(heard.filter((payload) => payload.includes("events")), [])
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layerDatabase)))

  it.live("whose line is lost: a subscriber is told that it may have missed something, and hears what comes after", () =>
    Effect.gen(function*() {
      const { client, worker } = yield* two
      yield* worker.inside(JobHandlers.register("Heard", () => Effect.void))
      const events = yield* client.bus.subscribe({ tags: every })
      yield* untilWanted(worker.bus)
      yield* stopListening(client.sql)
      const afterwards = yield* Effect.forkScoped(
        Stream.runHead(Stream.filter(events, ({ _tag }) => _tag === "Missed"))
      )
      assert.deepStrictEqual(yield* Fiber.join(afterwards), Option.some(new JobEvent.Missed({})))
      const again = yield* client.bus.subscribe({ tags: ["JobCompleted"] })
      const jobId = yield* client.jobs.submit({ type: "Heard" })
      assert.deepInclude(Option.getOrUndefined(yield* Stream.runHead(again)), { jobId })
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layerDatabase)))

  const bus = Effect.map(
    Layer.build(Layer.fresh(EventBus.layerPostgres({ capacity: 10_000 }))),
    Context.get(EventBus.EventBus)
  )
  const publishAll = (bus: EventBus.EventBus["Service"], events: ReadonlyArray<JobEvent.JobEvent>) =>
    Effect.provideService(
      Effect.forEach(events, bus.publish, { discard: true }),
      References.PreventSchedulerYield,
      true
    )

  it.live("that is flooded: the publisher keeps the latest, and the subscriber is told how many it missed", () =>
    Effect.gen(function*() {
      const [here, there] = [yield* bus, yield* bus]
      const events = yield* there.subscribe({ tags: ["JobCompleted", "Missed"] })
      yield* untilWanted(here)
      const flood = Array.from({ length: 5_000 }, (_, attempt) => completed({ attempt }))
      yield* publishAll(here, flood)
      const heard = yield* Stream.runCollect(Stream.take(events, 4_097))
      assert.deepStrictEqual(heard, [new JobEvent.Missed({ count: 904 }), ...flood.slice(904)])
    }).pipe(Effect.scoped, Effect.provide(MemoryJobStore.layer)))

  it.live("what is too long to be sent is told as missed, and the others arrive", () =>
    Effect.gen(function*() {
      const [here, there] = [yield* bus, yield* bus]
      const events = yield* there.subscribe({ tags: ["JobCompleted", "Missed"] })
      yield* untilWanted(here)
      const [first, last] = [completed(), completed()]
      yield* publishAll(here, [first, completed({ type: "x".repeat(8_000) }), last])
      const heard = yield* Stream.runCollect(Stream.take(events, 3))
      assert.deepStrictEqual(heard, [new JobEvent.Missed({ count: 1 }), first, last])
    }).pipe(Effect.scoped, Effect.provide(PgJobStore.layer().pipe(Layer.provide(TestDatabase.layer)))))

  it.live("a process that came later hears at once who wants what, and who wants more says so at once", () =>
    Effect.gen(function*() {
      const there = yield* bus
      const scope = yield* Scope.make()
      yield* Effect.asVoid(Scope.provide(there.subscribe({ tags: ["JobExpired"] }), scope))
      const here = yield* bus
      // An interest is said again every ten seconds, and before that to who asks.
      yield* Effect.timeout(untilWanted(here, "JobExpired"), "5 seconds")
      assert.isFalse(here.hasSubscribers?.("JobStarted"))
      yield* Scope.close(scope, Exit.void)
      yield* Effect.timeout(Effect.andThen(there.subscribe(), untilWanted(here, "JobStarted")), "5 seconds")
    }).pipe(Effect.scoped, Effect.provide(MemoryJobStore.layer)))
})

const Narrow = JobQueue.make("narrow", { concurrency: 1 })

// The same layer value, so that runtime and test share one bus.
const runtime = layerRuntime({ queues: [Narrow], eventBus: layerRecordingBus }).pipe(
  Layer.provideMerge(layerRecordingBus)
)

layer(runtime, { excludeTestServices: true })("a bus of one's own", (it) => {
  /** What was told of one job. */
  const told = (jobId: JobId) => Effect.map(Recorded, ({ events }) => events.filter((event) => event.jobId === jobId))

  /** Publishing follows the commit: wait for the last one. */
  const untilTold = Effect.fnUntraced(function*(jobId: JobId, last: JobEvent.JobEvent["_tag"]) {
    yield* until(Effect.map(told(jobId), (events) => events.at(-1)?._tag === last))
    return yield* told(jobId)
  })

  const tags = (events: ReadonlyArray<JobEvent.JobEvent>) => events.map(({ _tag }) => _tag)

  it.effect("hears the life of a job in order: failing, retried, dead, replayed, completed", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      let runs = 0
      yield* JobHandlers.register("Life", () =>
        Effect.gen(function*() {
          const { progress } = yield* CurrentJob.CurrentJob
          yield* progress(0.5, "half")
          if (++runs < 3) return yield* Effect.fail({ _tag: "NotYet", run: runs })
        }), { retry: RetryPolicy.delays([0]) })
      const { batchId, jobIds: [id] } = yield* RequestContext.provide(
        jobs.submit([{ type: "Life", delay: "1 milli" }]),
        { tenantId: "acme", userId: "ada" }
      )
      const jobId = id!
      yield* untilTold(jobId, "JobDeadLettered")
      yield* RequestContext.provide(jobs.replayJob(jobId), { tenantId: "acme", userId: "bob" })
      const events = yield* untilTold(jobId, "JobCompleted")
      assert.deepStrictEqual(tags(events), [
        "JobSubmitted",
        "JobStarted",
        "JobProgressed",
        "JobFailed",
        "JobRetried",
        "JobStarted",
        "JobProgressed",
        "JobFailed",
        "JobDeadLettered",
        "JobReplayed",
        "JobStarted",
        "JobProgressed",
        "JobCompleted"
      ])
      for (const event of events) {
        assert.deepInclude(event, { jobId, type: "Life", queue: "default", tenantId: "acme" })
        assert.isTrue(Number.isFinite(event.at))
      }
      const times = events.map(({ at }) => at)
      assert.deepStrictEqual(times, times.toSorted((left, right) => left - right))
      const [submitted, , progressed, failed, retried] = events
      assert.deepInclude(submitted ?? {}, { batchId })
      assert.property(submitted, "dueAt")
      assert.deepInclude(progressed ?? {}, { attempt: 1, progress: 0.5, message: "half" })
      assert.deepInclude(failed ?? {}, { attempt: 1 })
      assert.property(retried, "dueAt")
      assert.deepInclude(events[9], { by: "bob" })
      const attempts = events.flatMap((event) => "attempt" in event ? [event.attempt] : [])
      assert.deepStrictEqual(attempts, [1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1])
      // Each one can be sent as it is defined.
      for (const event of events) assert.isTrue(JobEvent.matches({ tags: [event._tag] })(event))
    }))

  it.effect("hears of jobs cancelled while scheduled, waiting and running, once each and by whom", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      yield* JobHandlers.register("Cancelled", () => stops.stop("running"))
      const running = yield* jobs.submit({ type: "Cancelled", queue: Narrow })
      yield* stops.arrived("running")
      const waiting = yield* jobs.submit({ type: "Cancelled", queue: Narrow })
      const scheduled = yield* jobs.submit({ type: "Cancelled", queue: Narrow, delay: "1 day" })
      for (const jobId of [waiting, scheduled, running]) {
        yield* RequestContext.provide(jobs.cancel(jobId), { userId: "carol" })
        const events = yield* untilTold(jobId, "JobCancelled")
        assert.deepStrictEqual(
          tags(events),
          jobId === running ? ["JobSubmitted", "JobStarted", "JobCancelled"] : ["JobSubmitted", "JobCancelled"]
        )
        assert.deepInclude(events.at(-1), { by: "carol" })
      }
    }))

  it.effect("hears that a job expired", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      yield* JobHandlers.register("Expired", () => Effect.void)
      const jobId = yield* jobs.submit({ type: "Expired", expiresIn: 0 })
      assert.deepStrictEqual(tags(yield* untilTold(jobId, "JobExpired")), ["JobSubmitted", "JobExpired"])
    }))

  it.effect("hears of a duplicate only once: the first submission", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const request = { type: "Twice", dedupeKey: "twice", delay: "1 day" } as const
      const { jobIds } = yield* jobs.submit([request, request])
      yield* jobs.submit(request)
      assert.deepStrictEqual(tags(yield* told(jobIds[0]!)), ["JobSubmitted"])
    }))

  it.effect("that delivers nothing does not keep anybody waiting: await looks for itself", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      yield* JobHandlers.register("Silent", () => Effect.as(stops.stop("running"), "done"))
      const jobId = yield* jobs.submit({ type: "Silent" })
      const waiting = yield* Effect.forkScoped(jobs.await(jobId))
      yield* stops.arrived("running")
      yield* stops.releaseAll
      assert.strictEqual(yield* Fiber.join(waiting), "done")
    }))
})

layer(layerRuntime({ eventBus: EventBus.layer({ capacity: 8 }) }), { excludeTestServices: true })(
  "a small bus",
  (it) => {
    it.effect("a subscriber that does not read holds up no job, and finds the latest events when it does", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const bus = yield* EventBus.EventBus
        yield* JobHandlers.register("Busy", () => Effect.void)
        const idle = yield* bus.subscribe()
        const { jobIds } = yield* jobs.submit(Array.from({ length: 200 }, () => ({ type: "Busy" })))
        yield* Effect.forEach(jobIds, (jobId) => untilState(jobId, "completed"))
        const latest = yield* Stream.runCollect(Stream.take(idle, 8))
        assert.strictEqual(latest.length, 8)
        assert.isTrue(latest.every(({ _tag }) => _tag !== "JobSubmitted"))
      }))

    it.effect("a bus whose subscribers fell behind still tells the end of a job that is awaited", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        yield* JobHandlers.register(
          "Awaited",
          (payload) => payload === "bad" ? Effect.fail("bad") : Effect.succeed(payload),
          {
            retry: RetryPolicy.none
          }
        )
        const { jobIds } = yield* jobs.submit(
          Array.from({ length: 50 }, (_, n) => ({ type: "Awaited", payload: n % 5 === 0 ? "bad" : n }))
        )
        const results = yield* Effect.forEach(
          jobIds,
          (id, n) => n % 5 === 0 ? failureOf(jobs.await(id)) : jobs.await(id),
          {
            concurrency: "unbounded"
          }
        )
        assert.strictEqual(results.length, 50)
      }))
  }
)

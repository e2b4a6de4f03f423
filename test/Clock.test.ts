/**
 * Time under `TestClock`: every due time, delay and timeout of the runtime follows the Clock that it was built with; its locks do not.
 */
import { assert, layer } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { SqlClient } from "effect/sql/SqlClient"
import * as TestClock from "effect/testing/TestClock"
import { Snooze } from "../src/JobError.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import type { JobId } from "../src/JobId.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as Jobs from "../src/Jobs.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { failureOf, layerRuntime, makeStops, until, untilState } from "./utils/runtime.ts"
import { day, t0 } from "./utils/storeFixture.ts"

const One = JobQueue.make("one", { concurrency: 1 })

/** The clock starts at a time far from any real one. */
const runtime = layerRuntime({ queues: [One] }).pipe(Layer.provideMerge(Layer.effectDiscard(TestClock.setTime(t0))))

/** A job that is due at `dueAt` and has run: whatever was due before had its chance. */
const herald = Effect.fnUntraced(function*(dueAt: number) {
  const jobs = yield* Jobs.Jobs
  yield* jobs.await(yield* jobs.submit({ type: "Herald", runAt: dueAt }))
})

/** The states of jobs, in order. */
const states = Effect.fnUntraced(function*(jobIds: ReadonlyArray<JobId>) {
  const jobs = yield* Jobs.Jobs
  return yield* Effect.forEach(jobIds, (id) => Effect.map(jobs.status(id), ({ state }) => state))
})

layer(runtime)("under a test clock", (it) => {
  it.effect("a week of retries runs at once, each attempt exactly when it is due", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const policy = RetryPolicy.exponential({
        maxAttempts: 25,
        base: "1 minute",
        factor: 2,
        cap: "12 hours",
        jitter: 0
      })
      yield* JobHandlers.register("Week", () => Effect.fail("again"), { retry: policy })
      const jobId = yield* jobs.submit({ type: "Week" })
      const delays: Array<number> = []
      for (let attempt = 1; attempt < 25; attempt++) {
        const { dueAt, history } = yield* untilState(jobId, "retrying")
        assert.strictEqual(history.at(-1)?.attempt, attempt)
        const now = yield* Clock.currentTimeMillis
        delays.push((dueAt ?? 0) - now)
        yield* TestClock.setTime(dueAt ?? 0)
        // Not the state before any more.
        yield* until(Effect.map(jobs.status(jobId), (status) => status.attempts > attempt))
      }
      const { attempts, endedAt, history, state, submittedAt } = yield* jobs.status(jobId)
      assert.deepStrictEqual({ attempts, state }, { attempts: 25, state: "failed" })
      const expected = Array.from({ length: 24 }, (_, index) => Math.min(60_000 * 2 ** index, 43_200_000))
      assert.deepStrictEqual(delays, expected)
      assert.isAbove((endedAt ?? 0) - submittedAt, 7 * day)
      const due = history.flatMap(({ dueAt }) => dueAt ?? [])
      const started = history.filter(({ move }) => move === "started").map(({ at }) => at)
      assert.deepStrictEqual(started, [submittedAt, ...due])
    }))

  it.effect("jobs scheduled in 14 days start when the clock gets there, and not a millisecond before", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const ran: Array<unknown> = []
      yield* JobHandlers.register("Herald", () => Effect.void)
      yield* JobHandlers.register("Fortnight", (payload) => Effect.sync(() => ran.push(payload)))
      const now = yield* Clock.currentTimeMillis
      const { jobIds } = yield* jobs.submit([
        { type: "Fortnight", payload: "delay", delay: "14 days" },
        { type: "Fortnight", payload: "runAt", runAt: now + 14 * day },
        { type: "Fortnight", payload: "date", runAt: new Date(now + 14 * day) }
      ])
      const heralded = yield* Effect.forkScoped(herald(now + 14 * day - 1))
      yield* until(
        Effect.map(
          Effect.flatMap(SqlClient, (sql) => sql`select 1 from millrace.jobs where type = 'Herald'`),
          ({ length }) => length === 1
        )
      )
      yield* TestClock.setTime(now + 14 * day - 1)
      yield* Fiber.join(heralded)
      assert.deepStrictEqual(yield* states(jobIds), ["scheduled", "scheduled", "scheduled"])
      assert.deepStrictEqual(ran, [])
      yield* TestClock.adjust(1)
      yield* Effect.forEach(jobIds, (id) => jobs.await(id))
      assert.sameMembers(ran, ["date", "delay", "runAt"])
      for (const jobId of jobIds) {
        const { history } = yield* jobs.status(jobId)
        assert.strictEqual(history.find(({ move }) => move === "started")?.at, now + 14 * day)
      }
    }))

  it.effect("a clock that jumps past several due times starts all of them", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      yield* JobHandlers.register("Jump", Effect.succeed)
      const delays = ["1 hour", "1 day", "30 days", "59 days", "5 minutes", "1 milli"] as const
      const { jobIds } = yield* jobs.submit(delays.map((delay) => ({ type: "Jump", payload: delay, delay })))
      const beyond = yield* jobs.submit({ type: "Jump", delay: "61 days" })
      yield* TestClock.adjust("60 days")
      assert.deepStrictEqual(yield* Effect.forEach(jobIds, (id) => jobs.await(id)), [...delays])
      assert.strictEqual((yield* jobs.status(beyond)).state, "scheduled")
      yield* jobs.cancel(beyond)
    }))

  it.effect("a job that becomes due earlier than the one waited for is not late", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      yield* JobHandlers.register("Earlier", Effect.succeed)
      const far = yield* jobs.submit({ type: "Earlier", delay: "10 days" })
      const near = yield* jobs.submit({ type: "Earlier", delay: "1 day" })
      yield* TestClock.adjust("1 day")
      yield* jobs.await(near)
      assert.strictEqual((yield* jobs.status(far)).state, "scheduled")
      yield* jobs.cancel(far)
    }))

  it.effect("timeouts follow the clock: a handler is interrupted when its time is over, not before", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      yield* JobHandlers.register("Hour", () => stops.stop("begun"), { timeout: "1 hour", retry: RetryPolicy.none })
      const jobId = yield* jobs.submit({ type: "Hour" })
      yield* stops.arrived("begun")
      yield* TestClock.adjust("59 minutes")
      assert.strictEqual((yield* jobs.status(jobId)).state, "running")
      yield* TestClock.adjust("1 minute")
      assert.deepInclude(yield* failureOf(jobs.await(jobId)), { jobState: "failed", errorTag: "JobTimeout" })
      const { failure, history } = yield* jobs.status(jobId)
      assert.strictEqual(failure?.class, "Timeout")
      const [started, ended] = history.slice(1)
      assert.strictEqual((ended?.at ?? 0) - (started?.at ?? 0), 3_600_000)
    }))

  it.effect("a handler's own sleep follows the clock", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      yield* JobHandlers.register("Sleeper", () => Effect.as(Effect.sleep("3 days"), "awake"))
      const jobId = yield* jobs.submit({ type: "Sleeper" })
      const awake = yield* Effect.forkScoped(jobs.await(jobId))
      // Whether it sleeps already is not to be seen from here: days go by until it has.
      yield* Effect.andThen(TestClock.adjust("1 day"), TestClock.withLive(Effect.yieldNow)).pipe(
        Effect.repeat({ until: () => awake.pollUnsafe() !== undefined })
      )
      assert.strictEqual(yield* Fiber.join(awake), "awake")
    }))

  it.effect("a job expires when its time is over before it could start; one with more time runs", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      yield* JobHandlers.register("Perishable", (payload) => Effect.as(stops.stop(String(payload)), payload))
      yield* jobs.submit({ type: "Perishable", payload: "gate", queue: One })
      yield* stops.arrived("gate")
      const { jobIds: [short, long] } = yield* jobs.submit([
        { type: "Perishable", payload: "short", queue: One, expiresIn: "1 hour" },
        { type: "Perishable", payload: "long", queue: One, expiresIn: Duration.millis(7_200_001) }
      ])
      yield* TestClock.adjust("2 hours")
      yield* stops.releaseAll
      assert.deepInclude(yield* failureOf(jobs.await(short!)), { jobState: "expired" })
      assert.strictEqual(yield* jobs.await(long!), "long")
    }))

  it.effect("a job that was started in time does not expire between its attempts", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      let runs = 0
      yield* JobHandlers.register("Started", () =>
        Effect.suspend(() => ++runs < 2 ? Effect.fail("again") : Effect.succeed("done")), {
        retry: RetryPolicy.fixed("2 hours", { maxAttempts: 2 })
      })
      const jobId = yield* jobs.submit({ type: "Started", expiresIn: "1 hour" })
      yield* untilState(jobId, "retrying")
      yield* TestClock.adjust("2 hours")
      assert.strictEqual(yield* jobs.await(jobId), "done")
    }))

  it.effect("a snoozed job comes back when it asked to, its attempts uncounted", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      let runs = 0
      yield* JobHandlers.register("Snoozer", () =>
        Effect.suspend(() =>
          ++runs < 3 ? Effect.fail(new Snooze({ delay: Duration.days(2) })) : Effect.succeed("rested")
        ))
      const jobId = yield* jobs.submit({ type: "Snoozer" })
      for (const run of [1, 2]) {
        yield* until(Effect.map(jobs.status(jobId), ({ history, state }) =>
          state === "scheduled" && history.length === 1 + 2 * run))
        yield* TestClock.adjust("2 days")
      }
      assert.strictEqual(yield* jobs.await(jobId), "rested")
      assert.strictEqual((yield* jobs.status(jobId)).attempts, 1)
    }))

  it.effect("an error's own retryAfter wins over its policy's delay", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const later = { _tag: "Later", retryAfter: 3_600_000 }
      yield* JobHandlers.register("Polite", () => Effect.fail(later), {
        retry: RetryPolicy.fixed("1 minute", { maxAttempts: 2 })
      })
      const jobId = yield* jobs.submit({ type: "Polite" })
      const { dueAt, history } = yield* untilState(jobId, "retrying")
      assert.strictEqual((dueAt ?? 0) - (history.at(-1)?.at ?? 0), 3_600_000)
      yield* jobs.cancel(jobId)
    }))

  it.effect("the cluster keeps its own time: after 100 years the queues are still owned", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      yield* TestClock.adjust("36500 days")
      yield* JobHandlers.register("Century", () => Effect.succeed("still here"))
      assert.strictEqual(yield* jobs.await(yield* jobs.submit({ type: "Century" })), "still here")
    }))
})

/**
 * What dashboards may rely on: names, attributes and values of the metrics.
 */
import { assert, layer } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Order from "effect/Order"
import * as TestClock from "effect/testing/TestClock"
import { Snooze } from "../src/JobError.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as Jobs from "../src/Jobs.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { failureOf, layerRuntime, makeStops, until, untilState } from "./utils/runtime.ts"

const Measured = JobQueue.make("measured", { concurrency: 3 })

// A registry of this file's own: the metrics are global to a process.
const runtime = layerRuntime({ queues: [Measured] }).pipe(
  Layer.provideMerge(Layer.sync(Metric.MetricRegistry, () => new Map()))
)

/** The state of the one metric of that name with exactly these attributes. */
const metric = (id: string, attributes: Readonly<Record<string, string>>) =>
  Effect.map(Metric.snapshot, (snapshots) => {
    const sorted = (value: Readonly<Record<string, string>>) =>
      Object.entries(value).map(String).toSorted(Order.String).join()
    const found = snapshots.filter((snapshot) =>
      snapshot.id === id && sorted(snapshot.attributes ?? {}) === sorted(attributes)
    )
    assert.isAtMost(found.length, 1)
    return found[0]
  })

const count = (id: string, attributes: Readonly<Record<string, string>>) =>
  Effect.map(metric(id, attributes), (found) => found?.type === "Counter" ? Number(found.state.count) : 0)

const gauge = (id: string, attributes: Readonly<Record<string, string>>) =>
  Effect.map(metric(id, attributes), (found) => found?.type === "Gauge" ? Number(found.state.value) : undefined)

layer(runtime, { excludeTestServices: true })("metrics", (it) => {
  it.effect("count what was submitted and how it ended, by type, queue and outcome", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      yield* JobHandlers.register("Counted", (payload) =>
        payload === "bad" ? Effect.fail({ _tag: "Bad" }) : Effect.void, {
        retry: RetryPolicy.delays([0])
      })
      const counted = { type: "Counted", queue: "measured" }
      const { jobIds } = yield* jobs.submit(
        ["good", "good", "good", "bad", "bad"].map((payload) => ({ type: "Counted", payload })),
        { queue: Measured }
      )
      const scheduled = yield* jobs.submit({ ...counted, delay: "1 day", dedupeKey: "counted" })
      // A duplicate is not stored.
      yield* jobs.submit({ ...counted, delay: "1 day", dedupeKey: "counted" })
      yield* jobs.cancel(scheduled)
      const late = yield* jobs.submit({ ...counted, expiresIn: 0 })
      for (const id of jobIds) {
        yield* Effect.exit(jobs.await(id))
      }
      yield* failureOf(jobs.await(late))
      assert.strictEqual(yield* count("millrace_jobs_submitted", counted), 7)
      const outcome = (name: string) =>
        count("millrace_jobs_finished", { ...counted, outcome: name })
      const outcomes = () =>
        Effect.all([outcome("completed"), outcome("failed"), outcome("cancelled"), outcome("expired")])
      // Counted right after the commit that others see.
      yield* until(Effect.map(outcomes(), (all) =>
        all.reduce((sum, one) => sum + one, 0) >= 7))
      assert.deepStrictEqual(yield* outcomes(), [3, 2, 1, 1])
      assert.strictEqual(yield* count("millrace_job_retries", { ...counted, class: "Business" }), 2)
      assert.strictEqual(yield* count("millrace_dead_letters", { ...counted, class: "Business" }), 2)
    }))

  it.effect("failures are told apart by their class", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      yield* JobHandlers.register("Classes", (payload) =>
        payload === "die"
          ? Effect.die("boom")
          : payload === "slow"
          ? Effect.never
          : Effect.fail({ errorClass: payload }), {
        retry: RetryPolicy.none,
        timeout: "20 millis"
      })
      const { jobIds } = yield* jobs.submit(
        ["die", "slow", "Permanent", "Transient"].map((payload) => ({ type: "Classes", payload }))
      )
      yield* Effect.forEach(jobIds, (id) => untilState(id, "failed"))
      for (const errorClass of ["System", "Timeout", "Permanent", "Transient"]) {
        yield* until(
          Effect.map(count("millrace_dead_letters", { type: "Classes", queue: "default", class: errorClass }), (n) =>
            n === 1)
        )
      }
    }))

  it.effect("histograms get one value for each first start and each attempt", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      yield* JobHandlers.register("Timed", (payload) => payload === "bad" ? Effect.fail("bad") : Effect.void, {
        retry: RetryPolicy.delays([0])
      })
      const { jobIds } = yield* jobs.submit(["good", "bad"].map((payload) => ({ type: "Timed", payload })))
      for (const id of jobIds) yield* Effect.exit(jobs.await(id))
      const histogram = (id: string) =>
        Effect.map(metric(id, { type: "Timed", queue: "default" }), (found) =>
          found?.type === "Histogram" ? found.state : undefined)
      yield* until(Effect.map(histogram("millrace_job_run_ms"), (state) =>
        state?.count === 3))
      const waits = yield* histogram("millrace_job_wait_ms")
      assert.strictEqual(waits?.count, 2)
      assert.isAtLeast(waits?.min ?? -1, 0)
      const runs = yield* histogram("millrace_job_run_ms")
      assert.isAtLeast(runs?.min ?? -1, 0)
    }))

  it.effect("gauges show how many run now, and fall to 0", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      yield* JobHandlers.register("InFlight", (payload) => stops.stop(String(payload)))
      const { jobIds } = yield* jobs.submit(
        Array.from({ length: 5 }, (_, payload) => ({ type: "InFlight", payload, queue: Measured }))
      )
      yield* Effect.forEach(["0", "1", "2"], stops.arrived)
      const inFlight = gauge("millrace_jobs_in_flight", { queue: "measured", partition: "0" })
      yield* until(Effect.map(inFlight, (value) => value === 3))
      yield* stops.releaseAll
      yield* Effect.forEach(jobIds, (id) => jobs.await(id))
      yield* until(Effect.map(inFlight, (value) => value === 0))
    }))

  it.effect("a lane's depth is what waits in the table, as seen by the owner from time to time", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      yield* JobHandlers.register("Deep", (payload) => stops.stop(String(payload)))
      const { jobIds } = yield* jobs.submit(
        Array.from({ length: 20 }, (_, payload) => ({ type: "Deep", payload, queue: Measured })),
        { priority: "low" }
      )
      yield* Effect.forEach(["0", "1", "2"], stops.arrived)
      const depth = (lane: string) => gauge("millrace_lane_depth", { queue: "measured", partition: "0", lane })
      yield* until(Effect.map(depth("low"), (value) => (value ?? 0) > 0))
      // Ready rows: those that wait, and those in the hands of a handler.
      assert.strictEqual(yield* depth("low"), 20)
      assert.strictEqual(yield* depth("critical"), 0)
      yield* stops.releaseAll
      yield* Effect.forEach(jobIds, (id) => jobs.await(id))
    }))
})

layer(runtime)("metrics under a test clock", (it) => {
  const waits = (type: string) =>
    Effect.map(
      metric("millrace_job_wait_ms", { type, queue: "default" }),
      (found) => found?.type === "Histogram" ? found.state : undefined
    )

  it.effect("how long a scheduled job waits is counted from when it was due, not from its submission", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      yield* JobHandlers.register("AnHourAhead", () => Effect.void)
      const jobId = yield* jobs.submit({ type: "AnHourAhead", delay: "1 hour" })
      yield* TestClock.adjust("1 hour")
      yield* jobs.await(jobId)
      assert.deepInclude(yield* waits("AnHourAhead"), { count: 1, max: 0 })
    }))

  it.effect("a job that was replayed, snoozed or tried again is not counted as waiting since its submission", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      let runs = 0
      yield* JobHandlers.register("Returns", () =>
        Effect.gen(function*() {
          runs++
          if (runs === 1) return yield* new Snooze({ delay: Duration.hours(1) })
          if (runs === 2) return yield* Effect.fail("dead")
        }), { retry: RetryPolicy.none })
      const jobId = yield* jobs.submit({ type: "Returns" })
      yield* untilState(jobId, "scheduled")
      yield* TestClock.adjust("1 hour")
      yield* untilState(jobId, "failed")
      yield* TestClock.adjust("1 day")
      yield* jobs.replayJob(jobId)
      yield* jobs.await(jobId)
      assert.deepInclude(yield* waits("Returns"), { count: 1, max: 0 })
    }))
})

/**
 * Runners of a cluster, several of them in this process: how they talk, and how they leave.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import { CurrentJob } from "../src/CurrentJob.ts"
import * as CancelJob from "../src/internal/cancelJob.ts"
import * as Server from "../src/internal/postgres/server.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import type { JobId } from "../src/JobId.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Jobs from "../src/Jobs.ts"
import { TestDatabase } from "./utils/database.ts"
import { ownershipsOf } from "./utils/ownership.ts"
import { until } from "./utils/runtime.ts"

/** Where a partition goes depends on a runner's port: with so many each runner has some. */
const Work = JobQueue.make("work", { concurrency: 320, partitions: 32 })

const common = { queues: [Work], gracePeriod: 0 }

/** A runtime in this process: what runs in it, and its `Jobs`. */
const start = Effect.fnUntraced(function*<E, R>(runtime: Layer.Layer<JobRuntime.Services | JobRuntime.Runner, E, R>) {
  const context = yield* Layer.build(Layer.fresh(runtime))
  const running = new Set<string>()
  yield* JobHandlers.register("endless", () =>
    Effect.flatMap(CurrentJob, ({ jobId }) => {
      running.add(jobId)
      return Effect.ensuring(Effect.never, Effect.sync(() => running.delete(jobId)))
    }), { transaction: "none" }).pipe(Effect.provide(context))
  return { jobs: Context.get(context, Jobs.Jobs), runner: Context.get(context, JobRuntime.Runner), running }
})

const join = (options: JobRuntime.ClusterOptions = {}) =>
  start(JobRuntime.layerCluster({ ...common, host: "127.0.0.1", port: 0, ...options }))

const endless = { type: "endless", payload: null, queue: Work }

/** How many runners own partitions of a queue, once all of them are owned. */
const ownersOf = (queue: JobQueue.JobQueue) =>
  Effect.flatMap(PgClient, (sql) =>
    Effect.map(ownershipsOf(sql, queue.name), (all) => {
      const owners = new Set(all.map(({ owner }) => owner))
      return all.length === queue.partitions && !owners.has(null) ? owners.size : 0
    }))

const untilOwners = (queue: JobQueue.JobQueue, count: number) =>
  until(Effect.map(ownersOf(queue), (owners) => owners === count))

describe("runners talk over", () => {
  for (const transport of ["socket", "http", "websocket"] as const) {
    it.live(`${transport}: wakes, questions and cancellations reach the owner`, () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const here = yield* join({ transport })
        const there = yield* join({ transport })
        yield* untilOwners(Work, 2)
        const heard = yield* sql.listen("millrace_wake")
        const ids: Array<JobId> = []
        while (there.running.size === 0) {
          const id = yield* here.jobs.submit(endless)
          ids.push(id)
          yield* until(Effect.sync(() => here.running.has(id) || there.running.has(id)))
          assert.strictEqual((yield* here.jobs.status(id)).state, "running")
        }
        // Nobody had to be told of ready rows through the database.
        const told = yield* Queue.clear(heard)
        assert.deepStrictEqual(told.filter(({ payload }) => payload.startsWith("[")), [])
        yield* Effect.forEach(ids, here.jobs.cancel)
        assert.deepStrictEqual([...here.running, ...there.running], [])
        const states = yield* Effect.forEach(ids, here.jobs.status)
        assert.deepStrictEqual(states.filter(({ state }) => state !== "cancelled"), [])
      }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)))
  }
})

describe("a runner", () => {
  it.live("that does not declare a queue owns none of its share of it: anybody can cancel what is in there, and others run it when it goes", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const stranger = yield* join({ queues: [] })
      const { jobs, running } = yield* join()
      const { jobIds } = yield* jobs.submit(Array.from({ length: 128 }, () => endless))
      yield* until(Effect.sync(() => running.size > 0))
      const cancelled = new Set<JobId>()
      const cancelOne = Effect.gen(function*() {
        const id = jobIds.find((id) => !running.has(id) && !cancelled.has(id))
        if (id === undefined) return yield* Effect.die("none is left to the stranger")
        yield* Effect.provideService(jobs.cancel(id), CancelJob.Patience, 0)
        cancelled.add(id)
        const [found] = yield* sql<{ readonly partition: number }>`
          select partition::int from millrace.find_finished(${id}::uuid)`
        return (yield* ownershipsOf(sql)).every(({ partition }) => partition !== found?.partition)
      })
      yield* until(cancelOne)
      yield* stranger.runner.drain
      yield* until(Effect.sync(() => running.size === jobIds.length - cancelled.size))
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)))

  it.live("that is alone with 1,000 shards gets their locks, more than PostgreSQL takes columns", () =>
    Effect.gen(function*() {
      yield* join({ shards: 1_000 })
      yield* untilOwners(Work, 1)
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)))

  it.live("that drains runs nothing more and still submits", () =>
    Effect.gen(function*() {
      const leaver = yield* join()
      const stayer = yield* join()
      yield* untilOwners(Work, 2)
      yield* leaver.runner.drain
      yield* untilOwners(Work, 1)
      const { jobIds } = yield* leaver.jobs.submit(Array.from({ length: 8 }, () => endless))
      yield* until(Effect.sync(() => stayer.running.size === 8))
      yield* Effect.forEach(jobIds, stayer.jobs.cancel)
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)))
})

describe("a runtime of one process", () => {
  it.live("and a runner can follow each other: every job runs in one of them, whoever has its partition", () =>
    Effect.gen(function*() {
      const before = yield* start(JobRuntime.layer(common))
      yield* untilOwners(Work, 1)
      const scope = yield* Scope.make()
      const after = yield* Scope.provide(join(), scope)
      const { jobIds } = yield* before.jobs.submit(Array.from({ length: 16 }, () => endless))
      yield* until(Effect.sync(() => before.running.size + after.running.size === 16))
      yield* Scope.close(scope, Exit.void)
      yield* until(Effect.sync(() => before.running.size === 16))
      yield* Effect.forEach(jobIds, before.jobs.cancel)
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)))
})

describe("a runner that cannot listen", () => {
  it.live("says that its port is taken, and what to do", () =>
    Effect.gen(function*() {
      const port = yield* Server.freePort
      yield* join({ port })
      const error = yield* Effect.flip(join({ port }))
      assert(error instanceof JobRuntime.ClusterError)
      assert.strictEqual(error.reason, "AddressTaken")
      assert.match(error.message, new RegExp(`127.0.0.1:${port}.*MILLRACE_RUNNER_PORT`))
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)))
})

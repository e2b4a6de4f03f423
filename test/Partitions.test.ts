/**
 * Queues of several partitions: each partition is served, whoever changes their number and whenever, and no job is lost or run twice for it.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { CurrentJob } from "../src/CurrentJob.ts"
import * as Job from "../src/Job.ts"
import { LayoutError, QueueNotEmpty } from "../src/JobError.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import type { JobId } from "../src/JobId.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Jobs from "../src/Jobs.ts"
import { JobStore } from "../src/JobStore.ts"
import { untilFinal } from "./utils/child.ts"
import { TestDatabase } from "./utils/database.ts"
import { ownershipsOf } from "./utils/ownership.ts"
import { startProgram } from "./utils/programs.ts"
import { layerRuntime, makeStops, until } from "./utils/runtime.ts"

const divided = (partitions: number) => JobQueue.make("divided", { concurrency: 8, partitions })

class Mark extends Job.make("Mark", { payload: Schema.Int, queue: divided(1) }) {}

const MarkLive = Mark.toLayer((n) =>
  Effect.gen(function*() {
    const sql = yield* PgClient
    const { jobId } = yield* CurrentJob
    yield* sql`insert into public.marks (job_id, n) values (${jobId}, ${n})`
  }).pipe(Effect.orDie)
)

/** A program with so many partitions, on the database in context. */
const program = (partitions: number) =>
  startProgram(
    Layer.provideMerge(MarkLive, JobRuntime.layer({ queues: [divided(partitions)], gracePeriod: "5 seconds" }))
  )

describe("the number of partitions", () => {
  it.live(
    "is raised and lowered by whoever starts, while jobs keep coming: each of them runs once",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        yield* sql`create table public.marks (job_id uuid primary key, n int not null)`
        const batches: Array<ReadonlyArray<JobId>> = []
        const first = yield* program(4)
        let { jobs } = first
        // Not answered is not stored, or unknown: only what was answered counts. A few batches are always on their way.
        const load = Effect.gen(function*() {
          const { jobIds } = yield* jobs.submit(Array.from({ length: 20 }, (_, n) => Mark.request(n)))
          batches.push(jobIds)
          yield* untilFinal(sql, batches.at(-4) ?? [])
        }).pipe(Effect.forever)
        const loading = yield* Effect.forkScoped(load)
        const untilMore = Effect.suspend(() => {
          const enough = batches.length + 10
          return Effect.raceFirst(until(Effect.sync(() => batches.length >= enough)), Fiber.join(loading))
        })
        yield* until(Effect.map(ownershipsOf(sql, "divided"), (all) => all.length === 4))

        // Another version of the code: the first one lives on, owns everything, and must hear of it.
        const second = yield* program(2)
        const { partitions } = yield* Context.get(second.context, JobStore).declareQueue("divided")
        assert.strictEqual(partitions, 2)
        jobs = second.jobs
        yield* untilMore
        yield* first.stop

        const third = yield* program(6)
        jobs = third.jobs
        yield* until(Effect.map(ownershipsOf(sql, "divided"), (all) => all.length === 6))
        yield* untilMore
        yield* second.stop
        yield* untilMore
        yield* Fiber.interrupt(loading)

        const ids = batches.flat()
        yield* untilFinal(sql, ids)
        const [marks] = yield* sql<{ readonly count: number }>`
        select count(*)::int as count from public.marks where job_id = any(${ids}::uuid[])`
        assert.strictEqual(marks?.count, ids.length)
        assert.deepStrictEqual(yield* Context.get(third.context, JobStore).leftovers, [])
      }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)),
    60_000
  )

  it.live(
    "what is left in partitions that nobody declares any more is run by whoever declares the queue",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        yield* sql`create table public.marks (job_id uuid primary key, n int not null)`
        const client = yield* Layer.build(JobRuntime.layerClient({ queues: [divided(8)] }))
        const { submit } = Context.get(client, Jobs.Jobs)
        const { jobIds } = yield* submit(Array.from({ length: 50 }, (_, n) => Mark.request(n)))
        const late = yield* submit(Mark.request(50, { delay: "1 second" }))
        const { context } = yield* program(1)
        const store = Context.get(context, JobStore)
        assert.isAbove((yield* store.leftovers).length, 4)
        // The client has not heard of it, and goes on with the old number.
        const { jobIds: others } = yield* submit(Array.from({ length: 50 }, (_, n) => Mark.request(51 + n)))
        yield* untilFinal(sql, [...jobIds, ...others, late])
        assert.deepStrictEqual(yield* store.leftovers, [])
      }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)),
    60_000
  )

  it.live("divides the concurrency: together the partitions run what one would, and not more", () =>
    Effect.gen(function*() {
      const stops = yield* makeStops
      const jobs = yield* Jobs.Jobs
      let running = 0
      let most = 0
      yield* JobHandlers.register("hold", () =>
        Effect.suspend(() => {
          most = Math.max(most, ++running)
          return Effect.ensuring(stops.stop("hold"), Effect.sync(() => running--))
        }), { transaction: "none" })
      const { jobIds } = yield* jobs.submit(
        Array.from({ length: 100 }, () => ({ type: "hold", queue: "divided" }))
      )
      yield* until(Effect.sync(() => running === 8))
      yield* stops.releaseAll
      yield* Effect.forEach(jobIds, (id) => jobs.await(id), { concurrency: "unbounded" })
      assert.strictEqual(most, 8)
    }).pipe(Effect.scoped, Effect.provide(layerRuntime({ queues: [divided(3)] }))))

  it.live("of a queue that goes by tenant does not go by job from now on while jobs are in it: the program that wants to says so and does not start", () =>
    Effect.gen(function*() {
      const byTenant = JobQueue.make("tenants", { partitions: 2, partitionBy: "tenant" })
      const client = yield* Layer.build(JobRuntime.layerClient({ queues: [byTenant] }))
      yield* Context.get(client, Jobs.Jobs).submit({ type: "any", queue: "tenants" })
      const refused = yield* Effect.flip(
        Effect.scoped(
          Layer.build(Layer.fresh(JobRuntime.layer({ queues: [JobQueue.make("tenants", { partitions: 2 })] })))
        )
      )
      assert.deepStrictEqual(
        refused,
        new LayoutError({
          reason: new QueueNotEmpty({ queue: "tenants", field: "partitionBy", stored: "tenant", asked: "job" })
        })
      )
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)))
})

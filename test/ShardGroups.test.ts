/**
 * Runners of one cluster that are not alike: some host only their own queues, and none joins that would number its locks otherwise.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import { LayoutError, ShardsDiffer } from "../src/JobError.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import { JobStore } from "../src/JobStore.ts"
import { untilFinal } from "./utils/child.ts"
import { TestDatabase } from "./utils/database.ts"
import { ownershipsOf } from "./utils/ownership.ts"
import { startProgram } from "./utils/programs.ts"
import { until } from "./utils/runtime.ts"

const Pictures = JobQueue.make("pictures", { partitions: 4, group: "gpu" })
const Letters = JobQueue.make("letters", { partitions: 4 })
const queues = [Pictures, Letters]
const Long = JobQueue.make("long")
const Beside = JobQueue.make("beside")
const Apart = JobQueue.make("apart", { group: "apart" })

/** A runner of this process that runs every job by noting its own name. */
const runner = (name: string, options: JobRuntime.ClusterOptions = {}) =>
  Effect.gen(function*() {
    const ran: Array<string> = []
    const runtime = JobRuntime.layerCluster({ queues, host: "127.0.0.1", port: 0, gracePeriod: 0, ...options })
    const handlers = Layer.effectDiscard(
      JobHandlers.register("note", () => Effect.sync(() => void ran.push(name)), { transaction: "none" })
    )
    return { ...yield* startProgram(Layer.provideMerge(handlers, runtime)), ran }
  })

/** Which partitions of a queue have an owner. */
const owned = (sql: PgClient, queue: JobQueue.JobQueue) =>
  Effect.map(
    ownershipsOf(sql, queue.name),
    (all) => all.filter(({ owner }) => owner !== null).map(({ partition }) => partition)
  )

const untilOwned = (sql: PgClient, queue: JobQueue.JobQueue) =>
  Effect.repeat(owned(sql, queue), { until: (all) => all.length === 4, schedule: Schedule.spaced("20 millis") })

describe("shard groups", () => {
  it.live(
    "a runner hosts the queues of its groups and no others; theirs wait until one comes that does",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const office = yield* runner("office")
        yield* untilOwned(sql, Letters)
        const submit = (queue: JobQueue.JobQueue) =>
          Effect.map(
            office.jobs.submit(Array.from({ length: 20 }, () => ({ type: "note", queue }))),
            ({ jobIds }) => jobIds
          )
        const [letters, pictures] = [yield* submit(Letters), yield* submit(Pictures)]
        yield* untilFinal(sql, letters)
        assert.deepStrictEqual(yield* owned(sql, Pictures), [])

        const studio = yield* runner("studio", { groups: ["gpu"] })
        yield* untilFinal(sql, pictures)
        // Between runners that are there it goes without anybody's looking at the table.
        yield* untilFinal(sql, [...yield* submit(Pictures), ...yield* submit(Letters)])
        assert.deepStrictEqual(new Set(office.ran), new Set(["office"]))
        assert.deepStrictEqual([office.ran.length, studio.ran.length], [40, 40])
      }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)),
    60_000
  )

  it.live(
    "a queue that is given to another group moves there, with the jobs that are in it",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const office = yield* runner("office")
        yield* untilOwned(sql, Letters)
        const moved = JobQueue.make("letters", { partitions: 4, group: "archive" })
        const archive = yield* runner("archive", { queues: [Pictures, moved], groups: ["archive"] })
        const ids: Array<string> = []
        // The office hears of it within seconds; whoever owns the queue until then runs what comes.
        while (archive.ran.length === 0) {
          const { jobIds } = yield* office.jobs.submit(
            Array.from({ length: 8 }, () => ({ type: "note", queue: Letters }))
          )
          ids.push(...jobIds)
          yield* untilFinal(sql, jobIds)
        }
        yield* office.stop
        const { jobIds } = yield* archive.jobs.submit(
          Array.from({ length: 20 }, () => ({ type: "note", queue: moved }))
        )
        const fates = yield* untilFinal(sql, [...ids, ...jobIds])
        // While both believed that it was theirs a handler may have started twice; its job ended once.
        assert.deepStrictEqual(fates.filter(({ attempt, state }) => state !== "completed" || attempt !== 1), [])
        assert.isAtLeast(office.ran.length + archive.ran.length, ids.length + 20)
      }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)),
    60_000
  )

  it.live(
    "a runner that leaves keeps what shares a shard with a long job, however idle, and gives a queue of another group away at once",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const gate = Latch.makeUnsafe(false)
        let isRunning = false
        const options = {
          queues: [Long, Beside, Apart],
          groups: ["default", "apart"],
          shards: 1,
          gracePeriod: "1 hour"
        } satisfies JobRuntime.ClusterOptions
        const leaver = yield* runner("leaver", options)
        yield* Effect.addFinalizer(() => gate.open)
        const long = Effect.suspend(() => {
          isRunning = true
          return gate.await
        })
        yield* JobHandlers.register("long", () => long, { transaction: "none" }).pipe(Effect.provide(leaver.context))
        yield* leaver.jobs.submit({ type: "long", queue: Long })
        yield* until(Effect.sync(() => isRunning))
        const stayer = yield* runner("stayer", options)
        const draining = yield* Effect.forkChild(Context.get(leaver.context, JobRuntime.Runner).drain)

        const submit = (queue: JobQueue.JobQueue) => stayer.jobs.submit({ type: "note", queue })
        while (stayer.ran.length === 0) yield* untilFinal(sql, [yield* submit(Apart)])
        const ran = stayer.ran.length
        const waiting = yield* submit(Beside)
        yield* untilFinal(sql, [yield* submit(Apart)])
        assert.strictEqual((yield* stayer.jobs.status(waiting)).state, "queued")
        yield* gate.open
        yield* Fiber.join(draining)
        yield* untilFinal(sql, [waiting])
        assert.strictEqual(stayer.ran.length, ran + 2)
      }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)),
    60_000
  )

  it.live("a runtime of one process hosts every group", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      yield* Layer.build(JobRuntime.layer({ queues, gracePeriod: 0 }))
      yield* untilOwned(sql, Pictures)
      yield* untilOwned(sql, Letters)
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)), 60_000)
})

describe("the number of shards", () => {
  it.live(
    "keeps out who counts otherwise while others live, and says who they are; then it may change",
    () =>
      Effect.gen(function*() {
        const first = yield* runner("first", { shards: 8 })
        const error = yield* Effect.flip(runner("second", { shards: 12 }))
        assert(error instanceof LayoutError && error.reason instanceof ShardsDiffer)
        const { asked, living, stored } = error.reason
        assert.deepStrictEqual({ asked, stored }, { asked: 12, stored: 8 })
        assert.isTrue(living.some((one) => one.startsWith("127.0.0.1:")), living.join())
        yield* first.stop
        const second = yield* runner("second", { shards: 12 })
        assert.deepStrictEqual(yield* Context.get(second.context, JobStore).shards, Option.some(12))
      }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)),
    60_000
  )
})

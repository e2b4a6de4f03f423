/**
 * Guarantees 1, 2 and 10 with several runners on one database: they share the partitions of a queue, and whatever becomes of one of them,
 * its partitions are served by the others, and every job commits once.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Schedule from "effect/Schedule"
import * as Server from "../src/internal/postgres/server.ts"
import * as Jobs from "../src/Jobs.ts"
import { fatesOf, rowsOf, startWorker, untilFinal, type Worker } from "./utils/child.ts"
import { databaseUrl } from "./utils/database.ts"
import { ownershipsOf } from "./utils/ownership.ts"
import { submittingTo } from "./utils/submitting.ts"
import { Hold, Write } from "./utils/worker.ts"

/** As many that no two of them share a shard. Of three runners one may have none of them: by how its address falls, one time in fifty. */
const partitions = 8

const submitting = submittingTo(partitions)

/** Waits until all partitions are owned, by exactly these runners. */
const untilOwnedBy = (sql: PgClient, ...runners: ReadonlyArray<Runner>) =>
  Effect.repeat(ownershipsOf(sql), {
    until: (owned) =>
      owned.length === partitions &&
      new Set(owned.map(({ owner }) => owner)).size === runners.length &&
      owned.every(({ owner }) => runners.some(({ address }) => address === owner)),
    schedule: Schedule.spaced("20 millis")
  })

interface Runner extends Worker {
  readonly address: string
}

const startRunner = Effect.gen(function*() {
  const url = yield* databaseUrl
  const port = yield* Server.freePort
  const worker = yield* startWorker({ url, role: "runner", port, partitions })
  return { ...worker, address: `127.0.0.1:${port}` } satisfies Runner
})

/** Runners that share the partitions. */
const cluster = (count: number) =>
  Effect.gen(function*() {
    const sql = yield* PgClient
    const runners = yield* Effect.forEach(Array.from({ length: count }), () => startRunner, { concurrency: count })
    yield* untilOwnedBy(sql, ...runners)
    return runners
  })

/** A job that holds in this runner: submitted until one falls into a partition of it. The others are let go. */
const holdIn = Effect.fnUntraced(function*(runner: Runner, others: ReadonlyArray<Runner>) {
  const sql = yield* PgClient
  const jobs = yield* Jobs.Jobs
  while (true) {
    const id = yield* jobs.submit(Hold.request(undefined))
    const holder = yield* Effect.raceAll(
      [runner, ...others].map((one) => Effect.as(one.until("holding", { jobId: id }), one))
    )
    if (holder === runner) {
      const [row] = yield* sql<{ readonly partition: number }>`
        select partition::int from millrace.jobs where id = ${id}`
      return { id, partition: row?.partition }
    }
    yield* holder.tell({ tell: "go", jobId: id })
    yield* untilFinal(sql, [id])
  }
})

const submitMany = Effect.flatMap(
  Jobs.Jobs,
  (jobs) => Effect.map(jobs.submit(Array.from({ length: 100 }, () => Write.request({}))), ({ jobIds }) => jobIds)
)

/** All have completed, at once and in their first attempt, and each has written its one row. */
const assertOnce = Effect.fnUntraced(function*(ids: ReadonlyArray<string>) {
  const sql = yield* PgClient
  const fates = yield* untilFinal(sql, ids)
  assert.deepStrictEqual(fates.filter(({ attempt, state }) => state !== "completed" || attempt !== 1), [])
  const rows = yield* rowsOf(sql, ids)
  assert.strictEqual(rows.length, ids.length)
  return new Set(rows.map(({ pid }) => pid))
})

describe("runners of a cluster", () => {
  it.live(
    "share the work; partitions move to one that joins, without anybody being blamed for it",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const [first] = yield* cluster(1)
        assert.deepStrictEqual([...yield* assertOnce(yield* submitMany)], [first!.pid])
        const second = yield* startRunner
        yield* untilOwnedBy(sql, first!, second)
        const pids = yield* assertOnce(yield* submitMany)
        assert.deepStrictEqual(pids, new Set([first!.pid, second.pid]))
        assert.deepStrictEqual((yield* ownershipsOf(sql)).filter(({ careful }) => careful), [])
      }).pipe(Effect.scoped, Effect.provide(submitting)),
    60_000
  )

  it.live(
    "one that is told to stop hands over what is idle at once, and the rest when its jobs have ended",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const [leaver, stayer] = yield* cluster(2)
        const { id, partition } = yield* holdIn(leaver!, [stayer!])
        yield* leaver!.signal("SIGTERM")
        yield* ownershipsOf(sql).pipe(Effect.repeat({
          until: (owned) =>
            owned.every((one) => one.owner === (one.partition === partition ? leaver : stayer)!.address),
          schedule: Schedule.spaced("20 millis")
        }))
        const [held] = yield* fatesOf(sql, [id])
        assert.deepInclude(held, { state: "live", attempt: 0, version: 0 })
        yield* leaver!.tell({ tell: "go", jobId: id })
        yield* leaver!.ended
        assert.deepStrictEqual([...yield* assertOnce([id])], [leaver!.pid])
        yield* untilOwnedBy(sql, stayer!)
        assert.deepStrictEqual((yield* ownershipsOf(sql)).filter(({ careful }) => careful), [])
      }).pipe(Effect.scoped, Effect.provide(submitting)),
    60_000
  )

  it.live(
    "serve the partitions of one that is killed within ten seconds, and every job of it commits once",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const [victim, ...others] = yield* cluster(2)
        const { id } = yield* holdIn(victim!, others)
        yield* victim!.kill
        const ids = yield* submitMany
        yield* Effect.timeout(untilOwnedBy(sql, ...others), "10 seconds")
        yield* Effect.forEach(others, (other) => other.tell({ tell: "go", jobId: id }))
        const pids = yield* assertOnce([id, ...ids])
        assert.isFalse(pids.has(victim!.pid))
      }).pipe(Effect.scoped, Effect.provide(submitting)),
    60_000
  )

  it.live(
    "one that is stopped for longer than its locks last finds its attempts superseded when it goes on",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const [sleeper, other] = yield* cluster(2)
        const returning = yield* holdIn(sleeper!, [other!])
        const hanging = yield* holdIn(sleeper!, [other!])
        yield* sleeper!.signal("SIGSTOP")
        yield* untilOwnedBy(sql, other!)
        yield* other!.until("holding", { jobId: hanging.id })
        // One may return at once; it is told so before it can see that it has lost the lock.
        yield* sleeper!.tell({ tell: "go", jobId: returning.id })
        yield* sleeper!.signal("SIGCONT")
        yield* sleeper!.until("interrupted", { jobId: hanging.id })
        yield* Effect.forEach([returning, hanging], ({ id }) => other!.tell({ tell: "go", jobId: id }))
        assert.deepStrictEqual([...yield* assertOnce([returning.id, hanging.id])], [other!.pid])
        // It is a runner like any other again.
        yield* untilOwnedBy(sql, sleeper!, other!)
      }).pipe(Effect.scoped, Effect.provide(submitting)),
    60_000
  )

  it.live(
    "wake each other directly: a job submitted in one runner starts in another, and nothing is announced for it",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const [one, other] = yield* cluster(2)
        const heard = yield* sql.listen("millrace_wake")
        const ids: Array<string> = []
        for (let count = 1; count <= 16; count++) {
          yield* one!.tell({ tell: "submit", count: 1 })
          const id = (yield* one!.until("submitted", { count })).at(-1)!.jobIds[0]!
          // Sooner than any sweep.
          yield* Effect.timeout(untilFinal(sql, [id]), "2 seconds")
          ids.push(id)
        }
        assert.strictEqual((yield* assertOnce(ids)).size, 2)
        const told = yield* Queue.clear(heard)
        assert.deepStrictEqual(told.filter(({ payload }) => payload.startsWith("[")), [])
        yield* other!.kill
      }).pipe(Effect.scoped, Effect.provide(submitting)),
    60_000
  )
})

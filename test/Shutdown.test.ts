/**
 * Guarantee 10: deploys are quiet. A worker is told to stop (SIGTERM) while it has jobs running and jobs waiting.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Jobs from "../src/Jobs.ts"
import { fatesOf, rowsOf, startWorker, untilFinal, type Worker } from "./utils/child.ts"
import { databaseUrl } from "./utils/database.ts"
import { ownershipsOf } from "./utils/ownership.ts"
import { submittingTo } from "./utils/submitting.ts"
import { Hold, Outside, Write } from "./utils/worker.ts"

const submitting = submittingTo()

/** Who owns the queue, and whether the one before left without a word. */
const ownership = (sql: PgClient) => Effect.map(ownershipsOf(sql), ([only]) => only)

/** The rows of waiting jobs as PostgreSQL has them: xmin changes with any write, even one that changes nothing. */
const physical = (sql: PgClient, ids: ReadonlyArray<string>) =>
  sql`select id, xmin::text, ctid::text, version from millrace.jobs where id = any(${ids}::uuid[]) order by id`

const notes = (sql: PgClient) => sql`select id from millrace.running_jobs`

const go = (worker: Worker, jobIds: ReadonlyArray<string>) =>
  Effect.forEach(jobIds, (jobId) => worker.tell({ tell: "go", jobId }), { discard: true })

describe("a worker that gets SIGTERM", () => {
  it.live("lets running jobs end and settle, starts nothing new, and does not touch what waits", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const url = yield* databaseUrl
      const jobs = yield* Jobs.Jobs
      const running = yield* jobs.submit([Hold.request(undefined), Hold.request(undefined), Outside.request(undefined)])
      const first = yield* startWorker({ url, concurrency: 3 })
      yield* first.until("holding", { count: 3 })
      const waiting = yield* jobs.submit(Array.from({ length: 10 }, () => Write.request({})))
      const before = yield* physical(sql, waiting.jobIds)
      const { epoch } = (yield* ownership(sql))!

      yield* first.signal("SIGTERM")
      // One ends and makes room; nothing takes its place while the others go on.
      const [one = "", ...others] = running.jobIds
      yield* go(first, [one])
      yield* untilFinal(sql, [one])
      yield* go(first, others)
      yield* first.ended

      const fates = yield* fatesOf(sql, running.jobIds)
      assert.deepStrictEqual(fates.filter(({ attempt, state }) => state !== "completed" || attempt !== 1), [])
      assert.strictEqual((yield* rowsOf(sql, running.jobIds)).length, 3)
      assert.deepStrictEqual(yield* physical(sql, waiting.jobIds), before)
      const started = first.said.flatMap((said) => said.say === "started" ? [said.jobId] : [])
      assert.deepStrictEqual(started.toSorted(), running.jobIds.toSorted())
      assert.deepInclude(yield* ownership(sql), { epoch, owner: null, careful: false })
      assert.deepStrictEqual(yield* notes(sql), [])

      yield* startWorker({ url })
      const rest = yield* untilFinal(sql, waiting.jobIds)
      assert.deepStrictEqual(
        rest.filter(({ attempt, state, version }) => state !== "completed" || attempt !== 1 || version !== 0),
        []
      )
      // The successor does not have to suspect anyone.
      assert.deepInclude(yield* ownership(sql), { epoch: epoch + 1, careful: false })
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("interrupts what outlives the grace period and rolls it back; the successor runs it, and no attempt is counted", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const url = yield* databaseUrl
      const jobs = yield* Jobs.Jobs
      const { jobIds: [id = "", brief = ""] } = yield* jobs.submit([Hold.request(undefined), Hold.request(undefined)])
      // Longer than a job without a handler waits for one: those that wait lose theirs before this one ends.
      const first = yield* startWorker({ url, graceMs: 2_500, concurrency: 2 })
      yield* first.until("holding", { count: 2 })
      const { jobIds: waiting } = yield* jobs.submit(Array.from({ length: 300 }, () => Write.request({})))
      const before = yield* physical(sql, waiting)
      yield* first.signal("SIGTERM")
      yield* go(first, [brief])
      yield* first.until("interrupted", { jobId: id })
      yield* first.ended
      assert.deepStrictEqual(yield* rowsOf(sql, [id]), [])
      // Those that wait need no write at all. The interrupted one is counted as a rerun.
      assert.deepStrictEqual(yield* physical(sql, waiting), before)
      assert.deepInclude((yield* fatesOf(sql, [id]))[0], { state: "live", attempt: 0, crashes: 0, version: 1 })
      assert.deepInclude(yield* ownership(sql), { owner: null, careful: false })
      assert.deepStrictEqual(yield* notes(sql), [])

      const second = yield* startWorker({ url })
      yield* second.tell({ tell: "go", jobId: id })
      const fates = yield* untilFinal(sql, [id, ...waiting])
      assert.deepStrictEqual(
        fates.filter(({ attempt, state, version }) => state !== "completed" || attempt !== 1 || version > 1),
        []
      )
      assert.deepStrictEqual(yield* rowsOf(sql, [id]), [{ job_id: id, attempt: 1, pid: second.pid }])
      assert.deepInclude(yield* ownership(sql), { careful: false })
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("closes what its handlers use only after they have ended, whether they return or are interrupted", () =>
    Effect.gen(function*() {
      const url = yield* databaseUrl
      const jobs = yield* Jobs.Jobs
      const { jobIds: [returning = "", interrupted = ""] } = yield* jobs.submit([
        Hold.request(undefined),
        Outside.request(undefined)
      ])
      const worker = yield* startWorker({ url, graceMs: 1_000 })
      yield* worker.until("holding", { count: 2 })
      yield* worker.signal("SIGTERM")
      yield* go(worker, [returning])
      yield* worker.ended
      const last = worker.said.filter(({ say }) => say === "returning" || say === "interrupted" || say === "closed")
      assert.deepStrictEqual(last, [
        { say: "returning", jobId: returning, isOpen: true },
        { say: "interrupted", jobId: interrupted, isOpen: true },
        { say: "closed" }
      ])
    }).pipe(Effect.scoped, Effect.provide(submitting)))

  it.live("and again: its successor has the queue, and nobody's job was blamed or lost in a row of deploys", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const url = yield* databaseUrl
      const jobs = yield* Jobs.Jobs
      const ids: Array<string> = []
      for (let deploy = 0; deploy < 3; deploy++) {
        const { jobIds } = yield* jobs.submit(Array.from({ length: 300 }, () => Write.request({})))
        ids.push(...jobIds)
        const worker = yield* startWorker({ url, concurrency: 5 })
        yield* worker.until("returning", { count: 100 })
        yield* worker.signal("SIGTERM")
        yield* worker.ended
      }
      yield* startWorker({ url })
      const fates = yield* untilFinal(sql, ids)
      assert.deepStrictEqual(
        fates.filter(({ attempt, state, version }) => state !== "completed" || attempt !== 1 || version !== 0),
        []
      )
      const rows = yield* rowsOf(sql, ids)
      assert.deepStrictEqual(rows.map(({ job_id }) => job_id).toSorted(), ids.toSorted())
      assert.deepInclude(yield* ownership(sql), { epoch: 4, careful: false })
    }).pipe(Effect.scoped, Effect.provide(submitting)))
})

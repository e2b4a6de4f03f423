/**
 * Guarantees 2 and 10 while two versions of the code run side by side: the next one brings a type of job that the one before has no handler
 * for, a step of the schema that it does not know, and another number of partitions.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Server from "../src/internal/postgres/server.ts"
import type { JobId } from "../src/JobId.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Jobs from "../src/Jobs.ts"
import * as Migrations from "../src/Migrations.ts"
import { rowsOf, startWorker, untilFinal, type Worker } from "./utils/child.ts"
import { databaseUrl, TestDatabase } from "./utils/database.ts"
import { contract, expand, Fresh, migrateToNext, queue, tables, Write } from "./utils/worker.ts"

/** How many partitions each version has, and what else it is started with. */
const before = { partitions: 8 } as const
const next = { partitions: 12, version: "next" } as const

/** A database with the handlers' tables, and a process that only submits: this one. */
const submitting = JobRuntime.layerClient({ queues: [queue(20, before.partitions)] }).pipe(
  Layer.provideMerge(
    Layer.effectDiscard(Effect.flatMap(PgClient, (sql) => Effect.forEach(tables, (statement) => sql.unsafe(statement))))
  ),
  Layer.provideMerge(TestDatabase.layer)
)

/** Repeats a question until the answer is yes: more often would be load of another kind. */
const until = <E, R>(condition: Effect.Effect<boolean, E, R>) =>
  Effect.repeat(condition, { until: (isSo) => isSo, schedule: Schedule.spaced("20 millis") })

interface Runner extends Worker {
  readonly address: string
}

const startRunner = (version: typeof before | typeof next) =>
  Effect.gen(function*() {
    const url = yield* databaseUrl
    const port = yield* Server.freePort
    const worker = yield* startWorker({ url, role: "runner", port, ...version })
    return { ...worker, address: `127.0.0.1:${port}` } satisfies Runner
  })

interface Partition {
  readonly owner: string | null
  readonly careful: boolean
}

/** The partitions that there are by the count in force. */
const partitionsOf = (sql: PgClient) =>
  sql<Partition>`
    select split_part(owner, '#', 1) as owner, careful from millrace.queues q
    cross join lateral generate_series(0, q.partitions - 1) as declared(partition)
    left join millrace.partitions p on p.queue_id = q.id and p.partition = declared.partition where q.name = 'work'`

/** Waits until there are so many partitions, owned by exactly these runners. */
const untilOwnedBy = (
  sql: PgClient,
  { partitions }: { readonly partitions: number },
  ...runners: ReadonlyArray<Runner>
) =>
  until(
    Effect.map(partitionsOf(sql), (all) =>
      all.length === partitions && all.every(({ owner }) =>
        runners.some(({ address }) => address === owner)
      ) &&
      runners.every(({ address }) => all.some(({ owner }) => address === owner)))
  )

const many = Array.from({ length: 25 }, () => Write.request({}))

/** Jobs that both versions run, as fast as they do: each of several fibers waits for the jobs of its batch, and submits another. */
const startLoad = Effect.gen(function*() {
  const jobs = yield* Jobs.Jobs
  const ids: Array<JobId> = []
  let isOver = false
  const round = Effect.gen(function*() {
    const { jobIds } = yield* jobs.submit(many)
    ids.push(...jobIds)
    yield* Effect.forEach(jobIds, (id) => jobs.await(id), { concurrency: "unbounded", discard: true })
  })
  const rounds = Effect.repeat(round, { while: () => !isOver })
  const fiber = yield* Effect.forkScoped(Effect.all([rounds, rounds, rounds, rounds], { concurrency: "unbounded" }))
  return {
    ids,
    /** Waits until so many more jobs were submitted, which takes as many that have ended; dies where one has not as it should. */
    more: Effect.suspend(() => {
      const enough = ids.length + 200
      return Effect.raceFirst(until(Effect.sync(() => ids.length >= enough)), Fiber.join(fiber))
    }),
    end: Effect.suspend(() => {
      isOver = true
      return Fiber.join(fiber)
    })
  }
})

const submitFresh = Effect.flatMap(
  Jobs.Jobs,
  (jobs) => Effect.map(jobs.submit(Array.from({ length: 40 }, () => Fresh.request(undefined))), ({ jobIds }) => jobIds)
)

/** Those of these jobs that somebody without a handler for them has put back. */
const putBack = (sql: PgClient, ids: ReadonlyArray<JobId>) =>
  sql`select id from millrace.jobs where id = any(${ids}::uuid[]) and state = 1 and version > 0`

/** How often each job was put back for want of a handler. Nothing else but its end is in its history. */
const timesPutBack = (sql: PgClient, ids: ReadonlyArray<JobId>) =>
  Effect.map(
    sql<{ readonly kinds: ReadonlyArray<string> }>`
      select array(select entry ->> 'kind' from jsonb_array_elements(f.history) entry) as kinds
      from unnest(${ids}::uuid[]) as asked(id) cross join lateral millrace.find_finished(asked.id) f`,
    (rows) => rows.map(({ kinds }) => kinds.length)
  )

describe("a rolling deploy", () => {
  it.live(
    "of a version with a type of job, a step of the schema and partitions of its own: every job completes once, in its first attempt",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const old = yield* Effect.all([startRunner(before), startRunner(before)], { concurrency: 2 })
        yield* untilOwnedBy(sql, before, ...old)
        const load = yield* startLoad
        yield* load.more
        // Submitters may be of the next version first.
        const early = yield* submitFresh
        yield* until(Effect.map(putBack(sql, early), (rows) => rows.length === early.length))

        const first = yield* startRunner(next)
        yield* untilOwnedBy(sql, next, ...old, first)
        yield* load.more
        const late = yield* submitFresh
        yield* old[0].signal("SIGTERM")
        const second = yield* startRunner(next)
        assert.deepStrictEqual(yield* old[0].ended, { code: 130, signal: null })
        yield* untilOwnedBy(sql, next, old[1], first, second)
        yield* load.more
        yield* old[1].signal("SIGTERM")
        assert.deepStrictEqual(yield* old[1].ended, { code: 130, signal: null })
        yield* untilOwnedBy(sql, next, first, second)
        yield* load.more
        yield* load.end

        const fresh = [...early, ...late]
        const ids = [...load.ids, ...fresh]
        const fates = yield* untilFinal(sql, ids)
        assert.deepStrictEqual(fates.filter(({ attempt, state }) => state !== "completed" || attempt !== 1), [])
        // What both can run was written once and deleted once: not put back, and counted no crash.
        assert.deepStrictEqual(fates.slice(0, load.ids.length).filter(({ version }) => version !== 0), [])
        // The rest was put back and made ready again, as often as its history says, and nothing else.
        const putBacks = (yield* timesPutBack(sql, fresh)).map((entries) => entries - 1)
        assert.deepStrictEqual(fates.slice(load.ids.length).map(({ version }) => version / 2), putBacks)
        assert.isTrue(putBacks.slice(0, early.length).every((times) => times > 0))

        const rows = yield* rowsOf(sql, ids)
        assert.deepStrictEqual(rows.map(({ job_id }) => job_id), ids.toSorted())
        const isFresh = new Set<string>(fresh)
        const pidsOf = (choose: (id: string) => boolean) =>
          new Set(rows.filter(({ job_id }) => choose(job_id)).map(({ pid }) => pid))
        assert.deepStrictEqual(pidsOf((id) => isFresh.has(id)), new Set([first.pid, second.pid]))
        assert.deepStrictEqual(
          pidsOf((id) => !isFresh.has(id)),
          new Set([...old, first, second].map(({ pid }) => pid))
        )
        assert.deepStrictEqual(yield* sql`select id from millrace.dead_letters`, [])
        assert.deepStrictEqual((yield* partitionsOf(sql)).filter(({ careful }) => careful), [])
      }).pipe(Effect.scoped, Effect.provide(submitting)),
    120_000
  )

  it.live(
    "goes back as far as the schema serves the version before: that says so and does not start, while one that runs goes on",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const jobs = yield* Jobs.Jobs
        assert.deepStrictEqual(yield* migrateToNext(expand), [expand.number])
        const running = yield* startRunner(before)
        yield* untilOwnedBy(sql, before, running)

        assert.deepStrictEqual(yield* migrateToNext(expand, contract), [contract.number])
        const refused = yield* startRunner(before)
        const [unserved] = yield* refused.until("unserved")
        assert.strictEqual(unserved?.reason, "CodeTooOld")
        assert.include(
          unserved?.message,
          `serves code version ${Migrations.codeVersion + 1} and later, this is ${Migrations.codeVersion}`
        )
        assert.deepStrictEqual(yield* refused.ended, { code: 1, signal: null })
        const { jobIds } = yield* jobs.submit(many)
        yield* Effect.forEach(jobIds, (id) => jobs.await(id), { concurrency: "unbounded", discard: true })
        assert.deepStrictEqual(
          new Set((yield* rowsOf(sql, jobIds)).map(({ pid }) => pid)),
          new Set([running.pid])
        )
      }).pipe(Effect.scoped, Effect.provide(submitting)),
    60_000
  )
})

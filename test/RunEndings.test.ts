/**
 * What each way a run can end counts as: one test for each row of `accounting`, whose job ends so in its first run and succeeds in the next one.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import { accounting, attemptEvery, countsAs, pauseMs, type RunEnding } from "../src/internal/accounting.ts"
import * as Job from "../src/Job.ts"
import * as JobError from "../src/JobError.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import type { JobId } from "../src/JobId.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Jobs from "../src/Jobs.ts"
import { JobStore } from "../src/JobStore.ts"
import * as Postgres from "../src/Postgres.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { databaseUrl, TestDatabase, TestServer } from "./utils/database.ts"
import { makeLines } from "./utils/lines.ts"
import { recordLog } from "./utils/logged.ts"
import { until } from "./utils/runtime.ts"
import { quiet, start } from "./utils/trouble.ts"

const retry = RetryPolicy.delays([0, 0])

type World = Effect.Success<ReturnType<typeof start>> & { readonly lines: ReturnType<typeof makeLines> }

const world = Effect.gen(function*() {
  const url = yield* databaseUrl
  const lines = makeLines(url)
  return { ...yield* start(url, { stream: lines.stream }), lines }
})

/** Runs a job whose first run does this. Answers with its status, once it has ended. */
const ended = (
  { inside, jobs }: World,
  first: Effect.Effect<unknown, unknown, SqlClient>,
  options: Omit<Parameters<typeof JobHandlers.register>[2] & object, "retry"> = {}
) =>
  Effect.gen(function*() {
    let runs = 0
    const handler = () => Effect.suspend(() => ++runs === 1 ? first : Effect.void)
    const type = `First ${options.transaction ?? ""}`
    yield* inside(JobHandlers.register(type, handler, { retry, ...options }))
    const id = yield* jobs.submit({ type })
    yield* Effect.exit(jobs.await(id))
    return yield* jobs.status(id)
  })

const statement = (sql: string) => Effect.flatMap(SqlClient, (client) => client.unsafe(sql))
const raise = (code: string) => statement(`do $$ begin raise exception 'raised' using errcode = '${code}'; end $$`)
const backend = Effect.map(
  Effect.flatMap(SqlClient, (client) => client<{ readonly pid: number }>`select pg_backend_pid() as pid`),
  ([row]) => row?.pid ?? 0
)

/** A job whose runs were interrupted so often, each by the end of its process's runtime. */
const interrupted = (times: number) =>
  Effect.gen(function*() {
    const url = yield* databaseUrl
    const runtime = JobRuntime.layer({ gracePeriod: 0 }).pipe(Layer.provideMerge(Postgres.layer({ url })))
    const Endless = Job.make("Endless", { payload: Schema.Undefined, retry })
    const id = yield* Effect.flatMap(Jobs.Jobs, (jobs) => jobs.submit(Endless.request(undefined))).pipe(
      Effect.provide(runtime)
    )
    for (let time = 0; time < times; time++) {
      const started = yield* Deferred.make<void>()
      const live = Endless.toLayer(() => Effect.andThen(Deferred.succeed(started, undefined), Effect.never))
      yield* Effect.provide(Deferred.await(started), live.pipe(Layer.provideMerge(runtime)))
    }
    return yield* Effect.flatMap(Jobs.Jobs, (jobs) => jobs.status(id)).pipe(Effect.provide(runtime))
  })

/** It is still to complete. */
const interruptedOnce = Effect.map(interrupted(1), (status) => ({ ...status, attempts: status.attempts + 1 }))

type Ran = Effect.Success<ReturnType<typeof ended>>

/** One test an ending; a row without one is a type error. */
const rows: Record<RunEnding, (world: World) => Effect.Effect<Ran, unknown, Scope.Scope | TestDatabase>> = {
  completed: (world) => ended(world, Effect.void),
  failed: (world) => ended(world, Effect.die(new Error("no"))),
  timedOut: (world) => ended(world, Effect.never, { timeout: "100 millis" }),
  refused: (world) =>
    Effect.gen(function*() {
      yield* world.sql`create table parents (id int primary key)`
      yield* world.sql`create table children (id int references parents deferrable initially deferred)`
      return yield* ended(world, statement("insert into children values (1)"))
    }),
  ended: (world) => ended(world, statement("select pg_terminate_backend(pg_backend_pid())")),
  readOnly: (world) => ended(world, statement("set transaction read only")),
  unjudged: (world) =>
    Effect.gen(function*() {
      const store = yield* world.inside(JobStore)
      const { settle } = store
      let dies = true
      Object.assign(store, {
        settle: (...args: Parameters<typeof settle>) => {
          if (!dies) return settle(...args)
          dies = false
          return Effect.die(new Error("settling died"))
        }
      })
      return yield* ended(world, Effect.die("no"), { transaction: "none" })
    }),
  crashed: (world) =>
    ended(
      world,
      Effect.gen(function*() {
        const pid = yield* backend
        yield* Effect.forkDetach(Effect.delay(world.lines.lose(world.sql, [pid]), "100 millis"))
        yield* statement("select pg_sleep(5)")
      })
    ),
  processDied: (world) =>
    Effect.gen(function*() {
      const store = yield* world.inside(JobStore)
      const { queueId } = yield* store.declareQueue("dies")
      const takeOver = (owner: string) => store.takeOver({ queueId, partition: 0 }, { owner, now: 0 })
      const { owner } = yield* takeOver("127.0.0.1:1#one")
      const id = yield* world.jobs.submit({ type: "First", queue: "dies" })
      const run = { id, version: 0, attempt: 1, startedAt: 1, progress: undefined, message: undefined }
      yield* store.noteRunning(owner, [run], 2)
      const { former, isCareful, owner: next } = yield* takeOver("127.0.0.1:2#two")
      assert.isTrue(isCareful)
      assert.strictEqual(former, "127.0.0.1:1#one")
      yield* store.countCrashes(next, [], { runner: "127.0.0.1:1", now: 3 })
      const status = yield* world.jobs.status(id)
      assert.deepInclude(status.history.at(-1), { move: "crashed", to: "queued", at: 3, runner: "127.0.0.1:1" })
      // Nobody runs it here: as if it had.
      return { ...status, attempts: 1 }
    }),
  conflict: (world) => ended(world, raise("40001")),
  unable: (world) => ended(world, raise("53100")),
  lost: (world) =>
    ended(
      world,
      Effect.gen(function*() {
        const pid = yield* backend
        yield* world.lines.lose(world.sql, [pid])
        yield* Effect.sleep("100 millis")
        yield* statement("select 1")
      })
    ),
  interrupted: () => interruptedOnce,
  cancelled: (world) =>
    Effect.gen(function*() {
      const status = yield* ended(world, new JobError.Discard({ because: "of no use" }))
      assert.strictEqual(status.state, "cancelled")
      // Nothing more runs.
      return { ...status, attempts: status.attempts + 1 }
    }),
  snoozed: (world) => ended(world, new JobError.Snooze({ delay: 0 })),
  superseded: (world) =>
    ended(
      world,
      Effect.andThen(statement("select 1"), world.sql`update millrace.jobs set version = version + 1`)
    )
}

const expected = { attempt: [2, 0, 0], crash: [1, 1, 0], rerun: [1, 0, 1], nothing: [1, 0, 0] } as const

describe("the end of a run counts as the table says", () => {
  for (const [ending, run] of Object.entries(rows)) {
    const { counts } = accounting[ending as RunEnding]
    it.live(`${ending}: ${counts}`, () =>
      Effect.gen(function*() {
        // A runtime of the test's own would own the queue of this one.
        const { attempts, crashes, reruns } = yield* ending === "interrupted"
          ? interruptedOnce
          : Effect.flatMap(world, run)
        assert.deepStrictEqual([attempts, crashes, reruns], ending === "completed" ? [1, 0, 0] : expected[counts])
      }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)), 60_000)
  }
})

describe("a session that the server ends for its own transaction", () => {
  for (
    const [setting, code] of [["idle_in_transaction_session_timeout", "25P03"], [
      "transaction_timeout",
      "25P04"
    ]] as const
  ) {
    it.live(
      `${code} (${setting}) counts as an attempt and names the server's reason, in a group too`,
      () =>
        Effect.gen(function*() {
          const here = yield* world
          for (const transaction of [undefined, "grouped"] as const) {
            const status = yield* ended(
              here,
              Effect.gen(function*() {
                yield* statement(`set local ${setting} = '100ms'`)
                yield* code === "25P04" ? statement("select pg_sleep(5)") : Effect.sleep("400 millis")
                yield* statement("select 1")
              }),
              transaction === undefined ? {} : { transaction }
            )
            assert.deepInclude(status, { state: "completed", attempts: 2, crashes: 0, reruns: 0 })
            const failure = status.history.find(({ move }) => move === "retried")?.failure
            assert.include(failure?.message, `SQLSTATE ${code}`)
          }
        }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)),
      60_000
    )
  }

  it.live("a handler that never looks at its database again has ended with its session all the same", () =>
    Effect.gen(function*() {
      const status = yield* ended(
        yield* world,
        Effect.gen(function*() {
          yield* statement("set local idle_in_transaction_session_timeout = '100ms'")
          yield* Effect.sleep("400 millis")
        })
      )
      assert.deepInclude(status, { state: "completed", attempts: 2, crashes: 0, reruns: 0 })
    }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)))
})

describe("a job that brings its server down", () => {
  it.live(
    "is dead-lettered after five crashes, and its neighbours complete",
    () =>
      Effect.gen(function*() {
        const server = yield* TestServer
        const { inside, jobs } = yield* start(server.url)
        let kills = 0
        const kill = Effect.gen(function*() {
          const pid = yield* backend
          kills++
          process.kill(pid, "SIGKILL")
          // Swallowed: what the handler makes of it changes nothing.
          yield* Effect.ignore(statement("select pg_sleep(5)"))
        })
        yield* inside(JobHandlers.register("Killer", () => kill, { retry }))
        yield* inside(JobHandlers.register("Innocent", () => statement("select pg_sleep(0.05)"), { retry }))
        const waits = {
          while: (error: JobError.SubmitError) => error.isRetryable,
          schedule: Schedule.spaced("50 millis")
        }
        const killer = yield* jobs.submit({ type: "Killer" })
        const innocents: Array<JobId> = []
        while (
          (yield* Effect.result(jobs.status(killer)).pipe(
            Effect.map((found) => found._tag === "Failure" || found.success.state !== "failed")
          ))
        ) {
          innocents.push(yield* Effect.retry(jobs.submit({ type: "Innocent" }), waits))
          yield* Effect.sleep("50 millis")
        }
        const status = yield* jobs.status(killer)
        assert.deepInclude(status, { attempts: 0, crashes: 5 })
        assert.strictEqual(status.failure?.tag, "CrashLoop")
        assert.strictEqual(status.history.filter(({ move }) => move === "crashed").length, 5)
        assert.strictEqual(kills, 5)
        for (const id of innocents) yield* jobs.await(id)
      }).pipe(Effect.scoped, quiet, Effect.provide(TestServer.layerWith({ synchronous_commit: "on" }))),
    90_000
  )

  it.live(
    "is dead-lettered after five crashes when it kills its backend inside a savepoint",
    () =>
      Effect.gen(function*() {
        const server = yield* TestServer
        const { inside, jobs } = yield* start(server.url)
        let kills = 0
        const kill = Effect.gen(function*() {
          const pid = yield* backend
          kills++
          process.kill(pid, "SIGKILL")
          yield* statement("select pg_sleep(5)")
        })
        const nested = Effect.flatMap(SqlClient, (sql) => sql.withTransaction(kill))
        yield* inside(JobHandlers.register("Killer", () => nested, { retry }))
        const id = yield* jobs.submit({ type: "Killer" })
        yield* until(
          Effect.map(Effect.option(jobs.status(id)), (found) => Option.isSome(found) && found.value.state === "failed")
        )
        assert.deepInclude(yield* jobs.status(id), { attempts: 0, crashes: 5 })
        assert.strictEqual(kills, 5)
      }).pipe(Effect.scoped, quiet, Effect.provide(TestServer.layerWith({ synchronous_commit: "on" }))),
    90_000
  )

  it.live("is dead-lettered after five crashes when it kills its backend inside COMMIT", () =>
    Effect.gen(function*() {
      const server = yield* TestServer
      const { inside, jobs, sql } = yield* start(server.url)
      yield* sql`create table killers (pid int)`
      yield* sql`create function kill_backend() returns trigger language plpgsql as $$
        begin perform pg_sleep(0.3); perform pg_sleep(60); return null; end $$`
      yield* sql`create constraint trigger kills after insert on killers deferrable initially deferred
        for each row execute function kill_backend()`
      let kills = 0
      const handler = Effect.gen(function*() {
        const pid = yield* backend
        yield* statement("insert into killers values (1)")
        kills++
        yield* Effect.forkDetach(Effect.delay(Effect.sync(() => process.kill(pid, "SIGKILL")), "200 millis"))
      })
      yield* inside(JobHandlers.register("Killer", () => handler, { retry }))
      const id = yield* jobs.submit({ type: "Killer" })
      yield* until(
        Effect.map(Effect.option(jobs.status(id)), (found) => Option.isSome(found) && found.value.state === "failed")
      )
      assert.deepInclude(yield* jobs.status(id), { attempts: 0, crashes: 5 })
      assert.strictEqual(kills, 5)
    }).pipe(Effect.scoped, quiet, Effect.provide(TestServer.layerWith({ synchronous_commit: "on" }))), 90_000)
})

describe("reruns", () => {
  it.live("are bounded, durable, logged with the server's words and shown by status", () =>
    Effect.gen(function*() {
      const log = recordLog()
      const id = yield* Effect.gen(function*() {
        const { inside, jobs } = yield* start(yield* databaseUrl)
        let runs = 0
        const handler = () => Effect.andThen(Effect.sync(() => ++runs), raise("40001"))
        yield* inside(JobHandlers.register("Full", handler, { retry: RetryPolicy.delays([0]) }))
        const id = yield* jobs.submit({ type: "Full" })
        yield* Effect.exit(jobs.await(id))
        const status = yield* jobs.status(id)
        assert.deepInclude(status, { state: "failed", attempts: 2, reruns: 2 * attemptEvery, crashes: 0 })
        assert.strictEqual(runs, 2 * attemptEvery)
        return id
      }).pipe(Effect.scoped, Effect.provide(log.layer))
      const lines = log.lines.filter(({ annotations }) => annotations["event"] === "job.rerun")
      assert.strictEqual(lines.length, 2 * (attemptEvery - 1))
      assert.deepInclude(lines[0]?.annotations, { jobId: id, jobType: "Full", end: "conflict", counts: "rerun" })
      assert.include(String(lines[0]?.annotations["because"]), "raised")
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layerDatabase)))

  it.live("survive a change of owner: the next one goes on counting", () =>
    Effect.gen(function*() {
      const status = yield* interrupted(2)
      assert.deepInclude(status, { attempts: 0, crashes: 0, reruns: 2 })
      assert.deepStrictEqual(
        status.history.map(({ move }) => move),
        ["submitted", "started", "interrupted", "started", "interrupted"]
      )
    }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)), 60_000)
})

describe("countsAs", () => {
  it("makes every twentieth rerun an attempt, and nothing else", () => {
    assert.strictEqual(countsAs("conflict", attemptEvery - 2), "rerun")
    assert.strictEqual(countsAs("conflict", attemptEvery - 1), "attempt")
    assert.strictEqual(countsAs("interrupted", 2 * attemptEvery - 1), "attempt")
    assert.strictEqual(countsAs("crashed", attemptEvery - 1), "crash")
  })

  it("lets a job wait the longer the more often its runs were broken off, and not for an interrupted one", () => {
    assert.isAbove(pauseMs("unable", 3), pauseMs("unable", 1))
    assert.isAtMost(pauseMs("unable", 19), 2_000)
    assert.isAtMost(pauseMs("crashed", 4), 5_000)
    assert.strictEqual(pauseMs("interrupted", 3), 0)
  })
})

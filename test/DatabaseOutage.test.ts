/**
 * Guarantee 1 when the database lacks something: it is away for a while, full, out of connections, a standby, or too slow. Jobs wait, burn no
 * attempt where the fault is not theirs, and go on by themselves.
 */
import type { PgClient } from "@effect/sql-pg/PgClient"
import * as PgConnection from "@effect/sql-pg/PgConnection"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import { CurrentJob } from "../src/CurrentJob.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Postgres from "../src/Postgres.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { fatesOf, untilFinal } from "./utils/child.ts"
import { databaseUrl, TestDatabase, TestServer } from "./utils/database.ts"
import { untilWaiting } from "./utils/holds.ts"
import { recordLog } from "./utils/logged.ts"
import { startProgram } from "./utils/programs.ts"
import { makeStops, until } from "./utils/runtime.ts"
import { tcpProxy } from "./utils/tcpProxy.ts"
import { assertEachOnce, quiet, retry, start, Turned, Write } from "./utils/trouble.ts"

/** A queue of its own, so that nothing of this stands in the way of the others. */
const elsewhere = { queue: "default" } as const

/** Writes to these tables fail like this while the table `public.trouble` has a row. */
const makeTrouble = (sql: PgClient, sqlState: string, tables: ReadonlyArray<string>) =>
  Effect.forEach([
    "create table public.trouble (is_there boolean)",
    `create function public.refuse() returns trigger language plpgsql as $$ begin
       if exists (select from public.trouble) then raise exception 'no room' using errcode = '${sqlState}'; end if;
       return new; end $$`,
    ...tables.map((table) =>
      `create trigger refuse before insert on ${table} for each row execute function public.refuse()`
    ),
    "insert into public.trouble values (true)"
  ], (statement) =>
    sql.unsafe(statement), { discard: true })

describe("the server is away for longer than the locks live", () => {
  it.live(
    "everything is under way, it refuses connections for twenty seconds, and all of it completes once",
    () => {
      const log = recordLog()
      return Effect.gen(function*() {
        const server = yield* TestServer
        const { inside, jobs, nextTurn, sql } = yield* start(server.url)
        let alone = 0
        yield* inside(JobHandlers.register("Alone", () => Effect.sync(() => ++alone), { transaction: "none", retry }))
        const turned = yield* jobs.submit(Turned.request(undefined))
        const first = yield* nextTurn
        const { jobIds: delayed } = yield* jobs.submit([Write.request({}, { delay: "5 seconds" })])
        const cancelled = yield* jobs.submit(Write.request({}, { delay: "1 day" }))
        const waiting = yield* Effect.forkScoped(
          Effect.retry(jobs.await(turned), { while: ({ _tag }) => _tag === "StoreUnavailable" })
        )
        yield* server.stop("fast")
        const isRetryable = ({ isRetryable }: { readonly isRetryable: boolean }) => isRetryable
        const again = { while: isRetryable, schedule: Schedule.spaced("100 millis") }
        const submitting = yield* Effect.forkScoped(
          Effect.retry(jobs.submit(Array.from({ length: 50 }, () => Write.request({}))), again)
        )
        const aside = yield* Effect.forkScoped(Effect.retry(jobs.submit({ type: "Alone", ...elsewhere }), again))
        const cancelling = yield* Effect.forkScoped(Effect.retry(jobs.cancel(cancelled), again))
        assert.isTrue(yield* first.wasInterrupted)
        // How long it is away is what this is about.
        yield* Effect.sleep("20 seconds")
        yield* server.start
        const second = yield* nextTurn
        assert.strictEqual(second.jobId, turned)
        yield* second.go
        yield* Fiber.join(waiting)
        yield* Fiber.join(cancelling)
        const { jobIds } = yield* Fiber.join(submitting)
        yield* assertEachOnce(sql, [turned, ...delayed, ...jobIds])
        const [other, gone] = yield* untilFinal(sql, [yield* Fiber.join(aside), cancelled])
        assert.deepInclude(other, { state: "completed", attempt: 1 })
        assert.deepInclude(gone, { state: "cancelled", attempt: 0 })
        assert.strictEqual(alone, 1)
        yield* until(Effect.sync(() => log.of("answers again").length > 0))
        // What an operator reads of it: one beginning, who is hit, one end, and no stack. Retries would make hundreds of lines.
        assert.strictEqual(log.of("waiting for the database (").length, 1)
        assert.strictEqual(log.of("answers again").length, 1)
        assert.isAtMost(log.of("The lock of").length, 2)
        const others = /waiting for the database|answers again|The lock of|^This process stood still/
        assert.deepStrictEqual(log.lines.filter(({ hasStack, text }) => hasStack || !others.test(text)), [])
      }).pipe(
        Effect.scoped,
        Effect.provide(Layer.merge(TestServer.layerWith({ synchronous_commit: "on" }), log.layer))
      )
    },
    90_000
  )
})

describe("the server does not answer for four seconds", () => {
  it.live("a runner whose locks may be silent for ten keeps them, and what runs goes on", () =>
    Effect.gen(function*() {
      const proxy = yield* tcpProxy(yield* databaseUrl)
      const started = yield* Deferred.make<void>()
      const go = yield* Deferred.make<void>()
      let interrupted = 0
      const { context, jobs } = yield* startProgram(
        JobRuntime.layerCluster({ host: "127.0.0.1", port: 0, timing: { lockExpiration: "30 seconds" } }).pipe(
          Layer.provideMerge(Postgres.layer({ url: proxy.url }))
        )
      )
      const wait = Effect.andThen(Deferred.succeed(started, undefined), Deferred.await(go))
      yield* JobHandlers.register(
        "Wait",
        () => Effect.onInterrupt(wait, () => Effect.sync(() => ++interrupted)),
        { transaction: "none", retry }
      ).pipe(Effect.provide(context))
      const jobId = yield* jobs.submit({ type: "Wait" })
      yield* Deferred.await(started)
      yield* proxy.stall
      // How long it is silent is what this is about.
      yield* Effect.sleep("4 seconds")
      yield* proxy.resume
      yield* jobs.status(jobId)
      assert.strictEqual(interrupted, 0)
      yield* Deferred.succeed(go, undefined)
      yield* jobs.await(jobId)
      const { attempts } = yield* jobs.status(jobId)
      assert.strictEqual(attempts, 1)
    }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layer)), 30_000)
})

describe("the server has no room (53100)", () => {
  it.live("for what a handler writes: its attempt runs again after a while, is not counted, and completes when there is room", () =>
    Effect.gen(function*() {
      const { inside, jobs, sql } = yield* start(yield* databaseUrl)
      yield* makeTrouble(sql, "53100", ["public.rows"])
      let attempts = 0
      const write = Effect.gen(function*() {
        attempts++
        const client = yield* SqlClient
        const { attempt, jobId } = yield* CurrentJob
        yield* client`insert into public.rows (job_id, attempt, pid) values (${jobId}, ${attempt}, 1)`
      })
      // A typed error of the handler's own, made of the database's, is still the database's.
      yield* inside(JobHandlers.register("Writes", () => Effect.mapError(write, () => "could not save"), { retry }))
      yield* inside(JobHandlers.register("Grouped", () => write, { retry, transaction: "grouped" }))
      const { jobIds } = yield* jobs.submit([
        { type: "Writes", ...elsewhere },
        { type: "Grouped", ...elsewhere },
        { type: "Grouped", ...elsewhere }
      ])
      yield* until(Effect.sync(() => attempts >= 9))
      for (const fate of yield* fatesOf(sql, jobIds)) {
        assert.deepInclude(fate, { state: "live", attempt: 0, crashes: 0 })
      }
      yield* sql`delete from public.trouble`
      yield* assertEachOnce(sql, jobIds)
      for (const id of jobIds) {
        const { history, reruns } = yield* jobs.status(id)
        assert.isAtLeast(reruns, 2)
        assert.strictEqual(history.filter(({ move }) => move === "interrupted").length, reruns)
      }
    }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)))

  it.live("for outcomes and submissions: what has ended waits to be written, submitting fails as unavailable, and both work later", () =>
    Effect.gen(function*() {
      const { inside, jobs, sql } = yield* start(yield* databaseUrl)
      let ended = 0
      const handler = () => Effect.sync(() => ++ended)
      yield* inside(JobHandlers.register("Ends", handler, { retry }))
      const { jobIds } = yield* jobs.submit(
        Array.from({ length: 5 }, () => ({ type: "Ends", delay: "1 second" as const, ...elsewhere }))
      )
      const transactional = yield* jobs.submit(Write.request({}, { delay: "1 second" }))
      yield* makeTrouble(sql, "53100", ["millrace.finished_jobs", "millrace.jobs"])
      yield* until(Effect.sync(() => ended === 5))
      const refused = yield* Effect.flip(jobs.submit({ type: "Ends" }))
      assert.strictEqual(refused.reason._tag, "StoreUnavailable")
      assert.isTrue(refused.isRetryable)
      yield* sql`delete from public.trouble`
      const fates = yield* untilFinal(sql, jobIds)
      for (const fate of fates) assert.deepInclude(fate, { state: "completed", attempt: 1 })
      yield* assertEachOnce(sql, [transactional])
      assert.strictEqual(ended, 5)
      yield* jobs.await(yield* jobs.submit({ type: "Ends", ...elsewhere }))
    }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)))
})

describe("the database only reads (25006), as after a failover to a standby", () => {
  it.live(
    "jobs and submissions wait, no attempt is counted, and all complete when it takes writes",
    () =>
      Effect.gen(function*() {
        const { name } = yield* TestDatabase
        const { jobs, nextTurn, sql } = yield* start(yield* databaseUrl)
        const setReadOnly = (value: "on" | "off") =>
          Effect.andThen(
            sql.unsafe(`alter database ${name} set default_transaction_read_only = ${value}`),
            // What is connected does not hear of it.
            sql`select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = ${name} and pid <> pg_backend_pid()`
          )
        const turned = yield* jobs.submit(Turned.request(undefined))
        yield* nextTurn
        const { jobIds } = yield* jobs.submit(Array.from({ length: 5 }, () => Write.request({}, { delay: "1 second" })))
        yield* setReadOnly("on")
        const refused = yield* Effect.flip(jobs.submit(Write.request({})))
        assert.strictEqual(refused.reason._tag, "StoreUnavailable")
        yield* setReadOnly("off")
        const second = yield* nextTurn
        assert.strictEqual(second.jobId, turned)
        yield* second.go
        yield* assertEachOnce(sql, [turned, ...jobIds])
      }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)),
    60_000
  )

  it.live("a transaction that its handler made read-only counts as an attempt", () =>
    Effect.gen(function*() {
      const { inside, jobs } = yield* start(yield* databaseUrl)
      let attempts = 0
      yield* inside(JobHandlers.register("Writes", () =>
        Effect.gen(function*() {
          const client = yield* SqlClient
          const { attempt, jobId } = yield* CurrentJob
          if (++attempts < 3) yield* client`set transaction read only`
          yield* client`insert into public.rows (job_id, attempt, pid) values (${jobId}, ${attempt}, 1)`
        }), { retry: RetryPolicy.delays([0, 0]) }))
      const id = yield* jobs.submit({ type: "Writes", ...elsewhere })
      yield* jobs.await(id)
      assert.strictEqual(attempts, 3)
      assert.deepInclude(yield* jobs.status(id), { attempts: 3, reruns: 0, crashes: 0 })
    }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)))
})

describe("connections run out", () => {
  it.live("those of the handlers: others wait for one, and what needs none runs, is written down and can be submitted", () =>
    Effect.gen(function*() {
      const { inside, jobs, nextTurn, sql } = yield* start(yield* databaseUrl, { maxConnections: 2 })
      yield* inside(JobHandlers.register("Alone", () => Effect.succeed("done"), { retry }))
      const { jobIds } = yield* jobs.submit(Array.from({ length: 6 }, () => Turned.request(undefined)))
      const holding = [yield* nextTurn, yield* nextTurn]
      const alone = yield* jobs.submit({ type: "Alone", ...elsewhere })
      assert.strictEqual(yield* jobs.await(alone), "done")
      for (const turn of holding) yield* turn.go
      for (let count = 2; count < 6; count++) yield* Effect.flatMap(nextTurn, ({ go }) => go)
      yield* assertEachOnce(sql, jobIds)
    }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)))

  it.live("those of the server (53300): all wait and go on when there are some again", () =>
    Effect.gen(function*() {
      const server = yield* TestServer
      const { jobs, nextTurn, sql } = yield* start(server.url)
      const turned = yield* jobs.submit(Turned.request(undefined))
      yield* nextTurn
      const { jobIds } = yield* jobs.submit(Array.from({ length: 20 }, () => Write.request({}, { delay: "2 seconds" })))
      const crowd = yield* Scope.make()
      const fill = PgConnection.make({ url: Redacted.make(server.url) }).pipe(Scope.provide(crowd), Effect.forever)
      yield* sql`select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'millrace%' and pid <> pg_backend_pid()`
      const full = yield* Effect.flip(Effect.retry(fill, { times: 3 }))
      assert.include(String(full.reason.cause), "too many clients")
      const refused = yield* Effect.flip(jobs.submit(Write.request({})))
      assert.strictEqual(refused.reason._tag, "StoreUnavailable")
      yield* Scope.close(crowd, Exit.void)
      const second = yield* nextTurn
      assert.strictEqual(second.jobId, turned)
      yield* second.go
      yield* assertEachOnce(sql, [turned, ...jobIds])
    }).pipe(Effect.scoped, quiet, Effect.provide(TestServer.layerWith({ max_connections: "50" }))), 60_000)
})

describe("statements take too long, or stand in each other's way", () => {
  it.live("a statement timeout in a handler is its own failure; one of Millrace's own statements is tried again", () =>
    Effect.gen(function*() {
      const options = { startupParameters: { statement_timeout: "300" } }
      const { inside, jobs, sql } = yield* start(yield* databaseUrl, options)
      let attempts = 0
      yield* inside(JobHandlers.register("Slow", () =>
        Effect.gen(function*() {
          const client = yield* SqlClient
          yield* client`select pg_sleep(${++attempts === 1 ? 30 : 0})::text`
        }), { retry: RetryPolicy.delays([0]) }))
      const slow = yield* jobs.submit({ type: "Slow", ...elsewhere })
      yield* jobs.await(slow)
      assert.strictEqual((yield* jobs.status(slow)).attempts, 2)

      yield* inside(JobHandlers.register("Fast", () => Effect.void, { retry }))
      const other = yield* sql.reserve
      const run = (statement: string) => other.executeUnprepared(statement, [], undefined)
      yield* run("begin")
      yield* run("lock table millrace.finished_jobs in share mode")
      const fast = yield* jobs.submit({ type: "Fast", ...elsewhere })
      const write = yield* jobs.submit(Write.request({}))
      yield* untilWaiting(sql, 2)
      // Past the timeout of those that wait now.
      yield* sql`select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`.pipe(
        Effect.delay("500 millis")
      )
      yield* run("commit")
      yield* assertEachOnce(sql, [write])
      assert.deepInclude((yield* untilFinal(sql, [fast]))[0], { state: "completed", attempt: 1 })
    }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)))

  it.live("of two handlers in a deadlock one runs again at once, no attempt counted, and both complete", () =>
    Effect.gen(function*() {
      const { inside, jobs, sql } = yield* start(yield* databaseUrl)
      yield* sql`create table public.accounts (id int primary key, n int not null)`
      yield* sql`insert into public.accounts values (1, 0), (2, 0)`
      const stops = yield* makeStops
      const raise = (id: number) =>
        Effect.flatMap(SqlClient, (client) => client`update public.accounts set n = n + 1 where id = ${id}`)
      yield* inside(JobHandlers.register("Crossing", (payload) => {
        const [first, second] = payload === 1 ? [1, 2] : [2, 1]
        return raise(first).pipe(Effect.andThen(stops.stop(`locked ${first}`)), Effect.andThen(raise(second)))
      }, { retry }))
      const { jobIds } = yield* jobs.submit([1, 2].map((payload) => ({ type: "Crossing", payload, ...elsewhere })))
      yield* stops.arrived("locked 1")
      yield* stops.arrived("locked 2")
      yield* stops.releaseAll
      for (const fate of yield* untilFinal(sql, jobIds)) assert.deepInclude(fate, { state: "completed", attempt: 1 })
      assert.deepStrictEqual(yield* sql`select n from public.accounts`, [{ n: 2 }, { n: 2 }])
    }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)))
})

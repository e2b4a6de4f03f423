/**
 * Attempts whose handlers do not end when they are interrupted: a client without cancellation, a finalizer that hangs.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Schema from "effect/Schema"
import * as SchemaGetter from "effect/SchemaGetter"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import * as CurrentJob from "../src/CurrentJob.ts"
import * as Health from "../src/Health.ts"
import { monotonicMillis } from "../src/internal/time/liveClock.ts"
import * as Job from "../src/Job.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Jobs from "../src/Jobs.ts"
import * as Postgres from "../src/Postgres.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { databaseUrl, TestDatabase, TestServer } from "./utils/database.ts"
import { recordLog } from "./utils/logged.ts"
import { layerRuntime, makeStops, until, untilState } from "./utils/runtime.ts"
import { tcpProxy } from "./utils/tcpProxy.ts"

const One = JobQueue.make("one", { concurrency: 1 })
const Three = JobQueue.make("three", { concurrency: 3 })
const Lines = JobQueue.make("lines", { concurrency: 5, partitionBy: "key", ordered: true })

/** What nothing interrupts, until it is let go. */
const makeHang = Effect.gen(function*() {
  const { promise, resolve } = Promise.withResolvers<void>()
  yield* Effect.addFinalizer(() => Effect.sync(() => resolve()))
  return { hang: Effect.uninterruptible(Effect.promise(() => promise)), letGo: Effect.sync(() => resolve()) }
})

const timedOut = { timeout: "50 millis", retry: RetryPolicy.none } as const

const gauge = (type: string, queue: string) =>
  Effect.gen(function*() {
    const read = (name: string) =>
      Effect.map(Metric.snapshot, (all) => {
        const found = all.find(({ attributes, id }) =>
          id === name && attributes?.["type"] === type && attributes["queue"] === queue
        )
        const state: unknown = found?.state
        return typeof state === "object" && state !== null ? Number(Object.values(state)[0]) : undefined
      })
    return {
      abandoned: yield* read("millrace_attempts_abandoned"),
      running: yield* read("millrace_attempts_abandoned_running")
    }
  })

const quick = { queues: [One, Three, Lines], abandonAfter: "200 millis" } as const

layer(layerRuntime(quick), { excludeTestServices: true })("a handler that does not end", (it) => {
  it.effect("is cancelled though its COMMIT hangs, and nothing of it is there", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* PgClient
      yield* sql`create table public.hangs (id int)`
      yield* sql`create function public.hang() returns trigger language plpgsql as $$ begin perform pg_sleep(60); return null; end $$`
      yield* sql`create constraint trigger hangs after insert on public.hangs deferrable initially deferred
        for each row execute function public.hang()`
      yield* JobHandlers.register(
        "commit",
        () => Effect.flatMap(SqlClient, (client) => client`insert into public.hangs values (1)`),
        timedOut
      )
      const id = yield* jobs.submit({ type: "commit", queue: One })
      const waits = sql`select 1 from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()`
      yield* until(Effect.map(waits, (rows) => rows.length > 0))
      yield* jobs.cancel(id)
      assert.strictEqual((yield* jobs.status(id)).state, "cancelled")
      assert.deepStrictEqual(yield* sql`select id from public.hangs`, [])
    }))

  it.effect("whose result never finishes encoding ends with its timeout", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const Endless = Job.make("endless result", {
        queue: One,
        success: Schema.String.pipe(
          Schema.decodeTo(Schema.String, {
            decode: SchemaGetter.passthrough(),
            encode: SchemaGetter.transformEffect(() => Effect.never)
          })
        ),
        ...timedOut
      })
      yield* Layer.build(Endless.toLayer(() => Effect.succeed("done")))
      const id = yield* jobs.submit(Endless.request(undefined))
      yield* untilState(id, "failed")
      assert.strictEqual((yield* jobs.status(id)).failure?.tag, "JobTimeout")
    }))

  it.effect("has committed where only its afterCommit callback hangs, and gives its place to the next job", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      yield* JobHandlers.register("callback", () =>
        Effect.gen(function*() {
          const sql = yield* SqlClient
          yield* sql`select 1`
          yield* sql.afterCommit(Effect.never)
        }), timedOut)
      yield* JobHandlers.register("next", () => Effect.succeed("done"))
      const first = yield* jobs.submit({ type: "callback", queue: One })
      const next = yield* jobs.submit({ type: "next", queue: One })
      assert.strictEqual(yield* jobs.await(next), "done")
      assert.strictEqual((yield* jobs.status(first)).state, "completed")
    }))

  it.effect("is abandoned after its timeout: the attempt fails with JobTimeout and its place is free", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const { hang } = yield* makeHang
      yield* JobHandlers.register("promise", () => hang, { ...timedOut, transaction: "none" })
      yield* JobHandlers.register("after", () => Effect.succeed("ran"))
      const id = yield* jobs.submit({ type: "promise", queue: One })
      const next = yield* jobs.submit({ type: "after", queue: One })
      assert.strictEqual(yield* jobs.await(next), "ran")
      const status = yield* jobs.status(id)
      assert.strictEqual(status.state, "failed")
      assert.strictEqual(status.failure?.tag, "JobTimeout")
    }))

  it.effect("is abandoned when its finalizer hangs, also after it has returned", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const { hang } = yield* makeHang
      const hanging = Effect.addFinalizer(() => hang)
      yield* JobHandlers.register("finalizer", () => Effect.andThen(hanging, Effect.never), timedOut)
      yield* JobHandlers.register("finalizer, returned", () => hanging, timedOut)
      const { jobIds } = yield* jobs.submit([
        { type: "finalizer", queue: One },
        { type: "finalizer, returned", queue: One }
      ])
      for (const id of jobIds) assert.strictEqual((yield* untilState(id, "failed")).failure?.tag, "JobTimeout")
    }))

  it.effect("is retried by the retry policy, and the history names the run beside which the next one started", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const { hang } = yield* makeHang
      let runs = 0
      yield* JobHandlers.register("again", () => ++runs === 1 ? hang : Effect.succeed("second"), {
        ...timedOut,
        retry: RetryPolicy.delays([0])
      })
      const id = yield* jobs.submit({ type: "again", queue: One })
      assert.strictEqual(yield* jobs.await(id), "second")
      const { history } = yield* jobs.status(id)
      assert.deepStrictEqual(
        history.map(({ alongside, attempt, move }) => [move, attempt, alongside]),
        [
          ["submitted", undefined, undefined],
          ["started", 1, undefined],
          ["retried", 1, undefined],
          ["started", 2, id],
          ["completed", 2, id]
        ]
      )
    }))

  it.effect("loses its session: the pool is whole again, and what it writes later is not there", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* PgClient
      const { hang, letGo } = yield* makeHang
      const late = yield* Deferred.make<Exit.Exit<unknown, unknown>>()
      yield* sql`create table if not exists written (who text)`
      const pids: Array<number> = []
      yield* JobHandlers.register("writes", (payload) =>
        Effect.gen(function*() {
          const own = yield* SqlClient
          yield* own`insert into written values ('before')`
          const [row] = yield* own<{ readonly pid: number }>`select pg_backend_pid() as pid`
          pids.push(row!.pid)
          yield* hang
          const exit = yield* Effect.exit(own`insert into written values ('after')`)
          if (payload === "last") yield* Deferred.succeed(late, exit)
        }).pipe(Effect.uninterruptible), timedOut)
      const payloads = [...Array.from({ length: 11 }, () => "one of many"), "last"]
      for (const payload of payloads) {
        const id = yield* jobs.submit({ type: "writes", queue: Three, payload })
        yield* untilState(id, "failed")
      }
      const alive = sql`select pid from pg_stat_activity where pid = any(${pids}::int[])`
      yield* until(Effect.map(alive, (rows) => rows.length === 0))
      // The pool has ten: each of these has one at the same time as all others.
      const all = yield* Effect.forEach(
        Array.from({ length: 10 }),
        () => sql.withTransaction(Effect.andThen(sql`select pg_sleep(0.05)`, sql`select 1`)),
        { concurrency: "unbounded" }
      )
      assert.strictEqual(all.length, 10)
      yield* letGo
      assert.isTrue(Exit.isFailure(yield* Deferred.await(late)))
      assert.deepStrictEqual(yield* sql`select * from written`, [])
    }))

  it.effect("cannot commit when it returns later", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* PgClient
      yield* sql`create table if not exists committed (who text)`
      const { hang, letGo } = yield* makeHang
      const ended = yield* Deferred.make<void>()
      const returns = (write: boolean) =>
        Effect.gen(function*() {
          const own = yield* SqlClient
          if (write) yield* own`insert into committed values ('it')`
          yield* own.afterCommit(Effect.die("afterCommit of an abandoned run"))
          yield* hang
        }).pipe(Effect.uninterruptible, Effect.ensuring(Deferred.succeed(ended, undefined)))
      yield* JobHandlers.register("returns", (payload) => returns(payload === "writes"), timedOut)
      const { jobIds } = yield* jobs.submit([
        { type: "returns", queue: Three, payload: "writes" },
        { type: "returns", queue: Three, payload: "nothing" }
      ])
      for (const id of jobIds) yield* untilState(id, "failed")
      yield* letGo
      yield* Deferred.await(ended)
      yield* until(Effect.map(gauge("returns", "three"), ({ running }) => running === 0))
      for (const id of jobIds) {
        const { history, state } = yield* jobs.status(id)
        assert.strictEqual(state, "failed")
        assert.deepStrictEqual(history.map(({ move }) => move), ["submitted", "started", "dead-lettered"])
      }
      assert.deepStrictEqual(yield* sql`select * from committed`, [])
    }))

  it.effect("loses the transaction that it has opened by itself, without one of its job", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* PgClient
      yield* sql`create table if not exists own (who text)`
      const { hang, letGo } = yield* makeHang
      const ended = yield* Deferred.make<Exit.Exit<unknown, unknown>>()
      let pid = 0
      yield* JobHandlers.register("own", () =>
        sql.withTransaction(Effect.gen(function*() {
          yield* sql`insert into own values ('it')`
          const [row] = yield* sql<{ readonly pid: number }>`select pg_backend_pid() as pid`
          pid = row!.pid
          yield* hang
        })).pipe(Effect.uninterruptible, Effect.onExit((exit) => Deferred.succeed(ended, exit))), {
        ...timedOut,
        transaction: "none"
      })
      yield* untilState(yield* jobs.submit({ type: "own", queue: One }), "failed")
      yield* until(Effect.map(sql`select from pg_stat_activity where pid = ${pid}`, (rows) => rows.length === 0))
      yield* letGo
      assert.isTrue(Exit.isFailure(yield* Deferred.await(ended)))
      assert.deepStrictEqual(yield* sql`select * from own`, [])
    }))

  it.effect("loses the sessions of a statement and of a reserved connection that nothing interrupts", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* PgClient
      const { hang } = yield* makeHang
      const statement = Effect.uninterruptible(sql`select pg_sleep(600), 'abandoned'`)
      const reserved = Effect.gen(function*() {
        const connection = yield* sql.reserve
        yield* connection.execute("select 'abandoned'", [], undefined)
        yield* hang
      }).pipe(Effect.scoped, Effect.uninterruptible)
      const options = { ...timedOut, transaction: "none" } as const
      yield* JobHandlers.register("statement", () => statement, options)
      yield* JobHandlers.register("reserved", () => reserved, options)
      for (const type of ["statement", "reserved"]) {
        yield* untilState(yield* jobs.submit({ type, queue: Three }), "failed")
      }
      const left = sql`select from pg_stat_activity where query like '%''abandoned''%' and pid <> pg_backend_pid()`
      yield* until(Effect.map(left, (rows) => rows.length === 0))
    }))

  it.effect("is abandoned after a cancel, and its job is cancelled", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const { hang } = yield* makeHang
      const stops = yield* makeStops
      yield* JobHandlers.register("cancelled", () => Effect.andThen(stops.stop("begun"), hang))
      const id = yield* jobs.submit({ type: "cancelled", queue: One })
      yield* stops.arrived("begun")
      yield* stops.releaseAll
      yield* jobs.cancel(id)
      assert.strictEqual((yield* jobs.status(id)).state, "cancelled")
    }))

  it.effect("lets the others of its grouped transaction run again, alone, and commits nothing", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* PgClient
      yield* sql`create table if not exists grouped (who text)`
      const { hang } = yield* makeHang
      const options = { ...timedOut, transaction: "grouped" } as const
      yield* JobHandlers.register(
        "grouped",
        (payload) => Effect.flatMap(SqlClient, (own) => own`insert into grouped values (${String(payload)})`),
        {
          transaction: "grouped"
        }
      )
      yield* JobHandlers.register(
        "grouped, hangs",
        () => Effect.flatMap(SqlClient, (own) => Effect.andThen(own`insert into grouped values ('hangs')`, hang)),
        options
      )
      const { jobIds } = yield* jobs.submit([
        ...Array.from({ length: 10 }, (_, index) => ({ type: "grouped", queue: Three, payload: String(index) })),
        { type: "grouped, hangs", queue: Three },
        ...Array.from({ length: 10 }, (_, index) => ({ type: "grouped", queue: Three, payload: String(10 + index) }))
      ])
      yield* Effect.forEach(jobIds, (id, index) => index === 10 ? untilState(id, "failed") : jobs.await(id))
      const rows = yield* sql<{ readonly who: string }>`select who from grouped`
      assert.deepStrictEqual(
        rows.map(({ who }) => Number(who)).toSorted((left, right) => left - right),
        Array.from({ length: 20 }, (_, index) => index)
      )
    }))

  it.effect("holds its key for as long again, and no longer than it runs; the next job of the key says beside which run it started", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const { hang, letGo } = yield* makeHang
      const seen: Array<unknown> = []
      yield* JobHandlers.register("line", (payload) =>
        Effect.suspend(() => {
          seen.push(payload)
          return payload === "hangs" ? hang : Effect.void
        }), timedOut)
      const submitted = yield* jobs.submit(
        ["hangs", "second", "third"].map((payload) => ({ type: "line", queue: Lines, key: "k", payload }))
      )
      const [first, second, third] = submitted.jobIds
      const failed = yield* untilState(first!, "failed")
      assert.deepStrictEqual(seen, ["hangs"])
      yield* jobs.await(second!)
      yield* letGo
      yield* jobs.await(third!)
      const started = (id: typeof first) =>
        Effect.map(jobs.status(id!), ({ history }) => history.find(({ move }) => move === "started"))
      const beside = yield* started(second)
      assert.strictEqual(beside?.alongside, first)
      assert.isAtLeast(beside!.at, failed.endedAt! + 150)

      // One that ends frees its key at once.
      const { hang: brief, letGo: end } = yield* makeHang
      yield* JobHandlers.register("brief", (payload) => payload === "hangs" ? brief : Effect.void, timedOut)
      const again = yield* jobs.submit(
        ["hangs", "next"].map((payload) => ({ type: "brief", queue: Lines, key: "brief", payload }))
      )
      yield* untilState(again.jobIds[0]!, "failed")
      yield* end
      yield* jobs.await(again.jobIds[1]!)
      assert.isUndefined((yield* started(again.jobIds[1]))?.alongside)
    }))

  it.effect("commits nothing without a transaction, reports no progress, and is counted out when it ends", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const { hang, letGo } = yield* makeHang
      yield* JobHandlers.register("counted", () =>
        Effect.gen(function*() {
          const { progress } = yield* CurrentJob.CurrentJob
          yield* hang
          yield* progress(0.5)
        }).pipe(Effect.uninterruptible), { ...timedOut, transaction: "none" })
      const id = yield* jobs.submit({ type: "counted", queue: Three })
      yield* untilState(id, "failed")
      assert.deepStrictEqual(yield* gauge("counted", "three"), { abandoned: 1, running: 1 })
      yield* letGo
      yield* until(Effect.map(gauge("counted", "three"), ({ running }) => running === 0))
      assert.strictEqual((yield* jobs.status(id)).state, "failed")
    }))
})

describe("Health", () => {
  it.live(
    "names the types of abandoned handlers, and is not live once three times the concurrency of a queue still run",
    () =>
      Effect.gen(function*() {
        const log = recordLog()
        const context = yield* Effect.provide(Layer.build(layerRuntime(quick)), log.layer)
        const jobs = Context.get(context, Jobs.Jobs)
        const health = Context.get(context, Health.Health)
        const { hang, letGo } = yield* makeHang
        yield* JobHandlers.register("SendMail", () => hang, timedOut).pipe(Effect.provide(context))
        const abandon = Effect.flatMap(jobs.submit({ type: "SendMail", queue: One }), (id) =>
          Effect.provide(untilState(id, "failed"), context))
        yield* abandon
        yield* abandon
        const before = yield* health.status
        assert.deepInclude(before, { state: "running", isLive: true, isReady: true })
        assert.match(before.reasons.join("\n"), /2 abandoned handlers of SendMail of the queue one still run/)
        yield* abandon
        const stuck = yield* health.status
        assert.deepInclude(stuck, { isLive: false, isReady: false })
        assert.match(stuck.reasons.join("\n"), /queue one .* a restart/)
        assert.strictEqual(log.of("Attempt abandoned").length, 3)
        yield* letGo
        yield* until(Effect.map(health.status, ({ isLive, reasons }) =>
          isLive && reasons.length === 0))
      }).pipe(Effect.scoped),
    60_000
  )
})

/** Closes a scope; answers how many milliseconds it took. */
const closing = (scope: Scope.Closeable) =>
  Effect.gen(function*() {
    const begunAt = monotonicMillis()
    yield* Scope.close(scope, Exit.void)
    return monotonicMillis() - begunAt
  })

const graceMs = 500

describe("a runtime that closes", () => {
  const programs = Effect.fnUntraced(function*(url: string) {
    const stops = yield* makeStops
    const { hang } = yield* makeHang
    const scope = yield* Scope.fork(yield* Effect.scope)
    let begun = 0
    const handlers = (["none", "job", "grouped"] as const).map((transaction) =>
      Layer.effectDiscard(
        JobHandlers.register(
          transaction,
          () =>
            Effect.gen(function*() {
              const sql = yield* SqlClient
              if (transaction !== "none") yield* sql`select 1`
              begun++
              return yield* hang
            }),
          { transaction }
        )
      )
    )
    const [first, ...others] = handlers
    // One above the other: they close one after another.
    const worker = others.reduce(
      (below, next) => Layer.provideMerge(next, below),
      Layer.provideMerge(
        first!,
        JobRuntime.layer({ queues: [Three, One], gracePeriod: graceMs }).pipe(
          Layer.provideMerge(Postgres.layer({ url, maxConnections: 5 }))
        )
      )
    )
    const context = yield* Layer.build(Layer.fresh(worker)).pipe(Scope.provide(scope))
    const { jobIds } = yield* Context.get(context, Jobs.Jobs).submit([
      { type: "none", queue: One },
      { type: "job", queue: Three },
      { type: "grouped", queue: Three }
    ])
    yield* until(Effect.sync(() => begun === 3))
    return { scope, stops, jobIds }
  })

  it.live(
    "ends within its grace period and 5 seconds though no handler ends, and leaves their jobs to its successor",
    () =>
      Effect.gen(function*() {
        const url = yield* databaseUrl
        const { jobIds, scope } = yield* programs(url)
        assert.isBelow(yield* closing(scope), graceMs + 5_000)
        const sql = yield* PgClient
        const [partition] = yield* sql`select count(*)::int as owned from millrace.partitions where owner is not null`
        assert.deepStrictEqual(partition, { owned: 0 })
        const successor = yield* Layer.build(
          Layer.fresh(
            JobRuntime.layer({ queues: [Three, One], gracePeriod: 0 }).pipe(Layer.provide(Postgres.layer({ url })))
          )
        )
        yield* Effect.forEach(
          ["none", "job", "grouped"],
          (type) => JobHandlers.register(type, () => Effect.succeed(type)).pipe(Effect.provide(successor))
        )
        const jobs = Context.get(successor, Jobs.Jobs)
        for (const id of jobIds) {
          yield* jobs.await(id)
          assert.strictEqual((yield* jobs.status(id)).attempts, 1)
        }
      }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)),
    60_000
  )

  it.live("ends as soon when its database does not answer", () =>
    Effect.gen(function*() {
      const proxy = yield* tcpProxy(yield* databaseUrl)
      const { scope } = yield* programs(proxy.url)
      yield* proxy.stall
      assert.isBelow(yield* closing(scope), graceMs + 5_000)
      yield* proxy.cut
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layerDatabase)), 60_000)

  it.live("ends as soon when its database is away", () =>
    Effect.gen(function*() {
      const server = yield* TestServer
      const { scope } = yield* programs(server.url)
      yield* server.stop("immediate")
      assert.isBelow(yield* closing(scope), graceMs + 5_000)
    }).pipe(Effect.scoped, Effect.provide(TestServer.layer)), 60_000)
})

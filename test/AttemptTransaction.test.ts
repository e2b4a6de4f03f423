/**
 * The transaction of an attempt, opened by hand: to the handler's code it is one of `withTransaction`.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as References from "effect/References"
import * as Schema from "effect/Schema"
import { BeginTransaction, SqlClient } from "effect/sql/SqlClient"
import * as SqlResolver from "effect/sql/SqlResolver"
import * as CurrentJob from "../src/CurrentJob.ts"
import { LongTransaction } from "../src/internal/sql/transact.ts"
import * as Standstill from "../src/internal/time/standstill.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import type { JobId } from "../src/JobId.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as Jobs from "../src/Jobs.ts"
import { JobStore } from "../src/JobStore.ts"
import * as Postgres from "../src/Postgres.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { makeDatabase } from "./utils/database.ts"
import { makeBusinessTable } from "./utils/holds.ts"
import { layerPostgres } from "./utils/partitions.ts"
import { failureOf, makeStops, until } from "./utils/runtime.ts"

const Ten = JobQueue.make("ten", { concurrency: 10 })

const register = <R>(type: string, handler: (payload: unknown) => Effect.Effect<unknown, unknown, R>) =>
  JobHandlers.register(type, handler, { retry: RetryPolicy.none })

/** Submits one and waits for its end. */
const run = Effect.fnUntraced(function*(type: string, payload?: unknown) {
  const jobs = yield* Jobs.Jobs
  return yield* Effect.exit(jobs.await(yield* jobs.submit({ type, payload, queue: Ten })))
})

const write = (id: string) => Effect.flatMap(SqlClient, (sql) => sql`insert into public.business (id) values (${id})`)

/** What is committed, of the rows whose id begins so. */
const written = (prefix: string) =>
  Effect.gen(function*() {
    const sql = yield* PgClient
    const rows = yield* sql<{ readonly id: string }>`
      select id from public.business where starts_with(id, ${prefix}) order by id`
    return rows.map(({ id }) => id.slice(prefix.length))
  })

const tests = Layer.effectDiscard(Effect.flatMap(PgClient, makeBusinessTable)).pipe(
  Layer.provideMerge(layerPostgres({ queues: [Ten] })),
  Layer.provideMerge(Reactivity.layer)
)

layer(tests, { excludeTestServices: true })("in a handler", (it) => {
  // ------------------------------------------------------------------------------------------------ nested transactions

  it.effect("a nested transaction that fails rolls back itself and what is nested in it, and nothing else", () =>
    Effect.gen(function*() {
      yield* register("nested", () =>
        Effect.gen(function*() {
          const sql = yield* SqlClient
          // The first statement of the job is in a nested one that fails.
          yield* failureOf(sql.withTransaction(Effect.andThen(write("nested 1 lost"), Effect.fail("no"))))
          yield* write("nested 2")
          yield* failureOf(sql.withTransaction(Effect.gen(function*() {
            yield* write("nested 3 lost")
            yield* sql.withTransaction(write("nested 4 lost"))
            return yield* Effect.fail("no")
          })))
          yield* sql.withTransaction(Effect.gen(function*() {
            yield* write("nested 5")
            yield* failureOf(sql.withTransaction(Effect.andThen(write("nested 6 lost"), write("nested 2"))))
            yield* sql.withTransaction(write("nested 7"))
          }))
          // A statement that failed, also by interruption, broke only its own savepoint.
          yield* failureOf(sql.withTransaction(sql`select 1 / 0`))
          const slow = sql.withTransaction(Effect.andThen(write("nested 8 lost"), sql`select pg_sleep(60)`))
          yield* Effect.timeoutOption(slow, "50 millis")
          yield* write("nested 9")
        }))
      assert.isTrue(Exit.isSuccess(yield* run("nested")))
      assert.deepStrictEqual(yield* written("nested "), ["2", "5", "7", "9"])
    }))

  it.effect("a statement that the server refuses leaves a dead letter that says why", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      yield* register("no such column", () =>
        Effect.flatMap(SqlClient, (sql) => sql`select nowhere from public.business`))
      const id = yield* jobs.submit({ type: "no such column", queue: Ten })
      yield* Effect.exit(jobs.await(id))
      const { failure } = yield* jobs.status(id)
      assert.strictEqual(failure?.tag, "SqlError")
      assert.strictEqual(failure?.message, `column "nowhere" does not exist (SQLSTATE 42703)`)
    }))

  it.effect("a transaction that is held for long is told of, with the job; a shorter one is not, nor a handler without one, nor one cut short", () =>
    Effect.gen(function*() {
      const told: Array<string> = []
      const isWritten = Latch.makeUnsafe(false)
      const logger = Logger.make(({ fiber, message }) => {
        const annotations = fiber.getRef(References.CurrentLogAnnotations)
        if (!String(message).includes("was open for")) return
        assert.include(String(message), `The transaction of a job of type ${String(annotations["jobType"])} was open`)
        told.push(String(annotations["jobType"]))
      })
      // From no time on, or from longer than the test takes.
      const telling = (fromMs: number) =>
        Effect.provide(Layer.mergeAll(Logger.layer([logger]), Layer.succeed(LongTransaction, fromMs)))
      yield* Effect.gen(function*() {
        yield* register("long write", () => write("long"))
        yield* register("long failure", () => Effect.andThen(write("never"), Effect.fail("no")))
        yield* register("no statement", () => Effect.void)
        // Its end says nothing about how it is written.
        yield* register("cut short", () => Effect.andThen(write("cut"), Effect.andThen(isWritten.open, Effect.never)))
      }).pipe(telling(0))
      yield* register("short write", () => write("short")).pipe(telling(600_000))
      // All of the time it was the process that did nothing.
      const stoodStill = { ...Standstill.make(100), stoodSince: () => 600_000 }
      yield* register("stood still", () => write("still")).pipe(
        Effect.provideService(Standstill.Current, stoodStill),
        telling(1)
      )
      const types = ["long write", "long failure", "no statement", "short write", "stood still"]
      // Those of one type are told of once in a minute.
      yield* Effect.forEach([...types, "long failure"], (type) => run(type))
      const { cancel, submit } = yield* Jobs.Jobs
      const id = yield* submit({ type: "cut short", queue: Ten })
      yield* isWritten.await
      yield* cancel(id)
      assert.deepStrictEqual(told, ["long write", "long failure"])
    }))

  it.effect("a fiber whose first statement still waits for a session when its job ends writes nothing, and the session goes back", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const late: Array<Fiber.Fiber<Exit.Exit<unknown, unknown>>> = []
      yield* register("late session", () =>
        Effect.map(
          Effect.forkDetach(Effect.exit(write("session late")), { startImmediately: true }),
          (fiber) => late.push(fiber)
        ))
      const all = Effect.forEach(Array.from({ length: 10 }), () => sql.reserve, { discard: true })
      yield* Effect.scoped(Effect.gen(function*() {
        yield* all
        assert.isTrue(Exit.isSuccess(yield* run("late session")))
      }))
      assert.isTrue(Exit.isFailure(yield* Fiber.join(late[0]!)))
      yield* Effect.scoped(all)
      assert.deepStrictEqual(yield* written("session "), [])
    }))

  it.effect("a transaction of another client, nested in one of the job's, is the other client's", () =>
    Effect.gen(function*() {
      const { url } = yield* makeDatabase
      const other = yield* Effect.map(
        Layer.build(Postgres.layer({ url })),
        (services) => Context.get(services, PgClient)
      )
      yield* other`create table only_here (id text primary key)`
      yield* register("two clients", () =>
        Effect.gen(function*() {
          const sql = yield* SqlClient
          yield* sql.withTransaction(other.withTransaction(other`insert into only_here values ('there')`))
        }))
      assert.isTrue(Exit.isSuccess(yield* run("two clients")))
      assert.deepStrictEqual(yield* other`select id from only_here`, [{ id: "there" }])
    }))

  it.effect("two nested transactions at the same time run one after the other, and only the one that fails is rolled back", () =>
    Effect.gen(function*() {
      const stops = yield* makeStops
      const log: Array<string> = []
      yield* register("two", () =>
        Effect.gen(function*() {
          const sql = yield* SqlClient
          const nested = (name: string, end: Effect.Effect<void, string>) =>
            sql.withTransaction(Effect.gen(function*() {
              log.push(`+${name}`)
              yield* write(`two ${name}`)
              yield* stops.stop(name)
              log.push(`-${name}`)
              yield* end
            }))
          const first = yield* Effect.forkChild(nested("first", Effect.fail("no")), { startImmediately: true })
          yield* stops.arrived("first")
          const second = yield* Effect.forkChild(nested("second", Effect.void), { startImmediately: true })
          // The job's own statements do not wait for either.
          yield* write("two between")
          log.push("between")
          yield* stops.release("first")
          yield* stops.release("second")
          yield* Fiber.await(first)
          yield* Fiber.join(second)
        }))
      assert.isTrue(Exit.isSuccess(yield* run("two")))
      assert.deepStrictEqual(log, ["+first", "between", "-first", "+second", "-second"])
      // What the job wrote while the first was open was in its savepoint.
      assert.deepStrictEqual(yield* written("two "), ["second"])
    }))

  it.effect("a job submitted in a nested transaction that rolls back is gone and never started; one in another runs", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const starts: Array<unknown> = []
      const ids: Array<JobId> = []
      yield* register("child", (payload) => Effect.sync(() => starts.push(payload)))
      yield* register("parent", () =>
        Effect.gen(function*() {
          const sql = yield* SqlClient
          const submit = (payload: string, options = {}) =>
            Effect.map(jobs.submit({ type: "child", payload, queue: Ten, ...options }), (id) => ids.push(id))
          yield* failureOf(sql.withTransaction(Effect.andThen(submit("lost"), Effect.fail("no"))))
          yield* failureOf(sql.withTransaction(Effect.andThen(submit("lost", { dedupeKey: "a" }), Effect.fail("no"))))
          yield* sql.withTransaction(submit("nested", { dedupeKey: "a" }))
          yield* submit("own")
        }))
      assert.isTrue(Exit.isSuccess(yield* run("parent")))
      const [lost, alsoLost, ...kept] = ids
      yield* Effect.forEach(kept, (id) => jobs.await(id))
      yield* run("child", "last")
      for (const id of [lost!, alsoLost!]) assert.strictEqual((yield* failureOf(jobs.status(id)))._tag, "JobNotFound")
      assert.sameMembers(starts, ["nested", "own", "last"])
      assert.strictEqual(starts.length, 3)
    }))

  // ------------------------------------------------------------------------------------------------ after the commit

  it.effect("afterCommit runs once the job is completed and its writes are there, in order, also from a nested transaction", () =>
    Effect.gen(function*() {
      const outside = yield* PgClient
      const store = yield* JobStore
      const told: Array<unknown> = []
      yield* register("after", () =>
        Effect.gen(function*() {
          const sql = yield* SqlClient
          const { jobId } = yield* CurrentJob.CurrentJob
          const tell = (name: string) =>
            sql.afterCommit(
              Effect.gen(function*() {
                const record = Option.getOrThrow(yield* store.find(jobId))
                // No longer in the transaction: a statement of its own is committed by itself.
                yield* outside`insert into public.business (id) values (${`after told ${name}`})`
                told.push([name, record.state, yield* written("after w")])
              }).pipe(Effect.orDie, Effect.provideService(PgClient, outside))
            )
          yield* tell("1")
          yield* write("after w1")
          yield* sql.withTransaction(Effect.andThen(write("after w2"), tell("2")))
          yield* failureOf(sql.withTransaction(Effect.andThen(tell("lost"), Effect.fail("no"))))
          yield* sql.withTransaction(sql.withTransaction(tell("3")))
        }))
      assert.isTrue(Exit.isSuccess(yield* run("after")))
      yield* until(Effect.sync(() => told.length === 3))
      assert.deepStrictEqual(told, ["1", "2", "3"].map((name) => [name, "completed", ["1", "2"]]))
      assert.deepStrictEqual(yield* written("after told "), ["1", "2", "3"])
    }))

  it.effect("afterCommit of a job that sends no statement runs once the job is completed, too", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const store = yield* JobStore
      const seen = yield* Deferred.make<string>()
      yield* register("after nothing", () =>
        Effect.flatMap(CurrentJob.CurrentJob, ({ jobId }) =>
          sql.afterCommit(
            Effect.flatMap(
              Effect.orDie(store.find(jobId)),
              (found) => Deferred.succeed(seen, Option.getOrThrow(found).state)
            )
          )))
      yield* run("after nothing")
      assert.strictEqual(yield* Deferred.await(seen), "completed")
    }))

  for (
    const [what, end] of [
      ["fails", Effect.fail("no")],
      ["dies", Effect.die("no")],
      [
        "cannot commit",
        Effect.flatMap(SqlClient, (sql) => sql`insert into public.business (id, other) values ('orphan', 'nobody')`)
      ],
      ["goes on after a failed statement", Effect.flatMap(SqlClient, (sql) => Effect.ignore(sql`select 1 / 0`))],
      [
        "is superseded",
        Effect.gen(function*() {
          const store = yield* JobStore
          const { jobId } = yield* CurrentJob.CurrentJob
          const { queueId } = yield* store.declareQueue("ten")
          yield* store.refence({ queueId, partition: 0, epoch: 1 }, jobId, 0)
        })
      ]
    ] as const
  ) {
    it.effect(`neither afterCommit nor an invalidation runs when the job ${what}`, () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient
        const reactivity = yield* Reactivity.Reactivity
        const told: Array<string> = []
        let runs = 0
        yield* Effect.acquireRelease(
          Effect.sync(() => reactivity.registerUnsafe([what], () => told.push("invalidated"))),
          (unregister) => Effect.sync(unregister)
        )
        yield* register(what, () =>
          Effect.gen(function*() {
            // Superseded, it runs again, and may end well.
            if (++runs > 1) return
            yield* write(`not told: ${what}`)
            yield* sql.afterCommit(Effect.sync(() => told.push("after commit")))
            yield* sql.withTransaction(sql.afterCommit(Effect.sync(() => told.push("after nested"))))
            yield* Effect.flatMap(Reactivity.Reactivity, (own) => own.invalidate([what]))
            yield* end
          }))
        yield* run(what)
        assert.deepStrictEqual(told, [])
        assert.deepStrictEqual(yield* written(`not told: ${what}`), [])
      }))
  }

  it.effect("what a handler invalidates is invalidated when its writes are there to be read; later at once", () =>
    Effect.gen(function*() {
      const stops = yield* makeStops
      const latch = yield* Latch.make(false)
      const reactivity = yield* Reactivity.Reactivity
      let invalidated = 0
      yield* Effect.acquireRelease(
        Effect.sync(() => reactivity.registerUnsafe(["rows"], () => invalidated++)),
        (unregister) => Effect.sync(unregister)
      )
      const ended = yield* Deferred.make<void>()
      yield* register("reactive", () =>
        Effect.gen(function*() {
          const sql = yield* SqlClient
          const own = yield* Reactivity.Reactivity
          yield* own.mutation(["rows"], write("reactive"))
          yield* sql.withTransaction(own.invalidate(["rows"]))
          yield* latch.await.pipe(
            Effect.andThen(own.invalidate(["rows"])),
            Effect.andThen(Deferred.succeed(ended, undefined)),
            Effect.forkDetach
          )
          yield* stops.stop("written")
        }))
      const running = yield* Effect.forkScoped(run("reactive"))
      yield* stops.arrived("written")
      assert.strictEqual(invalidated, 0)
      yield* stops.releaseAll
      yield* Fiber.join(running)
      assert.deepStrictEqual(yield* written("reactive"), [""])
      yield* until(Effect.sync(() => invalidated === 2))
      // A fiber that outlives its job invalidates by itself.
      yield* latch.open
      yield* Deferred.await(ended)
      assert.strictEqual(invalidated, 3)
    }))

  // ------------------------------------------------------------------------------------------------ requests, begin, outliving

  it.effect("requests of two jobs at the same time do not share a batch across their transactions", () =>
    Effect.gen(function*() {
      const stops = yield* makeStops
      const batches: Array<ReadonlyArray<string>> = []
      const resolver = SqlResolver.void({
        Request: Schema.String,
        execute: (ids) =>
          Effect.gen(function*() {
            const sql = yield* SqlClient
            batches.push(ids)
            return yield* sql`insert into public.business (id) select unnest(${[...ids]}::text[])`
          })
      })
      const insert = SqlResolver.request(resolver)
      yield* register("batched", (payload) =>
        Effect.gen(function*() {
          const name = String(payload)
          // Both are there before either asks.
          yield* stops.stop(name)
          yield* Effect.forEach([1, 2, 3], (n) => insert(`batched ${name} ${n}`), { concurrency: "unbounded" })
          if (payload === "bad") return yield* Effect.fail("no")
        }))
      const good = yield* Effect.forkScoped(run("batched", "good"))
      const bad = yield* Effect.forkScoped(run("batched", "bad"))
      yield* stops.arrived("good")
      yield* stops.arrived("bad")
      yield* stops.releaseAll
      assert.isTrue(Exit.isSuccess(yield* Fiber.join(good)))
      assert.isTrue(Exit.isFailure(yield* Fiber.join(bad)))
      assert.strictEqual(batches.length, 2)
      for (const batch of batches) assert.strictEqual(new Set(batch.map((id) => id.split(" ")[1])).size, 1)
      assert.deepStrictEqual(yield* written("batched "), ["good 1", "good 2", "good 3"])
    }))

  it.effect("a BeginTransaction given where the handler was registered begins the job's transaction, also with a nested one in it", () =>
    Effect.gen(function*() {
      const seen = Effect.gen(function*() {
        const sql = yield* SqlClient
        const level = sql<{ readonly level: string }>`select current_setting('transaction_isolation') as level`
        const [inner] = yield* sql.withTransaction(level)
        const [outer] = yield* level
        return [inner?.level, outer?.level]
      })
      yield* Effect.provideService(
        register("begins", () => seen),
        BeginTransaction,
        "begin isolation level serializable"
      )
      yield* register("begins plainly", () => seen)
      assert.deepStrictEqual(yield* run("begins"), Exit.succeed(["serializable", "serializable"]))
      assert.deepStrictEqual(yield* run("begins plainly"), Exit.succeed(["read committed", "read committed"]))
    }))

  it.effect("a fiber that outlives its job cannot write, not in a nested transaction either, and cannot wait for its commit", () =>
    Effect.gen(function*() {
      const latch = yield* Latch.make(false)
      const outcome = yield* Deferred.make<ReadonlyArray<boolean>>()
      yield* register("outlived", () =>
        Effect.gen(function*() {
          const sql = yield* SqlClient
          yield* write("outlived job")
          yield* latch.await.pipe(
            Effect.andThen(Effect.forEach([
              write("outlived fiber"),
              sql.withTransaction(write("outlived nested")),
              sql.afterCommit(Effect.void)
            ], (one) => Effect.map(Effect.exit(one), Exit.isFailure))),
            Effect.flatMap((failed) => Deferred.succeed(outcome, failed)),
            Effect.forkDetach
          )
        }))
      yield* run("outlived")
      yield* latch.open
      assert.deepStrictEqual(yield* Deferred.await(outcome), [true, true, true])
      assert.deepStrictEqual(yield* written("outlived "), ["job"])
    }))
})

/**
 * Whose failure it was: the job's own transaction's, which costs no attempt, or the handler's, which does. And whose client a handler writes with.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, layer } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { SqlClient } from "effect/sql/SqlClient"
import { ConnectionError, SerializationError, SqlError } from "effect/sql/SqlError"
import * as Job from "../src/Job.ts"
import { Snooze } from "../src/JobError.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as Jobs from "../src/Jobs.ts"
import * as Postgres from "../src/Postgres.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { databaseUrl } from "./utils/database.ts"
import { makeBusinessTable } from "./utils/holds.ts"
import { failureOf, layerRuntime, untilState } from "./utils/runtime.ts"

const Work = JobQueue.make("work")

const runtime = Layer.provideMerge(
  Layer.effectDiscard(Effect.flatMap(PgClient, makeBusinessTable)),
  layerRuntime({ queues: [Work] })
)

const write = (id: string) => Effect.flatMap(SqlClient, (sql) => sql`insert into public.business (id) values (${id})`)

const written = (id: string) =>
  Effect.flatMap(
    SqlClient,
    (sql) => Effect.map(sql`select 1 from public.business where id = ${id}`, ({ length }) => length)
  )

/** The server ends the transaction as it does one that lost against another. */
const conflict = Effect.flatMap(
  SqlClient,
  (sql) => sql.unsafe("do $$ begin raise exception 'lost' using errcode = '40001'; end $$")
)

const elsewhere = { cause: new Error("another database"), message: "another database", operation: "query" }

/** Runs a job of a type of its own, tried once, and says what became of it. */
const outcome = Effect.fnUntraced(function*<R>(
  type: string,
  handler: (run: number) => Effect.Effect<unknown, unknown, R>,
  options: JobHandlers.Options = {}
) {
  const jobs = yield* Jobs.Jobs
  let runs = 0
  yield* JobHandlers.register(type, () => Effect.suspend(() => handler(++runs)), {
    retry: RetryPolicy.none,
    ...options
  })
  const jobId = yield* jobs.submit({ type, queue: Work })
  yield* Effect.exit(jobs.await(jobId))
  const { attempts, state } = yield* jobs.status(jobId)
  return { attempts, runs, state, written: yield* written(type) }
})

layer(runtime, { excludeTestServices: true, timeout: "60 seconds" })("an attempt", (it) => {
  describe("is counted", () => {
    for (
      const [trouble, reason] of [
        ["a lost connection", new ConnectionError(elsewhere)],
        ["a conflict", new SerializationError(elsewhere)]
      ] as const
    ) {
      for (const transaction of ["job", "none"] as const) {
        it.effect(`when ${trouble} of another database fails it, transaction: ${transaction}`, () =>
          Effect.gen(function*() {
            const type = `${trouble} ${transaction}`
            const failing = Effect.fail(new SqlError({ reason }))
            const handler = () => transaction === "job" ? Effect.andThen(write(type), failing) : failing
            assert.deepStrictEqual(yield* outcome(type, handler, { transaction }), {
              attempts: 1,
              runs: 1,
              state: "failed",
              written: 0
            })
          }))
      }
    }

    it.effect("when it fails for a reason of its own after a conflict that it went back from", () =>
      Effect.gen(function*() {
        const handler = () =>
          Effect.gen(function*() {
            const sql = yield* SqlClient
            yield* write("recovered")
            yield* Effect.ignore(sql.withTransaction(conflict))
            return yield* Effect.fail("mine")
          })
        assert.deepInclude(yield* outcome("recovered", handler), { attempts: 1, runs: 1, state: "failed" })
      }))

    it.effect("when the server ended its session and the handler gives that another name", () =>
      Effect.gen(function*() {
        const ended = Effect.flatMap(SqlClient, (sql) => sql`select pg_terminate_backend(pg_backend_pid())`)
        const handler = (run: number) =>
          Effect.andThen(write("closed"), run === 1 ? Effect.mapError(ended, () => "closed") : Effect.void)
        assert.deepStrictEqual(yield* outcome("closed", handler), {
          attempts: 1,
          runs: 1,
          state: "failed",
          written: 0
        })
      }))
  })

  describe("is not counted", () => {
    const conflicts: ReadonlyArray<readonly [string, Effect.Effect<unknown, unknown, SqlClient>]> = [
      ["and the handler fails with it", conflict],
      ["and the handler dies of it", Effect.orDie(conflict)],
      ["and the handler gives it another name", Effect.mapError(conflict, () => "conflicted")],
      [
        "inside a savepoint, and the handler fails with it",
        Effect.flatMap(SqlClient, (sql) => sql.withTransaction(conflict))
      ]
    ]
    for (const [how, failing] of conflicts) {
      it.effect(`when its own transaction lost a conflict ${how}`, () =>
        Effect.gen(function*() {
          const handler = (run: number) => Effect.andThen(write(how), run === 1 ? failing : Effect.void)
          assert.deepStrictEqual(yield* outcome(how, handler), { attempts: 1, runs: 2, state: "completed", written: 1 })
        }))
    }
  })

  it.effect("that asks to be put off after a conflict is put off, and not run again at once", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      yield* JobHandlers.register("Off", () => Effect.mapError(conflict, () => new Snooze({ delay: Duration.days(1) })))
      const jobId = yield* jobs.submit({ type: "Off", queue: Work })
      yield* untilState(jobId, "scheduled")
      yield* jobs.cancel(jobId)
    }))

  it.effect("whose layer was given another client of the same database writes in the job's transaction all the same", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      class Other extends Job.make("Other", { queue: Work, retry: RetryPolicy.none }) {}
      const handler = Other.toLayer(() =>
        Effect.gen(function*() {
          yield* write("by SqlClient")
          const sql = yield* PgClient
          yield* sql`insert into public.business (id) values ('by PgClient')`
          return yield* Effect.die("no")
        })
      )
      yield* Layer.build(Layer.provide(handler, Postgres.layer({ url: yield* databaseUrl })))
      const error = yield* failureOf(Effect.flatMap(jobs.submit(Other.request(undefined)), (id) => jobs.await(id)))
      assert.deepInclude(error, { jobState: "failed" })
      assert.deepStrictEqual([yield* written("by SqlClient"), yield* written("by PgClient")], [0, 0])
    }))

  const cyclic: Record<string, unknown> = { _tag: "Cyclic", n: 1n }
  cyclic["self"] = cyclic
  const throws = (): never => {
    throw new Error("the error's own")
  }
  const throwing = { get: throws }
  const untellable: ReadonlyArray<readonly [string, unknown, string]> = [
    ["holds itself", cyclic, "Cyclic"],
    ["is a BigInt", 1n, "UnknownError"],
    ["throws when it is encoded", { _tag: "Encoded", toJSON: throws }, "Encoded"],
    [
      "throws when it is looked at",
      Object.defineProperties(new Error(), {
        _tag: throwing,
        message: throwing,
        name: throwing,
        stack: throwing,
        errorClass: throwing,
        retryAfter: throwing
      }),
      "UnknownError"
    ]
  ]
  for (const [what, error, tag] of untellable) {
    it.effect(`whose error ${what} is tried again, and becomes a dead letter that says so`, () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const retry = RetryPolicy.fixed(0, { maxAttempts: 2 })
        for (const how of ["fails", "dies"] as const) {
          const failing = how === "fails" ? Effect.fail(error) : Effect.die(error)
          const Untellable = Job.make(`${how}: ${what}`, { queue: Work, error: Schema.Any, retry })
          yield* Layer.build(Untellable.toLayer(() => failing))
          // Of a class that is none, as a caller without types may give.
          const type = `${how}, without a definition: ${what}`
          yield* JobHandlers.register(type, () => failing, { retry, classify: () => "Nonsense" as "System" })
          for (const request of [Untellable.request(undefined), { type, queue: Work }]) {
            const jobId = yield* jobs.submit(request)
            yield* untilState(jobId, "failed")
            const { attempts, failure } = yield* jobs.status(jobId)
            assert.deepInclude({ attempts, tag: failure?.tag }, { attempts: 2, tag })
            assert.include(["System", "Business"], failure?.class)
          }
        }
      }))
  }
})

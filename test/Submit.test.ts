/**
 * Jobs submitted one by one by many fibers at the same time: they travel together, and nobody may be able to tell but by the speed.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import type { SubmitError } from "../src/JobError.ts"
import type { JobId } from "../src/JobId.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Jobs from "../src/Jobs.ts"
import * as Postgres from "../src/Postgres.ts"
import { TestDatabase } from "./utils/database.ts"
import { holdLock, terminate, untilWaiting } from "./utils/holds.ts"
import { failureOf, listen, until } from "./utils/runtime.ts"
import { times } from "./utils/storeFixture.ts"
import { tcpProxy } from "./utils/tcpProxy.ts"

/** The network between the process under test and the database; the test itself has a way of its own. */
class Network extends Context.Service<Network, {
  readonly cut: Effect.Effect<void>
  readonly direct: PgClient
}>()("millrace/test/SubmitNetwork") {}

const clientWith = (options: JobRuntime.Options) =>
  Layer.unwrap(Effect.gen(function*() {
    const { url } = yield* TestDatabase
    const direct = yield* PgClient
    const { cut, url: through } = yield* tcpProxy(url)
    return JobRuntime.layerClient(options).pipe(
      Layer.provideMerge(Postgres.layer({ url: through })),
      Layer.merge(Layer.succeed(Network, { cut, direct }))
    )
  })).pipe(Layer.provideMerge(TestDatabase.layer))

const client = clientWith({})
const impatient = clientWith({ lockTimeout: "200 millis" })

interface Row {
  readonly id: JobId
  readonly type: string
  /** The transaction that stored it. */
  readonly by: string
}

/** What is stored, in the order of `seq`. */
const rows = Effect.flatMap(
  Network,
  ({ direct }) => direct<Row>`select id, type, xmin::text as by from millrace.jobs order by seq`
)

/** Nothing can be stored until `release` runs. */
const lockJobs = Effect.gen(function*() {
  const { direct } = yield* Network
  const session = yield* direct.reserve
  const run = (sql: string) => Effect.asVoid(session.executeUnprepared(sql, [], undefined))
  yield* run("begin")
  yield* run("lock table millrace.jobs in exclusive mode")
  const release = run("commit")
  yield* Effect.addFinalizer(() => Effect.ignore(release))
  return { release }
})

/** Starts a submission and returns when it is under way. */
const begin = Effect.fnUntraced(function*(type: string) {
  const jobs = yield* Jobs.Jobs
  return yield* Effect.forkScoped(jobs.submit({ type }), { startImmediately: true })
})

/**
 * Runs `during` while nothing can be stored: two submissions wait in the database with a statement each, so that what comes now has to
 * wait for its turn. Returns when these two have their answers.
 */
const whileBusy = Effect.fnUntraced(function*<A, E, R>(during: Effect.Effect<A, E, R>) {
  const { direct } = yield* Network
  const { release } = yield* lockJobs
  const first: Array<Fiber.Fiber<JobId, SubmitError>> = []
  for (const count of [1, 2]) {
    first.push(yield* begin("Busy"))
    yield* untilWaiting(direct, count)
  }
  const result = yield* during
  yield* release
  for (const fiber of first) yield* Fiber.join(fiber)
  return result
})

/** Each commit of a job waits until the lock that this returns is released. */
const holdCommits = Effect.gen(function*() {
  const { direct } = yield* Network
  yield* direct`create function public.hold_job() returns trigger language plpgsql set lock_timeout = 0 as
    $$ begin perform pg_advisory_xact_lock_shared(2); return null; end $$`
  yield* direct`create constraint trigger hold after insert on millrace.jobs deferrable initially deferred
    for each row execute function public.hold_job()`
  return yield* holdLock(direct, 2)
})

describe("submissions at the same time", () => {
  it.live("that come while the database is busy are one statement, and their seq follows their arrival", () =>
    Effect.gen(function*() {
      const fibers = yield* whileBusy(Effect.forEach(times(100, String), begin))
      const ids = yield* Effect.forEach(fibers, Fiber.join)
      const stored = (yield* rows).filter(({ type }) => type !== "Busy")
      assert.strictEqual(new Set(stored.map(({ by }) => by)).size, 1)
      assert.deepStrictEqual(stored.map(({ type }) => type), times(100, String))
      assert.deepStrictEqual(stored.map(({ id }) => id), ids)
    }).pipe(Effect.scoped, Effect.provide(client)))

  it.live("one that the database refuses fails alone, the others are stored and told of", () =>
    Effect.gen(function*() {
      const { direct } = yield* Network
      yield* direct`alter table millrace.jobs add constraint no_such_type check (type not like 'Forbidden%')`
      const { heard } = yield* listen({}, ({ type }) => type === "Last")
      const types = [...times(37, (n) => n % 20 === 7 ? `Forbidden ${n}` : `Good ${n}`), "Last"]
      const fibers = yield* whileBusy(Effect.forEach(types, begin))
      for (const [index, fiber] of fibers.entries()) {
        const exit = yield* Fiber.await(fiber)
        if (index % 20 !== 7) {
          assert.isTrue(Exit.isSuccess(exit), types[index])
          continue
        }
        const { reason } = yield* failureOf(exit)
        assert.strictEqual(reason._tag, "Refused")
        assert.include(JSON.stringify(reason), "no_such_type")
      }
      const good = types.filter((type) => !type.startsWith("Forbidden"))
      assert.deepStrictEqual((yield* rows).map(({ type }) => type).filter((type) => type !== "Busy"), good)
      const told = (yield* heard).map(({ type }) => type).filter((type) => type !== "Busy")
      assert.deepStrictEqual(told, good)
    }).pipe(Effect.scoped, Effect.provide(client)))

  it.live("one in a transaction that rolls back is gone, the others are not part of it", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* PgClient
      const start = yield* Latch.make()
      const others = yield* Effect.forEach(times(20, String), (type) =>
        Effect.forkScoped(Effect.andThen(start.await, jobs.submit({ type }))))
      const end = yield* Effect.exit(sql.withTransaction(Effect.gen(function*() {
        yield* start.open
        yield* jobs.submit({ type: "Inside" })
        // They are stored already: they do not wait for this transaction.
        yield* Effect.forEach(others, Fiber.join)
        return yield* Effect.fail("rolled back")
      })))
      assert.deepStrictEqual(end, Exit.fail("rolled back"))
      assert.sameMembers(
        (yield* rows).map(({ type }) =>
          type
        ),
        times(20, String)
      )
    }).pipe(Effect.scoped, Effect.provide(client)))

  it.live("one whose caller is interrupted is stored and told of all the same", () =>
    Effect.gen(function*() {
      const { heard } = yield* listen({ type: "Left" }, () => true)
      yield* whileBusy(Effect.gen(function*() {
        const fiber = yield* begin("Left")
        yield* Fiber.interrupt(fiber)
      }))
      const [event] = yield* heard
      assert.deepStrictEqual(
        (yield* rows).filter(({ type }) => type === "Left").map(({ id }) => id),
        [event?.jobId]
      )
    }).pipe(Effect.scoped, Effect.provide(client)))

  for (const outcome of ["succeeds", "fails"] as const) {
    it.live(`whose connection is lost during a commit that ${outcome} are stored once, and each gets its id`, () =>
      Effect.gen(function*() {
        const { cut, direct } = yield* Network
        const { release } = yield* holdCommits
        const fibers = yield* Effect.forEach(times(3, String), begin)
        const [session] = yield* untilWaiting(direct, 1, "advisory")
        yield* cut
        // Sent again, they wait for their first sending: their ids are in the way.
        yield* untilWaiting(direct, 1, "transactionid")
        if (outcome === "fails") yield* terminate(direct, session!.pid)
        yield* release
        const ids = yield* Effect.forEach(fibers, Fiber.join)
        const stored = yield* rows
        assert.deepStrictEqual(stored.map(({ id, type }) => ({ id, type })), ids.map((id, n) => ({ id, type: `${n}` })))
        assert.strictEqual(new Set(stored.map(({ by }) => by)).size, 1)
      }).pipe(Effect.scoped, Effect.provide(client)))
  }

  it.live("whose answer is lost for good are each told that their own outcome is unknown", () =>
    Effect.gen(function*() {
      const { cut, direct } = yield* Network
      const { release } = yield* holdCommits
      const fibers = yield* Effect.forEach(times(3, String), begin)
      yield* untilWaiting(direct, 1, "advisory")
      yield* cut
      const ids: Array<ReadonlyArray<JobId>> = []
      for (const fiber of fibers) {
        const { isRetryable, reason } = yield* failureOf(Fiber.join(fiber))
        assert.isFalse(isRetryable)
        ids.push(reason._tag === "OutcomeUnknown" ? reason.jobIds : [])
      }
      yield* release
      yield* until(Effect.map(rows, ({ length }) => length === 3))
      assert.deepStrictEqual((yield* rows).map(({ id }) => [id]), ids)
    }).pipe(Effect.scoped, Effect.provide(impatient)))

  it.live("that wait when the runtime stops are answered: unknown what was on its way, not stored what was not", () =>
    Effect.gen(function*() {
      const { direct } = yield* Network
      const database = yield* Layer.build(Postgres.layer({ url: (yield* TestDatabase).url }))
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(
        Layer.fresh(Layer.provide(JobRuntime.layerClient(), Layer.succeedContext(database))),
        scope
      )
      const { submit } = Context.get(context, Jobs.Jobs)
      const { release } = yield* lockJobs
      const fibers: Array<Fiber.Fiber<JobId, SubmitError>> = []
      for (const count of [1, 2, 2]) {
        fibers.push(yield* Effect.forkScoped(submit({ type: "Stopped" }), { startImmediately: true }))
        yield* untilWaiting(direct, count)
      }
      yield* Scope.close(scope, Exit.void)
      const errors = yield* Effect.forEach(fibers, (fiber) => failureOf(Fiber.join(fiber)))
      const tags = [...errors, yield* failureOf(submit({ type: "Late" }))].map(({ reason }) => reason._tag)
      assert.deepStrictEqual(tags, ["OutcomeUnknown", "OutcomeUnknown", "StoreUnavailable", "StoreUnavailable"])
      yield* release
      assert.deepStrictEqual((yield* rows).filter(({ type }) => type === "Late"), [])
    }).pipe(Effect.scoped, Effect.provide(client)))
})

/**
 * What only a database can get wrong: attempts that race to commit, and the transactions of handlers.
 */
import * as Pg from "@effect/sql-pg/PgClient"
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, layer } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as SqlClient from "effect/sql/SqlClient"
import { isSqlError } from "effect/sql/SqlError"
import { CommitFailed } from "../src/JobError.ts"
import type { JobId } from "../src/JobId.ts"
import { JobStore, type Owner, tenantKey } from "../src/JobStore.ts"
import * as PgJobStore from "../src/PgJobStore.ts"
import { TestDatabase } from "./utils/database.ts"
import { holdLock, makeBusinessTable, terminate, untilWaiting } from "./utils/holds.ts"
import { attempted, bury, day, everything, finish, fresh, note, noted, retry, t0 } from "./utils/storeFixture.ts"

const withBusiness = Layer.effectDiscard(Effect.flatMap(PgClient, makeBusinessTable))

const onLazyClient = PgJobStore.layer().pipe(Layer.provideMerge(withBusiness), Layer.provideMerge(TestDatabase.layer))

/** The same store over the client of somebody who gives a plain `PgClient.layer`. */
const onPlainClient = PgJobStore.layer().pipe(
  Layer.provideMerge(withBusiness),
  Layer.provideMerge(Layer.unwrap(Effect.map(TestDatabase, ({ url }) => Pg.layer({ url: Redacted.make(url) })))),
  Layer.provideMerge(TestDatabase.layerDatabase)
)

const insert = (id: string, columns: { readonly hold?: number; readonly other?: string } = {}) =>
  Effect.flatMap(
    PgClient,
    (sql) =>
      sql`insert into public.business (id, hold, other) values (${id}, ${columns.hold ?? null}, ${
        columns.other ?? null
      })`
  )

const businessOf = (id: string) =>
  Effect.map(
    Effect.flatMap(PgClient, (sql) =>
      sql<{ readonly id: string }>`select id from public.business where id like ${`${id}%`} order by id`),
    (rows) =>
      rows.map((row) => row.id)
  )

/** A handler that writes one row, and its completion. */
const attempt = (
  owner: Owner,
  one: { readonly id: JobId; readonly version: number },
  handler: Effect.Effect<unknown, unknown, PgClient>
) =>
  Effect.flatMap(
    JobStore,
    (store) => store.transact(owner, handler, () => Effect.succeed({ settlement: finish(one), now: t0 }))
  )

const tagOf = (exit: Exit.Exit<{ readonly _tag: string }, unknown>) =>
  Exit.isSuccess(exit) ? exit.value._tag : String(exit.cause)

for (const [client, store] of [["the lazy client", onLazyClient], ["a plain client", onPlainClient]] as const) {
  layer(store, { excludeTestServices: true, timeout: "60 seconds" })(`PgJobStore, ${client}`, (it) => {
    describe("transact", () => {
      it.effect("a superseded attempt cannot commit: its successor was first, and only the successor's row is there", () =>
        Effect.gen(function*() {
          const { owner, stateOf, stored, takeOver } = yield* fresh
          const one = yield* stored()
          const reached = yield* Latch.make()
          const go = yield* Latch.make()
          const late = yield* Effect.forkChild(Effect.exit(attempt(
            owner,
            one,
            insert(`${one.id} late`).pipe(Effect.andThen(reached.open), Effect.andThen(go.await))
          )))
          yield* reached.await
          const successor = yield* takeOver()
          assert.strictEqual((yield* attempt(successor, one, insert(`${one.id} successor`)))._tag, "Committed")
          yield* go.open
          assert.strictEqual(tagOf(yield* Fiber.join(late)), "Superseded")
          assert.deepStrictEqual(yield* businessOf(one.id), [`${one.id} successor`])
          assert.strictEqual(yield* stateOf(one.id), "completed")
        }))

      it.effect("a successor that runs what is just being committed loses, and its writes are gone", () =>
        Effect.scoped(Effect.gen(function*() {
          const sql = yield* PgClient
          const { owner, readyIds, stored, takeOver } = yield* fresh
          const one = yield* stored()
          const { release } = yield* holdLock(sql, 1)
          const first = yield* Effect.forkChild(
            Effect.exit(attempt(owner, one, insert(`${one.id} first`, { hold: 1 })))
          )
          yield* untilWaiting(sql)
          const successor = yield* takeOver()
          assert.deepStrictEqual(yield* readyIds(successor), [one.id])
          const second = yield* Effect.forkChild(Effect.exit(attempt(successor, one, insert(`${one.id} second`))))
          yield* untilWaiting(sql, 2)
          yield* release
          assert.strictEqual(tagOf(yield* Fiber.join(first)), "Committed")
          assert.strictEqual(tagOf(yield* Fiber.join(second)), "Superseded")
          assert.deepStrictEqual(yield* businessOf(one.id), [`${one.id} first`])
        })))

      it.effect("a successor that waits for the commit of an attempt whose process dies takes its place", () =>
        Effect.scoped(Effect.gen(function*() {
          const sql = yield* PgClient
          const { owner, stored, takeOver } = yield* fresh
          const one = yield* stored()
          yield* holdLock(sql, 2)
          const first = yield* Effect.forkChild(
            Effect.exit(attempt(owner, one, insert(`${one.id} first`, { hold: 2 })))
          )
          const [held] = yield* untilWaiting(sql)
          const second = yield* Effect.forkChild(
            Effect.exit(attempt(yield* takeOver(), one, insert(`${one.id} second`)))
          )
          yield* untilWaiting(sql, 2)
          yield* terminate(sql, held!.pid)
          assert.strictEqual(tagOf(yield* Fiber.join(second)), "Committed")
          assert.notStrictEqual(tagOf(yield* Fiber.join(first)), "Committed")
          assert.deepStrictEqual(yield* businessOf(one.id), [`${one.id} second`])
        })))

      it.effect("an attempt that was given up within the same epoch cannot commit behind a refence", () =>
        Effect.gen(function*() {
          const { owner, store, stored } = yield* fresh
          const one = yield* stored()
          assert.deepStrictEqual(yield* store.refence(owner, one.id, 0), Option.some(1))
          assert.strictEqual((yield* attempt(owner, one, insert(one.id)))._tag, "Superseded")
          assert.deepStrictEqual(yield* businessOf(one.id), [])
          assert.strictEqual((yield* attempt(owner, { ...one, version: 1 }, insert(one.id)))._tag, "Committed")
        }))

      it.effect("a stale owner's retry that races its successor's commit changes nothing", () =>
        Effect.scoped(Effect.gen(function*() {
          const sql = yield* PgClient
          const { get, owner, settle, stored, takeOver } = yield* fresh
          const one = yield* stored()
          const successor = yield* takeOver()
          const { release } = yield* holdLock(sql, 3)
          const run = yield* Effect.forkChild(attempt(successor, one, insert(one.id, { hold: 3 })))
          yield* untilWaiting(sql)
          assert.deepStrictEqual(yield* settle(owner, retry(one)), [], "the epoch turns it away at once")
          const late = yield* Effect.forkChild(settle(successor, retry(one)))
          yield* untilWaiting(sql, 2)
          yield* release
          assert.strictEqual((yield* Fiber.join(run))._tag, "Committed")
          assert.deepStrictEqual(yield* Fiber.join(late), [])
          assert.strictEqual((yield* get(one.id)).state, "completed")
        })))

      it.effect("a repeatable-read attempt that was superseded is a conflict, not a commit", () =>
        Effect.gen(function*() {
          const { owner, settle, stored } = yield* fresh
          const one = yield* stored()
          const handler = Effect.andThen(insert(one.id), settle(owner, finish(one)))
          const ended = yield* attempt(owner, one, handler).pipe(
            Effect.provideService(SqlClient.BeginTransaction, "BEGIN ISOLATION LEVEL REPEATABLE READ")
          )
          assert.deepInclude(ended, { _tag: "Broken", by: "conflict" })
          const error = ended._tag === "Broken" ? Cause.squash(ended.cause) : undefined
          assert.strictEqual(error instanceof CommitFailed ? error.sqlState : "", "40001")
          assert.deepStrictEqual(yield* businessOf(one.id), [])
        }))

      it.effect("a constraint checked only at COMMIT fails the attempt and rolls back its settlement", () =>
        Effect.gen(function*() {
          const { owner, stateOf, stored } = yield* fresh
          const one = yield* stored()
          const error = yield* Effect.flip(attempt(owner, one, insert(one.id, { other: "nobody" })))
          assert.strictEqual(error instanceof CommitFailed ? error.sqlState : String(error), "23503")
          assert.strictEqual(yield* stateOf(one.id), "queued")
        }))

      it.effect("a handler that goes on after a failed statement cannot commit the rest", () =>
        Effect.gen(function*() {
          const sql = yield* PgClient
          const { owner, stateOf, stored } = yield* fresh
          const one = yield* stored()
          const error = yield* Effect.flip(
            attempt(owner, one, Effect.andThen(insert(one.id), Effect.ignore(sql`select 1 / 0`)))
          )
          assert.strictEqual(error instanceof CommitFailed ? error.sqlState : String(error), "25P02")
          assert.deepStrictEqual(yield* businessOf(one.id), [])
          assert.strictEqual(yield* stateOf(one.id), "queued")
        }))

      it.effect("a handler's own failure comes through as it is, a SqlError too, and its writes are gone", () =>
        Effect.gen(function*() {
          const { owner, store, stored } = yield* fresh
          const one = yield* stored()
          const mine = { _tag: "Mine" } as const
          assert.strictEqual(
            yield* Effect.flip(attempt(owner, one, Effect.andThen(insert(one.id), Effect.fail(mine)))),
            mine
          )
          const error = yield* Effect.flip(attempt(owner, one, Effect.andThen(insert(one.id), insert(one.id))))
          assert.isTrue(isSqlError(error))
          const failing = store.transact(owner, Effect.orDie(insert(one.id)), () => Effect.fail(mine))
          assert.deepStrictEqual(yield* Effect.exit(failing), Exit.fail(mine))
          const defect = yield* Effect.exit(attempt(owner, one, Effect.andThen(insert(one.id), Effect.die("boom"))))
          assert.deepStrictEqual(defect, Exit.die("boom"))
          assert.deepStrictEqual(yield* businessOf(one.id), [])
        }))

      it.effect("a handler that fails because its own transaction was broken is told from one that only looks like it", () =>
        Effect.scoped(Effect.gen(function*() {
          const sql = yield* PgClient
          const { owner, stored } = yield* fresh
          const one = yield* stored()
          const conflict = sql.unsafe("do $$ begin raise exception 'lost' using errcode = '40001'; end $$")
          const closed = sql`select pg_terminate_backend(pg_backend_pid())`
          const session = yield* sql.reserve
          const elsewhere = Effect.flip(
            session.executeUnprepared(
              "do $$ begin raise exception 'lost' using errcode = '40001'; end $$",
              [],
              undefined
            )
          )
          assert.deepInclude(yield* attempt(owner, one, Effect.andThen(insert(one.id), conflict)), {
            _tag: "Broken",
            by: "conflict"
          })
          const ended = yield* attempt(owner, one, Effect.andThen(insert(one.id), closed))
          // A plain client of somebody else's does not pass on the server's reason.
          assert.isTrue(ended._tag === "Broken" && ["ended", "crashed"].includes(ended.by))
          const other = yield* Effect.flip(
            attempt(owner, one, Effect.andThen(insert(one.id), Effect.flatMap(elsewhere, Effect.fail)))
          )
          assert.isTrue(isSqlError(other))
          assert.deepStrictEqual(yield* businessOf(one.id), [])
        })))

      it.effect("an interrupted attempt leaves nothing", () =>
        Effect.gen(function*() {
          const { owner, stateOf, stored } = yield* fresh
          const one = yield* stored()
          const reached = yield* Latch.make()
          const run = yield* Effect.forkChild(
            attempt(owner, one, Effect.andThen(Effect.andThen(insert(one.id), reached.open), Effect.never))
          )
          yield* reached.await
          yield* Fiber.interrupt(run)
          assert.deepStrictEqual(yield* businessOf(one.id), [])
          assert.strictEqual(yield* stateOf(one.id), "queued")
        }))

      it.effect("jobs submitted by a handler exist exactly if it commits", () =>
        Effect.gen(function*() {
          const { job, owner, stateOf, stored, submit } = yield* fresh
          const [one, other] = [yield* stored(), yield* stored()]
          const [child, orphan] = [job(), job({ dedupeKey: "orphan" })]
          yield* attempt(owner, one, Effect.andThen(submit(child), insert(one.id)))
          yield* Effect.flip(attempt(owner, other, Effect.andThen(submit(orphan), Effect.fail("no"))))
          assert.strictEqual(yield* stateOf(child.id), "queued")
          assert.isUndefined(yield* stateOf(orphan.id))
        }))
    })
  })
}

layer(onLazyClient, { excludeTestServices: true, timeout: "60 seconds" })("PgJobStore", (it) => {
  it.effect("a handler that sends no statement takes no connection", () =>
    Effect.scoped(Effect.gen(function*() {
      const sql = yield* PgClient
      const { owner, stateOf, stored } = yield* fresh
      const one = yield* stored()
      yield* Effect.all(Array.from({ length: 10 }, () => sql.reserve))
      const ended = yield* attempt(owner, one, Effect.void)
      assert.strictEqual(ended._tag, "Pending")
      assert.strictEqual(yield* stateOf(one.id), "queued")
    })))

  it.effect("a take-over does not count a run whose settlement is just ending", () =>
    Effect.scoped(Effect.gen(function*() {
      const sql = yield* PgClient
      const { get, owner, store, stored, takeOver } = yield* fresh
      const [ending, dead] = [yield* stored(), yield* stored()]
      yield* store.noteRunning(owner, [note(ending), note(dead)], t0)
      const { release } = yield* holdLock(sql, 4)
      const run = yield* Effect.forkChild(attempt(owner, ending, insert(ending.id, { hold: 4 })))
      yield* untilWaiting(sql)
      const successor = yield* takeOver()
      const crashes = yield* store.countCrashes(successor, [], { runner: "runner", now: t0 })
      assert.deepStrictEqual(crashes.busy, [ending.id])
      assert.deepStrictEqual(crashes.counted.map(({ id }) => id), [dead.id])
      yield* release
      yield* Fiber.join(run)
      assert.deepStrictEqual(yield* store.countCrashes(successor, [], { runner: "runner", now: t0 }), {
        counted: [],
        busy: []
      })
      assert.strictEqual((yield* get(ending.id)).state, "completed")
    })))

  it.effect("a take-over does not wait for a row whose settlement is just ending", () =>
    Effect.scoped(Effect.gen(function*() {
      const sql = yield* PgClient
      const { get, owner, queueId, store, stored } = yield* fresh
      const [ending, free] = [yield* stored(), yield* stored()]
      const { release } = yield* holdLock(sql, 5)
      const run = yield* Effect.forkChild(attempt(owner, ending, insert(ending.id, { hold: 5 })))
      yield* untilWaiting(sql)
      const unwritten = [ending, free].map(({ id }) => ({
        _tag: "Rerun" as const,
        id,
        version: 0,
        isCrash: true,
        entry: {
          kind: "attempt" as const,
          attempt: 1,
          startedAt: t0,
          endedAt: t0,
          runner: "r",
          outcome: "crashed" as const
        }
      }))
      yield* store.takeOver({ queueId, partition: 0 }, { owner: "next", now: t0, unwritten })
      assert.strictEqual((yield* get(free.id)).crashes, 1)
      yield* release
      yield* Fiber.join(run)
      assert.strictEqual((yield* get(ending.id)).state, "completed")
    })))

  it.effect("a dead letter replayed by many at once comes back once", () =>
    Effect.gen(function*() {
      const { get, owner, settle, store, stored } = yield* fresh
      const one = yield* stored()
      yield* settle(owner, bury(one))
      const replayed = yield* Effect.all(
        Array.from({ length: 20 }, () => store.replay(one.id, tenantKey("acme"), noted("replayed"))),
        { concurrency: "unbounded" }
      )
      assert.strictEqual(replayed.filter((answer) => answer !== "taken" && Option.isSome(answer)).length, 1)
      assert.strictEqual((yield* get(one.id)).history.filter(({ kind }) => kind === "replayed").length, 1)
    }))

  it.effect("text that jsonb refuses does not keep a job from being settled", () =>
    Effect.gen(function*() {
      const { get, owner, settle, stored } = yield* fresh
      const message = "a\u0000b \ud800 c \\u0000 \u00e9"
      const failure = { class: "System", tag: "T\u0000", message, error: { "k\u0000": "\udfff" } } as const
      const [one, other] = [yield* stored(), yield* stored()]
      yield* settle(owner, bury(one, { failure, entry: { ...attempted(1, "dead-lettered"), failure } }))
      yield* attempt(owner, other, insert(other.id)).pipe(
        Effect.andThen(Effect.void)
      )
      const [entry] = (yield* get(one.id)).history
      assert.strictEqual(entry?.failure?.message, "a\ufffdb \ufffd c \\u0000 \u00e9")
      assert.strictEqual((yield* get(one.id)).failure?.message, message)
    }))

  it.effect("a day dropped by another process's purge is made again by the next settlement into it", () =>
    Effect.gen(function*() {
      const { owner, settle, stateOf, store, stored } = yield* fresh
      const [one, two, three] = [yield* stored(), yield* stored(), yield* stored()]
      const sql = yield* PgClient
      const purgeAt = t0 + 3 * day
      yield* settle(owner, finish(one, { purgeAt }))
      const other = yield* PgJobStore.make()
      assert.isAtLeast(yield* other.purge(t0 + 4 * day), 1)
      assert.isUndefined(yield* stateOf(one.id))
      assert.deepStrictEqual(yield* settle(owner, finish(two, { purgeAt })), [two.id])
      yield* other.purge(t0 + 4 * day)
      const ended = yield* store.transact(
        owner,
        insert(three.id),
        () => Effect.succeed({ settlement: finish(three, { purgeAt }), now: t0 })
      )
      assert.strictEqual(ended._tag, "Committed")
      const days = yield* sql<
        { readonly n: number }
      >`select count(*)::int as n from pg_inherits where inhparent = 'millrace.finished_jobs'::regclass`
      assert.isAtLeast(days[0]!.n, 1)
    }).pipe(Effect.scoped))

  it.effect("a clock that is set while the process runs is noticed: the database's by the next purge, its own at once", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const hour = 3_600_000
      const { name } = yield* TestDatabase
      // The database's clock, as a function that the store's sessions find before the server's own.
      yield* sql`create schema shadow`
      yield* sql`create table shadow.ahead (by interval)`
      yield* sql`insert into shadow.ahead values ('0')`
      yield* sql.unsafe(
        "create function shadow.clock_timestamp() returns timestamptz language sql as 'select pg_catalog.clock_timestamp() + by from shadow.ahead'"
      )
      yield* sql.unsafe(`alter database ${name} set search_path = shadow, pg_catalog, public`)
      const store = yield* PgJobStore.make()
      yield* sql.unsafe(`alter database ${name} reset search_path`)
      const before = yield* store.now
      yield* sql`update shadow.ahead set by = '1 day'`
      yield* store.purge(t0)
      assert.isAtLeast(yield* store.now, before + 24 * hour)
      yield* sql`update shadow.ahead set by = '-1 day'`
      yield* store.purge(t0)
      assert.isBelow(yield* store.now, before)
      // This process's clock: nothing has happened until the database has been asked, which it is at once.
      yield* sql`update shadow.ahead set by = '0'`
      yield* store.purge(t0)
      const real = Date.now
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          Date.now = () => real() + hour
        }),
        () =>
          Effect.sync(() => {
            Date.now = real
          })
      )
      yield* sql`update shadow.ahead set by = '1 day'`
      assert.isBelow(yield* store.now, before + hour)
      yield* Effect.repeat(store.now, {
        until: (now) => now >= before + 24 * hour,
        schedule: Schedule.spaced("5 millis")
      })
      assert.isBelow(yield* store.now, before + 25 * hour)
    }).pipe(Effect.scoped))

  it.effect("the size of a waiting payload is known from its row, and not measured by each reading", () =>
    Effect.gen(function*() {
      const { owner, store, stored } = yield* fresh
      const sql = yield* PgClient
      const payload = JSON.stringify({ text: "\u00e9".repeat(100) })
      const one = yield* stored({ payload })
      const sizes = yield* sql<
        { readonly bytes: number }
      >`select payload_bytes as bytes from millrace.jobs where id = ${one.id}`
      assert.deepStrictEqual(sizes, [{ bytes: Buffer.byteLength(payload) }])
      yield* sql`update millrace.jobs set payload_bytes = 1000000 where id = ${one.id}`
      const { jobs } = yield* store.intake(owner, everything())
      assert.deepInclude(jobs[0], { id: one.id, isLarge: true, payload: null })
    }))

  it.effect("a purge that died between detach and drop is finished by the next, by one process only", () =>
    Effect.gen(function*() {
      const { owner, settle, store, stored } = yield* fresh
      const sql = yield* PgClient
      const purgeAt = Date.UTC(2020, 0, 1)
      yield* settle(owner, finish(yield* stored(), { purgeAt }))
      yield* sql`alter table millrace.finished_jobs detach partition millrace.finished_jobs_20200101 concurrently`
      const others = yield* Effect.all(Array.from({ length: 4 }, () => PgJobStore.make()))
      const dropped = yield* Effect.all([store, ...others].map((each) => each.purge(purgeAt + day)), {
        concurrency: "unbounded"
      })
      assert.strictEqual(dropped.reduce((sum, n) => sum + n, 0), 1)
      const [left] = yield* sql<
        { readonly name: string | null }
      >`select to_regclass('millrace.finished_jobs_20200101')::text as name`
      assert.isNull(left?.name)
      // What keeps its id and its place is the live table, not the purge.
      assert.deepStrictEqual(yield* store.intake(owner, everything()), { jobs: [], visited: [] })
    }).pipe(Effect.scoped))
})

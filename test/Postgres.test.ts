import { PgClient } from "@effect/sql-pg/PgClient"
import * as PlainClient from "@effect/sql-pg/PgClient"
import { assert, describe, it, layer } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as SqlClient from "effect/sql/SqlClient"
import { SqlError, UnknownError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import { connect, createServer } from "node:net"
import { inspect } from "node:util"
import { hasLostConnection, isCommitUnknown, sqlState } from "../src/internal/sql/transaction.ts"
import * as Postgres from "../src/Postgres.ts"
import { makeDatabase, TestDatabase } from "./utils/database.ts"
import { commitWith, hasBegun } from "./utils/lastStatement.ts"
import { makeRecorder } from "./utils/recorder.ts"

/** A client with one connection whose writes are seen, and a table. */
const recorded = Effect.fnUntraced(function*(maxConnections = 1) {
  const { url } = yield* makeDatabase
  const recorder = makeRecorder(url)
  const context = yield* Layer.build(Postgres.layer({ url, maxConnections, stream: recorder.stream }))
  const sql = yield* Effect.provide(PgClient, context)
  yield* sql`create table notes (id int primary key, text text)`
  recorder.writes.length = 0
  return { sql, recorder, url }
})

const raise = { sql: "select pg_temp.refuse()", params: [] }

const refuse = (sql: PgClient) =>
  sql.unsafe(
    "create function pg_temp.refuse() returns void language plpgsql as $$ begin raise exception 'superseded' using errcode = 'MR001'; end $$"
  )

const ids = (sql: PgClient) =>
  Effect.map(sql<{ id: number }>`select id from notes order by id`, (rows) => rows.map(({ id }) => id))

const failureOf = <A, E>(exit: Exit.Exit<A, E>): E => {
  const error = Exit.findErrorOption(exit)
  if (error._tag === "None") throw new Error(`expected a typed failure, got ${inspect(exit, { depth: 6 })}`)
  return error.value
}

const sqlErrorOf = <A, E>(exit: Exit.Exit<A, E>): SqlError => {
  const error = failureOf(exit)
  if (!(error instanceof SqlError)) throw new Error(`expected a SqlError, got ${inspect(error)}`)
  return error
}

/** A connection of the test's own, not watched. */
const observer = (sql: PgClient) =>
  Postgres.makePool(sql, { stream: undefined, applicationName: "observer", maxConnections: 1 })

/** Sessions of this database that run a statement holding `text`, seen from outside. */
const running = (sql: PgClient, text: string) =>
  Effect.map(
    sql<{ pid: number }>`select pid from pg_stat_activity
      where state = 'active' and pid <> pg_backend_pid() and datname = current_database() and query like ${`%${text}%`}`,
    (rows) => rows.length
  )

const until = <E, R>(condition: Effect.Effect<boolean, E, R>) =>
  Effect.repeat(condition, { until: (isSo) => isSo, schedule: Schedule.spaced("5 millis"), times: 2000 })

describe("a transaction", () => {
  it.live("that sends no statement uses no connection", () =>
    Effect.gen(function*() {
      const { recorder, sql } = yield* recorded()
      yield* Effect.scoped(Effect.gen(function*() {
        // The only connection is taken.
        yield* sql.reserve
        const result = yield* sql.withTransaction(sql.withTransaction(hasBegun(sql)))
        assert.strictEqual(result, "idle")
        const failed = yield* Effect.exit(sql.withTransaction(Effect.fail("no")))
        assert.deepStrictEqual(failed, Exit.fail("no"))
      }))
      assert.deepStrictEqual(recorder.writes, [])
    }))

  it.live("begins with its first statement, and says so", () =>
    Effect.gen(function*() {
      const { recorder, sql } = yield* recorded()
      assert.strictEqual(yield* hasBegun(sql), "none")
      yield* sql.withTransaction(Effect.gen(function*() {
        assert.strictEqual(yield* hasBegun(sql), "idle")
        yield* sql`insert into notes values (1)`
        assert.strictEqual(yield* hasBegun(sql), "begun")
      }))
      assert.deepStrictEqual(recorder.writes.flat(), ["BEGIN", "insert into notes values (1)", "COMMIT"])
      assert.deepStrictEqual(yield* ids(sql), [1])
    }))

  it.live("of a plain client is foreign", () =>
    Effect.gen(function*() {
      const { sql } = yield* recorded()
      const plain = yield* Postgres.makePool(sql)
      assert.strictEqual(yield* plain.withTransaction(hasBegun(plain)), "foreign")
      assert.isFalse(yield* plain.withTransaction(commitWith(plain, { sql: "select 1", params: [] })))
    }))

  it.live("that fails leaves nothing, and the connection is clean", () =>
    Effect.gen(function*() {
      const { sql } = yield* recorded()
      const exit = yield* Effect.exit(
        sql.withTransaction(Effect.andThen(sql`insert into notes values (1)`, Effect.fail("no")))
      )
      assert.deepStrictEqual(exit, Exit.fail("no"))
      assert.deepStrictEqual(yield* ids(sql), [])
    }))

  it.live("that dies or is interrupted leaves nothing", () =>
    Effect.gen(function*() {
      const { sql } = yield* recorded()
      yield* Effect.exit(sql.withTransaction(Effect.andThen(sql`insert into notes values (1)`, Effect.die("no"))))
      const reached = yield* Deferred.make<void>()
      const fiber = yield* Effect.forkChild(
        sql.withTransaction(sql`insert into notes values (2)`.pipe(
          Effect.andThen(Deferred.succeed(reached, undefined)),
          Effect.andThen(Effect.never)
        ))
      )
      yield* Deferred.await(reached)
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual(yield* ids(sql), [])
    }))

  it.live("nests as savepoints, which roll back alone", () =>
    Effect.gen(function*() {
      const { recorder, sql } = yield* recorded()
      yield* sql.withTransaction(Effect.gen(function*() {
        // Not begun yet: these leave with BEGIN, or not at all.
        yield* Effect.exit(sql.withTransaction(Effect.fail("no")))
        yield* sql.withTransaction(sql.withTransaction(sql`insert into notes values (1)`))
        yield* Effect.exit(sql.withTransaction(Effect.andThen(sql`insert into notes values (2)`, Effect.fail("no"))))
        yield* Effect.exit(sql.withTransaction(sql`insert into notes values (1)`))
        yield* sql`insert into notes values (3)`
      }))
      assert.deepStrictEqual(yield* ids(sql), [1, 3])
      assert.deepStrictEqual(recorder.writes.flat().slice(0, 4), [
        "BEGIN",
        "SAVEPOINT effect_sql_1",
        "SAVEPOINT effect_sql_2",
        "insert into notes values (1)"
      ])
    }))

  it.live("runs what waits for its commit after it, and only then", () =>
    Effect.gen(function*() {
      const { sql } = yield* recorded()
      const seen: Array<string> = []
      const note = (text: string) => sql.afterCommit(Effect.sync(() => void seen.push(text)))
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* note("committed")
        yield* Effect.exit(sql.withTransaction(Effect.andThen(note("rolled back"), Effect.fail("no"))))
        yield* sql`insert into notes values (1)`
        assert.deepStrictEqual(seen, [])
      }))
      yield* sql.withTransaction(note("without a statement"))
      yield* Effect.exit(sql.withTransaction(Effect.andThen(note("never"), sql`insert into notes values (1)`)))
      assert.deepStrictEqual(seen, ["committed", "without a statement"])
    }))

  it.live("begins as it is asked to", () =>
    Effect.gen(function*() {
      const { sql } = yield* recorded()
      const level = yield* sql.withTransaction(
        sql<{ level: string }>`select current_setting('transaction_isolation') as level`
      ).pipe(
        Effect.provideService(SqlClient.BeginTransaction, "BEGIN ISOLATION LEVEL SERIALIZABLE")
      )
      assert.strictEqual(level[0]?.level, "serializable")
      const wrong = yield* sql.withTransaction(Effect.exit(sql`insert into notes values (1)`)).pipe(
        Effect.provideService(SqlClient.BeginTransaction, "BEGIN ISOLATION LEVEL NONE"),
        Effect.exit
      )
      assert.strictEqual(sqlState(sqlErrorOf(wrong)), "42601")
      assert.deepStrictEqual(yield* ids(sql), [])
    }))

  it.live("streams", () =>
    Effect.gen(function*() {
      const { sql } = yield* recorded()
      const stream = sql<{ n: number }>`select n from generate_series(1, 2000) n`.stream
      const inside = yield* sql.withTransaction(Effect.gen(function*() {
        yield* sql`insert into notes values (1)`
        const all = yield* Stream.runCollect(stream)
        // One left early leaves the transaction usable, or fails it; never the connection.
        yield* Stream.runCollect(Stream.take(sql`select * from notes`.stream, 1))
        return all.length
      }))
      assert.strictEqual(inside, 2000)
      assert.strictEqual((yield* Stream.runCollect(stream)).length, 2000)
      assert.deepStrictEqual(yield* ids(sql), [1])
    }))

  it.live("that changes search_path for itself leaves the connection as it was", () =>
    Effect.gen(function*() {
      const { sql } = yield* recorded()
      const path = sql<{ path: string }>`select current_setting('search_path') as path`
      const before = yield* path
      yield* sql.withTransaction(
        Effect.andThen(sql`set local search_path = pg_catalog`, sql`insert into public.notes values (1)`)
      )
      assert.deepStrictEqual(yield* path, before)
      yield* Effect.exit(sql.withTransaction(Effect.andThen(sql`set search_path = pg_catalog`, Effect.fail("no"))))
      assert.deepStrictEqual(yield* path, before)
    }))

  it.live("lets nobody else end it", () =>
    Effect.gen(function*() {
      const { recorder, sql } = yield* recorded()
      for (
        const statement of [
          "commit",
          " End",
          "ABORT",
          "begin",
          "rollback work",
          "PREPARE TRANSACTION 'x'",
          "start  transaction",
          "/* app */ commit",
          "-- app\ncommit",
          "\n-- app\r/* outer /* inner */ still */ -- end\n ;rollback",
          "prepare /* two phases */ transaction 'x'"
        ]
      ) {
        const exit = yield* Effect.exit(
          sql.withTransaction(Effect.andThen(sql`insert into notes values (1)`, sql.unsafe(statement)))
        )
        assert.match(failureOf(exit).message, /withTransaction only/)
      }
      // Those that only go back to a savepoint are the handler's own.
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* sql`insert into notes values (2)`
        yield* sql`savepoint mine`
        yield* sql`insert into notes values (3)`
        yield* sql.unsafe("rollback to savepoint mine")
        yield* sql.unsafe("/* app */ rollback work -- not the work\n to savepoint mine")
        yield* sql.unsafe("/* commit */ select 1 /* commit */")
        yield* sql.unsafe("-- commit\nselect 1")
      }))
      assert.deepStrictEqual(yield* ids(sql), [2])
      assert.notInclude(recorder.writes.flat(), "commit")
    }))

  it.live("cannot be written to by a fiber that outlives it", () =>
    Effect.gen(function*() {
      const { sql } = yield* recorded()
      for (const end of [Effect.void, Effect.fail("no")]) {
        const isOver = yield* Deferred.make<void>()
        const outcome = yield* Deferred.make<Exit.Exit<unknown, SqlError>>()
        yield* sql.withTransaction(Effect.gen(function*() {
          yield* Deferred.await(isOver).pipe(
            Effect.andThen(sql`insert into notes values (9)`),
            Effect.exit,
            Effect.flatMap((exit) => Deferred.succeed(outcome, exit)),
            Effect.forkDetach
          )
          yield* sql`delete from notes`
          yield* end
        })).pipe(Effect.exit)
        yield* Deferred.succeed(isOver, undefined)
        assert.match(failureOf(yield* Deferred.await(outcome)).message, /has ended/)
      }
      // Nor one whose transaction never began: it must not open one that nobody ends.
      const isOver = yield* Deferred.make<void>()
      const idle = yield* sql.withTransaction(
        Effect.forkDetach(Effect.exit(Effect.andThen(Deferred.await(isOver), sql`insert into notes values (9)`)))
      )
      yield* Deferred.succeed(isOver, undefined)
      assert.match(failureOf(yield* Fiber.join(idle)).message, /has ended/)
      assert.deepStrictEqual(yield* ids(sql), [])
    }))

  it.live("rolls back without waiting for a statement that a forgotten fiber still runs", () =>
    Effect.gen(function*() {
      const { sql } = yield* recorded()
      const outside = yield* observer(sql)
      const exit = yield* sql.withTransaction(Effect.gen(function*() {
        yield* Effect.forkDetach(sql`select pg_sleep(1000), 'forgotten'`)
        yield* until(Effect.map(running(outside, "forgotten"), (count) => count === 1))
        return yield* Effect.fail("no")
      })).pipe(Effect.exit)
      assert.deepStrictEqual(exit, Exit.fail("no"))
      assert.strictEqual(yield* running(outside, "forgotten"), 0)
      assert.deepStrictEqual(yield* ids(sql), [])
    }))

  it.live("takes along the statement that a forgotten fiber still runs when it commits", () =>
    Effect.gen(function*() {
      const { sql } = yield* recorded()
      const outside = yield* observer(sql)
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* sql`insert into notes values (1)`
        yield* Effect.forkDetach(sql`insert into notes select 2 from pg_sleep(0.2)`)
        yield* until(Effect.map(running(outside, "pg_sleep"), (count) => count === 1))
        yield* commitWith(sql, { sql: "insert into notes values (3)", params: [] })
      }))
      assert.deepStrictEqual(yield* ids(sql), [1, 2, 3])
    }))

  it.live("is not what reserve gives", () =>
    Effect.gen(function*() {
      const { recorder, sql } = yield* recorded()
      const outside = yield* observer(sql)
      yield* Effect.scoped(Effect.gen(function*() {
        const connection = yield* sql.reserve
        yield* connection.execute("insert into notes values (1)", [], undefined)
        assert.deepStrictEqual(yield* ids(outside), [1])
      }))
      assert.deepStrictEqual(recorder.writes, [["insert into notes values (1)"]])
    }))

  it.live("whose connection dies reports that, not a defect of its rollback", () =>
    Effect.gen(function*() {
      const { recorder, sql } = yield* recorded()
      const outside = yield* observer(sql)
      /** Ends the session of a transaction from outside, then does `inner`; `isSeen`: once the client has noticed. */
      const killed = (inner: Effect.Effect<unknown, SqlError>, isSeen: boolean) =>
        sql.withTransaction(Effect.gen(function*() {
          const [row] = yield* sql<{ pid: number }>`select pg_backend_pid() as pid`
          const connections = recorder.connections()
          yield* outside`select pg_terminate_backend(${row?.pid})`
          if (isSeen) yield* until(Effect.sync(() => connections.every(({ destroyed }) => destroyed)))
          yield* inner
        }))
      const errorOf = <A>(effect: Effect.Effect<A, SqlError>) => Effect.map(Effect.exit(effect), sqlErrorOf)
      const insert = sql`insert into notes values (1)`
      for (const inner of [insert, sql.withTransaction(insert)]) {
        const error = yield* errorOf(killed(inner, false))
        assert.isTrue(hasLostConnection(error))
        assert.isFalse(isCommitUnknown(error))
      }
      // Noticed while no statement was under way: the driver then has the server's own word, and COMMIT is never sent.
      for (const inner of [Effect.void, sql.withTransaction(Effect.void)]) {
        const error = yield* errorOf(killed(inner, true))
        assert.strictEqual(sqlState(error), "57P01")
        assert.isFalse(isCommitUnknown(error))
      }
      // Its own error is what a savepoint reports that cannot be rolled back any more.
      const mine = new SqlError({ reason: new UnknownError({ cause: "mine" }) })
      const inside = (end: Effect.Effect<unknown, SqlError>) => errorOf(sql.withTransaction(killed(end, true)))
      assert.strictEqual(yield* inside(Effect.fail(mine)), mine)
      assert.isTrue(hasLostConnection(yield* inside(insert)))
      assert.deepStrictEqual(yield* ids(sql), [])
    }))
})

describe("settle and commit", () => {
  it.live("leave in one write", () =>
    Effect.gen(function*() {
      const { recorder, sql } = yield* recorded()
      const insert = (id: number) =>
        sql.withTransaction(Effect.gen(function*() {
          yield* sql`insert into notes values (${id}, 'handler')`
          assert.isTrue(yield* commitWith(sql, { sql: "insert into notes values ($1, 'settle')", params: [id + 100] }))
        }))
      yield* insert(1)
      // The second time everything is prepared.
      recorder.writes.length = 0
      yield* insert(2)
      assert.deepStrictEqual(recorder.writes, [
        ["BEGIN"],
        ["insert into notes values ($1, 'handler')"],
        ["insert into notes values ($1, 'settle')", "COMMIT"]
      ])
      assert.deepStrictEqual(yield* ids(sql), [1, 2, 101, 102])
    }))

  it.live("commit nothing when the settlement raises", () =>
    Effect.gen(function*() {
      const { sql } = yield* recorded()
      yield* refuse(sql)
      const ran: Array<string> = []
      const exit = yield* sql.withTransaction(Effect.gen(function*() {
        yield* sql`insert into notes values (1)`
        yield* sql.afterCommit(Effect.sync(() => void ran.push("told")))
        yield* commitWith(sql, raise)
      })).pipe(Effect.exit)
      assert.strictEqual(sqlState(sqlErrorOf(exit)), "MR001")
      assert.isFalse(isCommitUnknown(sqlErrorOf(exit)))
      assert.deepStrictEqual(yield* ids(sql), [])
      assert.deepStrictEqual(ran, [])
      // The same connection, clean.
      const [row] = yield* sql<{ open: boolean }>`select pg_current_xact_id_if_assigned() is not null as open`
      assert.isFalse(row?.open)
      yield* sql.withTransaction(sql`insert into notes values (2)`)
      assert.deepStrictEqual(yield* ids(sql), [2])
    }))

  it.live("commit nothing when the settlement cannot even be sent", () =>
    Effect.gen(function*() {
      const { recorder, sql } = yield* recorded()
      const exit = yield* sql.withTransaction(Effect.gen(function*() {
        yield* sql`insert into notes values (1)`
        yield* commitWith(sql, { sql: "select $1", params: [{ not: "a parameter" }] })
      })).pipe(Effect.exit)
      assert.isFalse(isCommitUnknown(sqlErrorOf(exit)))
      assert.notInclude(recorder.writes.flat(), "COMMIT")
      assert.deepStrictEqual(yield* ids(sql), [])
    }))

  it.live("commit nothing when the transaction was aborted before", () =>
    Effect.gen(function*() {
      const { sql } = yield* recorded()
      const aborted = Effect.andThen(sql`insert into notes values (1)`, Effect.exit(sql`insert into notes values (1)`))
      const plain = yield* Effect.exit(sql.withTransaction(aborted))
      assert.match(sqlErrorOf(plain).message, /aborted/)
      const settled = yield* Effect.exit(
        sql.withTransaction(Effect.andThen(aborted, commitWith(sql, { sql: "select 1", params: [] })))
      )
      assert.strictEqual(sqlState(sqlErrorOf(settled)), "25P02")
      assert.deepStrictEqual(yield* ids(sql), [])
    }))

  it.live("fail with the deferred constraint that COMMIT finds broken", () =>
    Effect.gen(function*() {
      const { sql } = yield* recorded()
      yield* sql`create table tags (note int references notes deferrable initially deferred)`
      for (const last of [Effect.void, commitWith(sql, { sql: "select 1", params: [] })]) {
        const exit = yield* Effect.exit(sql.withTransaction(Effect.andThen(sql`insert into tags values (7)`, last)))
        assert.strictEqual(sqlState(sqlErrorOf(exit)), "23503")
        assert.isFalse(isCommitUnknown(sqlErrorOf(exit)))
      }
      assert.deepStrictEqual(yield* sql`select * from tags`, [])
    }))

  it.live("need no transaction when the handler sent nothing", () =>
    Effect.gen(function*() {
      const { recorder, sql } = yield* recorded()
      yield* refuse(sql)
      recorder.writes.length = 0
      const settle = (statement: { readonly sql: string; readonly params: ReadonlyArray<unknown> }) =>
        Effect.exit(sql.withTransaction(commitWith(sql, statement)))
      assert.deepStrictEqual(yield* settle({ sql: "insert into notes values ($1)", params: [5] }), Exit.succeed(true))
      assert.deepStrictEqual(recorder.writes, [["insert into notes values ($1)"]])
      assert.strictEqual(sqlState(sqlErrorOf(yield* settle(raise))), "MR001")
      assert.deepStrictEqual(yield* ids(sql), [5])
    }))

  it.live("are left to the caller inside a savepoint", () =>
    Effect.gen(function*() {
      const { sql } = yield* recorded()
      assert.isFalse(yield* commitWith(sql, raise))
      assert.isFalse(yield* sql.withTransaction(sql.withTransaction(commitWith(sql, raise))))
    }))

  it.live("are forgotten when the handler fails", () =>
    Effect.gen(function*() {
      const { sql } = yield* recorded()
      const settle = commitWith(sql, { sql: "insert into notes values (2)", params: [] })
      const exit = yield* Effect.exit(
        sql.withTransaction(
          sql`insert into notes values (1)`.pipe(Effect.andThen(settle), Effect.andThen(Effect.fail("no")))
        )
      )
      assert.deepStrictEqual(exit, Exit.fail("no"))
      assert.deepStrictEqual(yield* ids(sql), [])
    }))

  it.live("are unknown when the line is cut before their answer, and known when it was cut before", () =>
    Effect.gen(function*() {
      const { recorder, sql } = yield* recorded()
      const settle = (id: number, isLast: boolean) =>
        Effect.exit(sql.withTransaction(Effect.gen(function*() {
          yield* sql`insert into notes values (${id})`
          if (isLast) yield* commitWith(sql, { sql: "insert into notes values ($1)", params: [id + 100] })
        })))
      for (const [id, isLast] of [[1, true], [2, false]] as const) {
        recorder.cutAt = "COMMIT"
        const exit = yield* settle(id, isLast)
        recorder.cutAt = undefined
        assert.isTrue(isCommitUnknown(sqlErrorOf(exit)), inspect(exit, { depth: 5 }))
        assert.isUndefined(sqlState(sqlErrorOf(exit)))
      }
      // The server had got them all.
      yield* until(Effect.map(ids(sql), (found) => found.length === 3))
      recorder.cutAt = "insert into notes"
      const lost = yield* settle(3, true)
      recorder.cutAt = undefined
      assert.strictEqual(sqlErrorOf(lost).reason._tag, "ConnectionError")
      assert.isFalse(isCommitUnknown(sqlErrorOf(lost)))
      assert.deepStrictEqual(yield* ids(sql), [1, 2, 101])
    }))

  it.live("never reach a neighbour's transaction, however many there are", () =>
    Effect.gen(function*() {
      const { recorder, sql } = yield* recorded(3)
      yield* refuse(sql)
      const one = (id: number) =>
        sql.withTransaction(Effect.gen(function*() {
          yield* sql`insert into notes values (${id})`
          yield* commitWith(
            sql,
            id % 3 === 0
              ? { sql: "do $$ begin raise exception 'no' using errcode = 'MR001'; end $$", params: [] }
              : { sql: "insert into notes values ($1)", params: [id + 1000] }
          )
          if (id % 5 === 0) return yield* Effect.fail("no")
        })).pipe(Effect.exit)
      yield* Effect.forEach(Array.from({ length: 200 }, (_, id) => id), one, { concurrency: 20, discard: true })
      const kept = Array.from({ length: 200 }, (_, id) => id).filter((id) => id % 3 !== 0 && id % 5 !== 0)
      assert.deepStrictEqual(yield* ids(sql), [...kept, ...kept.map((id) => id + 1000)])
      for (const write of recorder.writes) {
        if (write.includes("COMMIT")) assert.strictEqual(write.length, 2)
      }
    }))
})

describe("interruption", () => {
  const cancels = (
    name: string,
    within: (sql: PgClient, statement: Effect.Effect<unknown, SqlError>) => Effect.Effect<unknown, SqlError>
  ) =>
    it.live(`cancels ${name} on the server`, () =>
      Effect.gen(function*() {
        const { sql } = yield* recorded()
        const outside = yield* observer(sql)
        const fiber = yield* Effect.forkChild(within(sql, sql`select pg_sleep(1000), 'sleeper'`))
        yield* until(Effect.map(running(outside, "sleeper"), (count) => count === 1))
        yield* Fiber.interrupt(fiber)
        assert.strictEqual(yield* running(outside, "sleeper"), 0)
        // The pool's only connection is usable, and in no transaction.
        yield* sql.withTransaction(sql`insert into notes values (2)`)
        assert.deepStrictEqual(yield* ids(sql), [2])
      }))

  cancels("a statement outside of a transaction", (_, statement) => statement)
  cancels("the first statement of a transaction", (sql, statement) => sql.withTransaction(statement))
  cancels(
    "a later statement of a transaction",
    (sql, statement) => sql.withTransaction(Effect.andThen(sql`insert into notes values (1)`, statement))
  )
  cancels(
    "a statement inside a savepoint",
    (sql, statement) =>
      sql.withTransaction(Effect.andThen(sql`insert into notes values (1)`, sql.withTransaction(statement)))
  )
  cancels("a stream", (sql) => sql.withTransaction(Stream.runDrain(sql`select pg_sleep(1000), 'sleeper'`.stream)))

  it.live("of a wait for a connection takes none", () =>
    Effect.gen(function*() {
      const { sql } = yield* recorded()
      const fiber = yield* Effect.scoped(Effect.gen(function*() {
        yield* sql.reserve
        const fiber = yield* Effect.forkChild(sql.withTransaction(sql`insert into notes values (1)`))
        yield* Effect.yieldNow
        yield* Fiber.interrupt(fiber)
        return fiber
      }))
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
      assert.deepStrictEqual(yield* ids(sql), [])
    }))
})

layer(TestDatabase.layer, { excludeTestServices: true })("the client", (it) => {
  it.effect("is one, under both tags, and tells how to open another", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      assert.strictEqual(yield* SqlClient.SqlClient, sql)
      const pool = yield* Postgres.makePool(sql, { maxConnections: 1, applicationName: "other" })
      const [row] = yield* pool<
        Record<string, string>
      >`select current_setting('application_name') as name, current_database() as database,
        current_setting('idle_in_transaction_session_timeout') as idle`
      const { name } = yield* TestDatabase
      assert.deepStrictEqual({ ...row }, { name: "other", database: name, idle: "1min" })
      const [own] = yield* sql<Record<string, string>>`select current_setting('application_name') as name,
        current_setting('client_connection_check_interval') as interval, current_setting('tcp_user_timeout') as timeout`
      assert.deepStrictEqual({ ...own }, { name: "millrace", interval: "5s", timeout: "20000" })
    }))

  it.effect("listens and notifies", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const queue = yield* sql.listen("millrace_test")
      yield* sql.notify("millrace_test", "one")
      assert.strictEqual((yield* Queue.take(queue)).payload, "one")
      // In a transaction: with its commit, or never.
      yield* Effect.exit(
        sql.withTransaction(Effect.andThen(sql`select pg_notify('millrace_test', 'never')`, Effect.fail("no")))
      )
      yield* sql.withTransaction(sql`select pg_notify('millrace_test', 'two')`)
      assert.strictEqual((yield* Queue.take(queue)).payload, "two")
    }))

  it.effect("takes JSON", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const [row] = yield* sql<{ value: unknown }>`select ${sql.json({ a: [1, null] })}::jsonb as value`
      assert.deepStrictEqual(row?.value, { a: [1, null] })
    }))
})

/** Stands before the server of `url` and refuses session settings that it does not know, as PgBouncer does. */
const pooler = (url: URL) =>
  Effect.acquireRelease(
    Effect.callback<{ readonly href: string; readonly close: () => void }>((resume) => {
      const server = createServer((client) => {
        client.once("data", (startup) => {
          if (startup.includes("tcp_user_timeout")) {
            const message = "SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: tcp_user_timeout\0\0"
            const frame = Buffer.alloc(5 + message.length)
            frame.write("E", 0)
            frame.writeInt32BE(4 + message.length, 1)
            frame.write(message, 5)
            client.end(frame)
            return
          }
          const upstream = connect(Number(url.port), url.hostname)
          upstream.write(startup)
          client.pipe(upstream).pipe(client)
          client.on("error", () => upstream.destroy())
          upstream.on("error", () => client.destroy())
        })
      })
      server.listen(0, "127.0.0.1", () => {
        const address = server.address()
        const copy = new URL(url)
        copy.hostname = "127.0.0.1"
        copy.port = String(typeof address === "object" ? address?.port : 0)
        resume(Effect.succeed({ href: copy.href, close: () => server.close() }))
      })
    }),
    ({ close }) => Effect.sync(close)
  )

describe("Postgres.layer", () => {
  const secret = "hunter2/secret"
  const tried = (options: Postgres.Options, env: Record<string, string> = {}) =>
    Effect.gen(function*() {
      const exit = yield* Effect.exit(Effect.scoped(Layer.build(Postgres.layer(options)))).pipe(
        Effect.provideService(ConfigProvider.ConfigProvider, ConfigProvider.fromUnknown(env))
      )
      const error = failureOf(exit)
      const shown = [
        error.message,
        inspect(exit, { depth: 20, showHidden: true }),
        JSON.stringify(error),
        Cause.pretty(Exit.isFailure(exit) ? exit.cause : Cause.empty)
      ]
      for (const text of shown) {
        assert.notInclude(text, secret)
        assert.notInclude(text, encodeURIComponent(secret))
      }
      return error
    })

  const from = Effect.map(makeDatabase, ({ url }) => new URL(url))

  it.live("reads DATABASE_URL, then the PG variables", () =>
    Effect.gen(function*() {
      const url = yield* from
      const name = (options: Postgres.Options, env: Record<string, string>) =>
        Effect.scoped(Effect.flatMap(Layer.build(Postgres.layer(options)), (context) =>
          Effect.provide(
            Effect.flatMap(PgClient, (sql) => sql<{ name: string }>`select current_database() as name`),
            context
          ))).pipe(
            Effect.provideService(ConfigProvider.ConfigProvider, ConfigProvider.fromUnknown(env)),
            Effect.map(([row]) => row?.name)
          )
      const database = url.pathname.slice(1)
      const pg = {
        PGHOST: url.hostname,
        PGPORT: url.port,
        PGUSER: url.username,
        PGPASSWORD: url.password,
        PGDATABASE: database
      }
      assert.strictEqual(yield* name({}, { DATABASE_URL: url.href, PGDATABASE: "other" }), database)
      assert.strictEqual(yield* name({}, pg), database)
      assert.strictEqual(yield* name({}, { ...pg, DATABASE_URL: "" }), database)
      assert.strictEqual(yield* name({ database: "postgres" }, { DATABASE_URL: url.href }), "postgres")
      assert.strictEqual(
        yield* name({ host: url.hostname }, { ...pg, DATABASE_URL: "postgres://nowhere.invalid/x" }),
        database
      )
    }))

  it.live("says what is wrong with a wrong URL", () =>
    Effect.gen(function*() {
      const password = encodeURIComponent(secret)
      const reasons: Array<[string, string]> = [
        [`postgres://me:${secret}@localhost:99999/x`, "InvalidUrl"],
        [`not a url ${secret}`, "InvalidUrl"],
        [`mysql://me:${password}@localhost/x`, "InvalidUrl"],
        [`postgres://me:%zz${password}@localhost/x`, "InvalidUrl"],
        [`postgres://me:${password}@127.0.0.1:1/x`, "ConnectionRefused"],
        [`postgres://me:${password}@nowhere.invalid/x`, "HostNotFound"]
      ]
      for (const [url, reason] of reasons) {
        const error = yield* tried({}, { DATABASE_URL: url })
        assert.strictEqual(error.reason, reason, url)
        assert.strictEqual((yield* tried({ url })).reason, reason, url)
      }
      assert.strictEqual(
        (yield* tried({}, { PGHOST: "localhost", PGPORT: "many", PGPASSWORD: secret })).reason,
        "InvalidConfig"
      )
      assert.strictEqual(
        (yield* tried({ url: `postgres://me:${password}@127.0.0.1/x?sslmode=maybe` })).reason,
        "InvalidConfig"
      )
      assert.match(
        (yield* tried({ url: "postgres://127.0.0.1/x?sslmode=require&sslrootcert=/no/such" })).message,
        /\/no\/such/
      )
    }))

  it.live("says what is wrong with a wrong password, database or certificate", () =>
    Effect.gen(function*() {
      const url = yield* from
      const wrong = (change: (url: URL) => void) => {
        const copy = new URL(url)
        change(copy)
        return tried({ url: Redacted.make(copy.href) })
      }
      const missing = yield* wrong((url) => url.pathname = "/no_such_database")
      assert.strictEqual(missing.reason, "DatabaseMissing")
      assert.match(missing.message, /createdb no_such_database/)
      assert.strictEqual((yield* wrong((url) => url.searchParams.set("sslmode", "require"))).reason, "TlsFailed")
      // A server that trusts everybody has no wrong password.
      if (url.password !== "") {
        assert.strictEqual(
          (yield* wrong((url) => url.password = encodeURIComponent(secret))).reason,
          "AuthenticationFailed"
        )
        assert.strictEqual((yield* wrong((url) => url.password = "")).reason, "AuthenticationFailed")
      }
    }))

  it.live("goes on with fewer session settings where the server refuses some", () =>
    Effect.gen(function*() {
      const url = yield* from
      const refused = yield* tried({ url: url.href, startupParameters: { no_such_setting: "1" } })
      assert.strictEqual(refused.reason, "Unknown")
      assert.match(refused.message, /no_such_setting/)
      // A pooler in between that knows none of ours.
      const proxy = yield* pooler(url)
      const sql = yield* Effect.flatMap(Layer.build(Postgres.layer({ url: proxy.href })), (context) =>
        Effect.provide(PgClient, context))
      const [row] = yield* sql<{ name: string }>`select current_setting('application_name') as name`
      assert.strictEqual(row?.name, "millrace")
    }))

  it.live("reads its options from Config", () =>
    Effect.gen(function*() {
      const { url } = yield* makeDatabase
      const context = yield* Layer.build(
        Postgres.layerConfig({ url: Config.Redacted("QUEUE_DB"), maxConnections: Config.Int("SIZE") })
      ).pipe(
        Effect.provideService(ConfigProvider.ConfigProvider, ConfigProvider.fromUnknown({ QUEUE_DB: url, SIZE: 2 }))
      )
      const sql = yield* Effect.provide(PgClient, context)
      assert.strictEqual((yield* sql`select 1`).length, 1)
      const error = failureOf(
        yield* Effect.exit(Effect.scoped(Layer.build(Postgres.layerConfig({ url: Config.Redacted("QUEUE_DB") })))).pipe(
          Effect.provideService(ConfigProvider.ConfigProvider, ConfigProvider.fromUnknown({}))
        )
      )
      assert.strictEqual(error.reason, "InvalidConfig")
    }))
})

describe("a plain client", () => {
  it.live("keeps working beside ours", () =>
    Effect.gen(function*() {
      const { url } = yield* makeDatabase
      const context = yield* Layer.build(PlainClient.layer({ url: Redacted.make(url) }))
      const sql = yield* Effect.provide(PgClient, context)
      assert.strictEqual(yield* sql.withTransaction(hasBegun(sql)), "foreign")
    }))
})

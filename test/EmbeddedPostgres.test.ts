import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { spawn } from "node:child_process"
import { access, chmod, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import * as EmbeddedPostgres from "../src/EmbeddedPostgres.ts"
import { locate } from "../src/internal/postgres/binaries.ts"
import * as DataFolder from "../src/internal/postgres/dataFolder.ts"
import * as OsProcess from "../src/internal/postgres/process.ts"
import * as Server from "../src/internal/postgres/server.ts"
import * as Postgres from "../src/Postgres.ts"
import { TestServer } from "./utils/database.ts"

const isRoot = process.getuid?.() === 0

/** A place for data folders, removed at the end. */
const place = Effect.acquireRelease(
  Effect.promise(() => mkdtemp(join(tmpdir(), "millrace-embedded-"))),
  (path) => Effect.promise(() => rm(path, { recursive: true, force: true }))
).pipe(Effect.tap((path) => Effect.promise(() => chmod(path, 0o755))))

const exists = (path: string) => Effect.isSuccess(Effect.tryPromise(() => access(path)))

const isGone = (pid: number) => Effect.map(OsProcess.isAlive({ pid, startedAt: "" }), (alive) => !alive)

const until = <E, R>(condition: Effect.Effect<boolean, E, R>) =>
  Effect.repeat(condition, { until: (isSo) => isSo, schedule: Schedule.spaced("10 millis"), times: 2000 })

const failureOf = <A, E>(exit: Exit.Exit<A, E>): E => {
  const error = Exit.findErrorOption(exit)
  if (error._tag === "None") throw new Error("expected a typed failure")
  return error.value
}

const connect = (url: string): Effect.Effect<PgClient, Postgres.PostgresError, Scope.Scope> =>
  Effect.flatMap(Layer.build(Postgres.layer({ url })), (context) => Effect.provide(PgClient, context))

/** Fails as `make` does in this folder, with nothing left running. */
const refused = (options: EmbeddedPostgres.Options) =>
  Effect.map(Effect.exit(Effect.scoped(EmbeddedPostgres.make({ durable: false, ...options }))), failureOf)

const Started = Schema.fromJsonString(
  Schema.Struct({ url: Schema.String, dataDir: Schema.String, port: Schema.Int, pid: Schema.Int })
)

/** Another process with an embedded server; killed at the end. */
const startChild = Effect.fnUntraced(function*(dataDir: string | undefined, cwd = process.cwd()) {
  const child = yield* Effect.acquireRelease(
    Effect.sync(() =>
      // A group of its own, as a terminal gives to what it runs.
      spawn(process.execPath, [
        fileURLToPath(new URL("./utils/embeddedChild.ts", import.meta.url)),
        ...(dataDir === undefined ? [] : [dataDir])
      ], {
        cwd,
        detached: true,
        stdio: ["ignore", "pipe", "inherit"]
      })
    ),
    (child) => Effect.sync(() => child.kill("SIGKILL"))
  )
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const nextLine = Effect.promise(() => lines.next()).pipe(Effect.map(({ value }) => String(value)))
  const started = yield* Effect.flatMap(nextLine, Schema.decodeUnknownEffect(Started))
  const exited = Effect.callback<void>((resume) => {
    if (child.exitCode !== null || child.signalCode !== null) return resume(Effect.void)
    child.once("exit", () => resume(Effect.void))
  })
  return { child, exited, nextLine, ...started }
})

describe("EmbeddedPostgres", () => {
  it.live.runIf(isRoot)(
    "as root in a folder that no other account may enter, the default data folder is one that the server can use",
    () =>
      Effect.gen(function*() {
        const closed = yield* place
        yield* Effect.promise(() => chmod(closed, 0o700))
        const server = yield* startChild(undefined, closed)
        yield* Effect.addFinalizer(() => Effect.promise(() => rm(server.dataDir, { recursive: true, force: true })))
        assert.isFalse(server.dataDir.startsWith(closed))
        const sql = yield* connect(server.url)
        assert.deepStrictEqual(yield* sql`select 1 as answer`, [{ answer: 1 }])
        server.child.kill("SIGINT")
        yield* server.exited
        assert.isTrue(yield* isGone(server.pid))
      }).pipe(Effect.scoped)
  )

  it.live("keeps its data from run to run, and leaves no process behind", () =>
    Effect.gen(function*() {
      const dataDir = join(yield* place, "deep", "postgres")
      const options = { dataDir, durable: false, database: "my db" }
      const run = <A, E>(effect: Effect.Effect<A, E, PgClient | EmbeddedPostgres.EmbeddedPostgres>) =>
        Effect.scoped(Effect.provide(effect, EmbeddedPostgres.layer(options)))
      const first = yield* run(Effect.gen(function*() {
        const sql = yield* PgClient
        yield* sql`create table kept as select 'grüße' as text`
        const [row] = yield* sql`select current_database() as name, pg_encoding_to_char(encoding) as encoding
          from pg_database where datname = current_database()`
        assert.deepStrictEqual({ ...row }, { name: "my db", encoding: "UTF8" })
        return yield* EmbeddedPostgres.EmbeddedPostgres
      }))
      assert.strictEqual(first.dataDir, dataDir)
      assert.isFalse(yield* exists(join(dataDir, "data", "postmaster.pid")))
      assert.deepStrictEqual((yield* Effect.promise(() => readdir(dataDir))).sort(), ["data", "password", "server.log"])
      const kept = yield* run(Effect.flatMap(PgClient, (sql) => sql<{ text: string }>`select text from kept`))
      assert.deepStrictEqual(kept.map(({ text }) => text), ["grüße"])
    }))

  it.live("gives both tags, its settings, and removes a temporary folder", () =>
    Effect.gen(function*() {
      // One of a run that was killed, and one that is in use.
      const [dead, alive] = [join(tmpdir(), "millrace-postgres-dead"), join(tmpdir(), "millrace-postgres-alive")]
      yield* Effect.addFinalizer(() => Effect.andThen(DataFolder.remove(dead), DataFolder.remove(alive)))
      for (const [path, pid] of [[dead, 4_194_304], [alive, process.pid]] as const) {
        yield* Effect.promise(() => mkdir(path, { recursive: true }))
        yield* Effect.promise(() => writeFile(join(path, "owner.json"), JSON.stringify({ pid, startedAt: "" })))
      }
      const dataDir = yield* Effect.scoped(Effect.provide(
        Effect.gen(function*() {
          const sql = yield* PgClient
          const [row] = yield* sql<Record<string, string>>`select current_setting('max_connections') as size,
            current_setting('fsync') as fsync, current_setting('application_name') as name`
          assert.deepStrictEqual({ ...row }, { size: "17", fsync: "off", name: "mine" })
          return (yield* EmbeddedPostgres.EmbeddedPostgres).dataDir
        }),
        EmbeddedPostgres.layer({
          isTemporary: true,
          durable: false,
          serverOptions: { max_connections: "17" },
          client: { applicationName: "mine", maxConnections: 2 }
        })
      ))
      assert.isFalse(yield* exists(dataDir))
      assert.isFalse(yield* exists(dead))
      assert.isTrue(yield* exists(alive))
    }))

  it.live("says why it does not run", () =>
    Effect.gen(function*() {
      const root = yield* place
      const dataDir = join(root, "postgres")
      // What an initdb that was killed leaves behind is thrown away.
      yield* Effect.promise(() => mkdir(join(dataDir, "data.new", "half"), { recursive: true }))
      const broken = yield* refused({ dataDir, serverOptions: { max_connections: "many" } })
      assert.strictEqual(broken.reason, "StartFailed")
      assert.match(broken.message, /invalid value for parameter "max_connections"/)

      const port = yield* Effect.acquireRelease(
        Effect.callback<{ readonly port: number; readonly close: () => void }>((resume) => {
          const server = createServer()
          server.listen(0, "127.0.0.1", () => {
            const address = server.address()
            resume(Effect.succeed({
              port: typeof address === "object" && address !== null ? address.port : 0,
              close: () => server.close()
            }))
          })
        }),
        ({ close }) => Effect.sync(close)
      )
      assert.strictEqual((yield* refused({ dataDir, port: port.port })).reason, "PortTaken")

      yield* Effect.promise(() => writeFile(join(root, "file"), ""))
      assert.strictEqual((yield* refused({ dataDir: join(root, "file", "postgres") })).reason, "FolderUnwritable")
      const closed = join(root, "closed")
      yield* Effect.promise(() => mkdir(closed, { mode: isRoot ? 0o700 : 0o500 }))
      const unwritable = yield* refused({ dataDir: join(closed, "postgres") })
      assert.strictEqual(unwritable.reason, "FolderUnwritable")
      assert.include(unwritable.message, closed)

      yield* Effect.promise(() => writeFile(join(dataDir, "data", "PG_VERSION"), "15\n"))
      const older = yield* refused({ dataDir })
      assert.strictEqual(older.reason, "DataFolderVersionMismatch")
      assert.match(older.message, /PostgreSQL 15.* 18/)
      assert.deepStrictEqual(yield* exists(join(dataDir, "owner.json")), false)
    }))

  it.live("refuses a folder whose owner lives, and takes over one whose owner was killed", () =>
    Effect.gen(function*() {
      const dataDir = join(yield* place, "postgres")
      const child = yield* startChild(dataDir)
      const sql = yield* connect(child.url)
      yield* sql`create table kept as select 7 as n`
      const inUse = yield* refused({ dataDir })
      assert.strictEqual(inUse.reason, "FolderInUse")
      assert.include(inUse.message, `process ${child.child.pid}`)
      assert.isFalse(yield* isGone(child.pid))

      process.kill(child.child.pid ?? 0, "SIGKILL")
      yield* child.exited
      const rows = yield* Effect.scoped(Effect.provide(
        Effect.flatMap(PgClient, (sql) => sql<{ n: number }>`select n from kept`),
        EmbeddedPostgres.layer({ dataDir, durable: false })
      ))
      assert.deepStrictEqual(rows.map(({ n }) => n), [7])
      assert.isTrue(yield* isGone(child.pid))
    }))

  it.live("ends with its owner, even one that is killed", () =>
    Effect.gen(function*() {
      const child = yield* startChild(join(yield* place, "postgres"))
      process.kill(child.child.pid ?? 0, "SIGKILL")
      yield* until(isGone(child.pid))
      assert.isTrue(yield* isGone(child.pid))
    }))

  it.live("outlives Ctrl-C until its owner's finalizers have run", () =>
    Effect.gen(function*() {
      const child = yield* startChild(join(yield* place, "postgres"))
      // The terminal sends it to the whole group.
      process.kill(-(child.child.pid ?? 0), "SIGINT")
      assert.strictEqual(yield* child.nextLine, JSON.stringify({ answer: 1 }))
      yield* child.exited
      assert.strictEqual(child.child.exitCode, 0)
      assert.isTrue(yield* isGone(child.pid))
    }))

  it.live("stops a server that a dead owner left running, and only such a one", () =>
    Effect.gen(function*() {
      const dataDir = join(yield* place, "postgres")
      const binaries = yield* locate()
      const folder = yield* Effect.scoped(DataFolder.open(dataDir, binaries, false))
      const port = yield* Server.freePort
      const leftover = yield* Server.start(binaries, folder, { port, isDurable: false, serverOptions: {} })
      // A number that no process has.
      yield* Effect.promise(() =>
        writeFile(join(dataDir, "owner.json"), JSON.stringify({ pid: 4_194_304, startedAt: "1" }))
      )
      const { url } = yield* EmbeddedPostgres.make({ dataDir, durable: false })
      assert.isTrue(yield* isGone(leftover.pid))
      assert.strictEqual((yield* Effect.flatMap(connect(url), (sql) => sql`select 1`)).length, 1)
    }))

  it.live("is not fooled by numbers of processes that are used again", () =>
    Effect.gen(function*() {
      const dataDir = join(yield* place, "postgres")
      const url = Effect.scoped(Effect.map(EmbeddedPostgres.make({ dataDir, durable: false }), ({ url }) => url))
      yield* url
      // As after a container's restart: both numbers belong to somebody else now, who is alive.
      const data = join(dataDir, "data")
      yield* Effect.promise(() =>
        writeFile(join(dataDir, "owner.json"), JSON.stringify({ pid: process.pid, startedAt: "1" }))
      )
      yield* Effect.promise(() => writeFile(join(data, "postmaster.pid"), `${process.pid}\n${data}\n`))
      yield* url
      assert.isFalse(yield* exists(join(data, "postmaster.pid")))
    }))

  it.live("is two errors for two layers of one process on one folder", () =>
    Effect.gen(function*() {
      const dataDir = join(yield* place, "postgres")
      const refused = yield* Deferred.make<void>()
      const both = yield* Effect.all(
        [1, 2].map(() =>
          EmbeddedPostgres.make({ dataDir, durable: false }).pipe(
            Effect.tapError(() => Deferred.succeed(refused, undefined)),
            // Whoever has the folder keeps it until the other one has been told.
            Effect.andThen(Deferred.await(refused)),
            Effect.scoped,
            Effect.exit
          )
        ),
        { concurrency: "unbounded" }
      )
      const failures = both.filter(Exit.isFailure).map(failureOf)
      assert.deepStrictEqual(failures.map(({ reason }) => reason), ["FolderInUse"])
    }))

  it.live("says in its log what it did", () =>
    Effect.gen(function*() {
      const dataDir = join(yield* place, "postgres")
      yield* Effect.scoped(EmbeddedPostgres.make({ dataDir, durable: false }))
      const log = yield* Effect.promise(() => readFile(join(dataDir, "server.log"), "utf8"))
      assert.match(log, /ready to accept connections/)
      assert.match(log, /received fast shutdown request/)
    }))
})

describe("a client whose server restarts", () => {
  it.live("works again, whether it was stopped or killed", () =>
    Effect.gen(function*() {
      const server = yield* TestServer
      const sql = yield* connect(server.url)
      yield* sql`create table kept (n int)`
      const ends = [server.restart("fast"), server.restart("immediate"), Effect.andThen(server.kill, server.start)]
      for (const [n, end] of ends.entries()) {
        yield* sql.withTransaction(sql`insert into kept values (${n})`)
        yield* end
        yield* Effect.retry(sql`select 1`, { schedule: Schedule.spaced("20 millis"), times: 200 })
      }
      const rows = yield* sql<{ n: number }>`select n from kept order by n`
      assert.deepStrictEqual(rows.map(({ n }) => n), [0, 1, 2])
      yield* server.stop("fast")
      const refused = failureOf(yield* Effect.exit(Effect.scoped(connect(server.url))))
      assert.strictEqual(refused.reason, "ConnectionRefused")
      yield* server.start
    }).pipe(Effect.provide(TestServer.layer)))
})

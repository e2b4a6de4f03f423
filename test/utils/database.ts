/**
 * Databases and servers for tests: `TestDatabase` is a fresh database on the server of the run (see globalSetup.ts), `TestServer`
 * a server of the test's own, to be stopped and started at will.
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Semaphore from "effect/Semaphore"
import type { SqlClient } from "effect/sql/SqlClient"
import { randomBytes } from "node:crypto"
import { mkdtemp } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { inject } from "vitest"
import { locate } from "../../src/internal/postgres/binaries.ts"
import * as DataFolder from "../../src/internal/postgres/dataFolder.ts"
import * as OsProcess from "../../src/internal/postgres/process.ts"
import * as Server from "../../src/internal/postgres/server.ts"
import * as Postgres from "../../src/Postgres.ts"

const withDatabase = (url: string, database: string): string => {
  const parsed = new URL(url)
  parsed.pathname = `/${database}`
  return parsed.toString()
}

/** Runs one statement on a session of its own. */
const runOn = (url: string, statement: string) =>
  Effect.orDie(
    Effect.scoped(
      Effect.flatMap(PgConnection.make({ url: Redacted.make(url) }), (session) => session.query(statement, [], false))
    )
  )

/** Makes an empty database, dropped when the scope closes, whoever is still connected. */
export const makeDatabase = Effect.acquireRelease(
  Effect.gen(function*() {
    const server = inject("serverUrl")
    const name = `test_${randomBytes(6).toString("hex")}`
    yield* runOn(server, `create database ${name} template template0`)
    return { name, url: withDatabase(server, name) }
  }),
  ({ name }) => runOn(inject("serverUrl"), `drop database if exists ${name} with (force)`)
)

/** A database of the test's own; `url` is for child processes. */
export class TestDatabase extends Context.Service<TestDatabase, {
  readonly url: string
  readonly name: string
}>()("millrace/test/TestDatabase") {
  /** A fresh database, and a client of it with these options. */
  static readonly layerWith = (
    options: Omit<Postgres.Options, "url">
  ): Layer.Layer<TestDatabase | PgClient.PgClient | SqlClient, Postgres.PostgresError> =>
    Layer.provideMerge(
      Layer.unwrap(Effect.map(TestDatabase, ({ url }) => Postgres.layer({ ...options, url }))),
      TestDatabase.layerDatabase
    )

  /** A fresh database without a client. */
  static readonly layerDatabase: Layer.Layer<TestDatabase> = Layer.effect(TestDatabase)(makeDatabase)

  /** A fresh database, and a client of it as users have it. */
  static readonly layer = TestDatabase.layerWith({})
}

/** The URL of the test's database. */
export const databaseUrl: Effect.Effect<string, never, TestDatabase> = Effect.map(TestDatabase, ({ url }) => url)

/** A server of the test's own, on a port that stays the same. Its methods wait until what they ask for is so. */
export class TestServer extends Context.Service<TestServer, {
  /** Its database `postgres`. */
  readonly url: string
  readonly port: number
  readonly start: Effect.Effect<void>
  readonly stop: (mode: Server.StopMode) => Effect.Effect<void>
  readonly restart: (mode: Server.StopMode) => Effect.Effect<void>
  /** Kills the postmaster with SIGKILL. */
  readonly kill: Effect.Effect<void>
}>()("millrace/test/TestServer") {
  /** Running from the start; stopped and its folder removed at the end. `settings` are those of `postgresql.conf`. */
  static readonly layerWith = (settings: Readonly<Record<string, string>>): Layer.Layer<TestServer> =>
    Layer.effect(TestServer)(Effect.orDie(Effect.gen(function*() {
      const root = yield* Effect.acquireRelease(
        Effect.promise(() => mkdtemp(join(tmpdir(), "millrace-server-"))),
        DataFolder.remove
      )
      const binaries = yield* locate()
      const folder = yield* DataFolder.open(root, binaries, false)
      const password = yield* DataFolder.readPassword(folder)
      const port = yield* Server.freePort
      const lock = yield* Semaphore.make(1)
      let running: Server.Server | undefined
      const start = Effect.gen(function*() {
        if (running !== undefined) return
        running = yield* Server.start(binaries, folder, { port, isDurable: false, serverOptions: settings }).pipe(
          // Sessions of a killed postmaster need a moment to see that it is gone.
          Effect.retry({ schedule: Schedule.spaced("50 millis"), times: 100 }),
          Effect.orDie
        )
      })
      const stop = (mode: Server.StopMode) =>
        Effect.gen(function*() {
          if (running === undefined) return
          yield* running.stop(mode)
          running = undefined
        })
      const kill = Effect.gen(function*() {
        if (running === undefined) return
        yield* OsProcess.signal(running.pid, "SIGKILL")
        yield* running.stop("immediate")
        running = undefined
      })
      yield* Effect.acquireRelease(start, () => stop("immediate"))
      return {
        url: `postgres://${DataFolder.superuser}:${password}@127.0.0.1:${port}/postgres`,
        port,
        start: lock.withPermit(start),
        stop: (mode) => lock.withPermit(stop(mode)),
        restart: (mode) => lock.withPermit(Effect.andThen(stop(mode), start)),
        kill: lock.withPermit(kill)
      }
    })))

  static readonly layer = TestServer.layerWith({})
}

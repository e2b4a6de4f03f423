/**
 * A process that runs an embedded server in the folder given (or none: the default one), says so on a line of its own (JSON), and ends with Ctrl-C. Its last act
 * is to ask the server for something: it must still be there.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.ts"

const say = (value: unknown) => Effect.sync(() => process.stdout.write(`${JSON.stringify(value)}\n`))

const program = Effect.gen(function*() {
  const sql = yield* PgClient
  yield* Effect.addFinalizer(() => Effect.ignore(Effect.flatMap(sql`select 1 as answer`, ([row]) => say(row))))
  const [row] = yield* sql<
    { pid: number }
  >`select (string_to_array(pg_read_file('postmaster.pid'), E'\n'))[1]::int as pid`
  yield* say({ ...(yield* EmbeddedPostgres.EmbeddedPostgres), pid: row?.pid })
  return yield* Effect.never
})

const fiber = Effect.runFork(
  Effect.provide(Effect.scoped(program), EmbeddedPostgres.layer({ dataDir: process.argv[2], durable: false }))
)
process.on("SIGINT", () => void Effect.runPromise(Fiber.interrupt(fiber)).then(() => process.exit(0)))

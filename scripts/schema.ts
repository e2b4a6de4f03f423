/**
 * `npm run schema`: writes test/schema.sql, what the migrations make of an empty database. With `--check`: compares, exit code 1 if it differs.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { PgClient } from "@effect/sql-pg/PgClient"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { readFile, writeFile } from "node:fs/promises"
import { fileURLToPath } from "node:url"
import * as EmbeddedPostgres from "../src/EmbeddedPostgres.ts"
import * as Migrations from "../src/Migrations.ts"
import * as Postgres from "../src/Postgres.ts"
import { dumpSchema } from "./schemaDump.ts"

const file = fileURLToPath(new URL("../test/schema.sql", import.meta.url))

const firstDifference = (left: ReadonlyArray<string>, right: ReadonlyArray<string>) => {
  const at = left.findIndex((line, index) => line !== right[index])
  return at === -1 ? left.length : at
}

const program = Effect.gen(function*() {
  const pool = yield* Postgres.makePool(yield* PgClient, { maxConnections: 1 })
  yield* Migrations.run(pool, { schema: "millrace" })
  const dump = yield* dumpSchema(pool, "millrace")
  if (!process.argv.includes("--check")) {
    yield* Effect.promise(() => writeFile(file, dump))
    return yield* Console.log(`wrote ${file}`)
  }
  const committed = yield* Effect.promise(() => readFile(file, "utf8").catch(() => ""))
  if (committed === dump) return
  const [ours, theirs] = [dump.split("\n"), committed.split("\n")]
  const at = firstDifference(ours, theirs)
  yield* Console.error(
    `test/schema.sql differs from what the migrations make, first at line ${at + 1}:\n- ${theirs[at] ?? "(end)"}\n+ ${
      ours[at] ?? "(end)"
    }\nRun npm run schema and commit the result.`
  )
  process.exitCode = 1
})

NodeRuntime.runMain(
  Effect.scoped(program).pipe(Effect.provide(EmbeddedPostgres.layer({ isTemporary: true, durable: false })))
)

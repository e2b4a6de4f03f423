/**
 * `npm run schema`: writes test/schema.sql, what the migrations make of an empty database. With `--check`: compares, exit code 1 if it differs.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import { fileURLToPath } from "node:url"
import * as EmbeddedPostgres from "../src/EmbeddedPostgres.ts"
import * as Migrations from "../src/Migrations.ts"
import * as Postgres from "../src/Postgres.ts"
import { dumpSchema } from "./schemaDump.ts"
import { written } from "./shared/written.ts"

const file = fileURLToPath(new URL("../test/schema.sql", import.meta.url))

const program = Effect.gen(function*() {
  const pool = yield* Postgres.makePool(yield* PgClient, { maxConnections: 1 })
  yield* Migrations.run(pool, { schema: "millrace" })
  yield* written(file, yield* dumpSchema(pool, "millrace"), "npm run schema")
})

NodeRuntime.runMain(
  Effect.scoped(program).pipe(Effect.provide(EmbeddedPostgres.layer({ isTemporary: true, durable: false })))
)

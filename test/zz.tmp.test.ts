import { it } from "@effect/vitest"
import { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Migrations from "../src/Migrations.ts"
import * as Postgres from "../src/Postgres.ts"
import { TestDatabase } from "./utils/database.ts"
it.live("x", () => Effect.gen(function*() {
  const client = yield* PgClient
  const sql = yield* Postgres.makePool(client, { maxConnections: 1 })
  const log = (s: string) => Effect.sync(() => console.log(s))
  yield* sql.unsafe(`create role rr login password 'p'`); yield* log("1")
  yield* sql.unsafe(`create schema tenant_jobs authorization rr`); yield* log("2")
  yield* sql.unsafe(`set role rr`); yield* log("3")
  yield* log(String(yield* Effect.exit(Migrations.run(sql, { schema: "tenant_jobs" }))))
  yield* sql.unsafe("reset role")
  yield* log(String(yield* Effect.exit(sql.unsafe(`drop owned by rr`)))); 
  yield* log(String(yield* Effect.exit(sql.unsafe(`drop role rr`)))); 
}).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)), 10000)

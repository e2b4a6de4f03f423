/**
 * The schema's steps: who may take them, when, and what becomes of a process that does not fit the database.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Order from "effect/Order"
import type { Scope } from "effect/Scope"
import { readFile } from "node:fs/promises"
import { dumpSchema } from "../scripts/schemaDump.ts"
import { liveCodes, outcomeCodes } from "../src/JobState.ts"
import * as Migrations from "../src/Migrations.ts"
import * as Postgres from "../src/Postgres.ts"
import { lanes } from "../src/Priority.ts"
import { TestDatabase } from "./utils/database.ts"

const own = Effect.flatMap(PgClient, (client) => Effect.orDie(Postgres.makePool(client, { maxConnections: 1 })))

const inDatabase = <A, E>(test: Effect.Effect<A, E, PgClient | TestDatabase | Scope>) =>
  Effect.provide(Effect.scoped(test), TestDatabase.layer)

const step = (number: number, servesFrom: number, ...statements: ReadonlyArray<string>): Migrations.Migration => ({
  number,
  name: `step${number}`,
  servesFrom,
  statements
})

const reasonOf = (effect: Effect.Effect<unknown, Migrations.MigrationError>) =>
  Effect.map(Effect.flip(effect), ({ reason }) => reason)

describe("Migrations", () => {
  it.live("several processes that start at once migrate once, and all of them find the schema ready", () =>
    inDatabase(Effect.gen(function*() {
      const pools = yield* Effect.all(Array.from({ length: 8 }, () => own))
      const taken = yield* Effect.all(pools.map((pool) => Migrations.run(pool, { schema: "millrace" })), {
        concurrency: "unbounded"
      })
      assert.deepStrictEqual(taken.flat(), Migrations.migrations.map(({ number }) => number))
      for (const pool of pools) yield* pool`select count(*)::int from millrace.jobs`
    })))

  it.live("a step that fails leaves nothing of itself or of the steps before it", () =>
    inDatabase(Effect.gen(function*() {
      const sql = yield* own
      const bad = [
        step(1, 1, "create table {schema}.one (id int)"),
        step(2, 1, "create table {schema}.two (id int)", "select 1 / 0")
      ]
      const error = yield* Effect.flip(Migrations.run(sql, { schema: "millrace", migrations: bad }))
      assert.strictEqual(error.reason, "Failed")
      assert.strictEqual(error.sqlState, "22012")
      const [row] = yield* sql<{ readonly name: string | null }>`select to_regnamespace('millrace')::text as name`
      assert.isNull(row?.name)
    })))

  it.live("a step that was changed after it was applied is an error, not a second schema", () =>
    inDatabase(Effect.gen(function*() {
      const sql = yield* own
      yield* Migrations.run(sql, { schema: "millrace", migrations: [step(1, 1, "create table {schema}.one (id int)")] })
      const changed = [step(1, 1, "create table {schema}.one (id bigint)")]
      assert.strictEqual(
        yield* reasonOf(Migrations.run(sql, { schema: "millrace", migrations: changed })),
        "ChecksumMismatch"
      )
    })))

  it.live("older code starts beside a newer schema that still serves it, and not beside one that does not", () =>
    inDatabase(Effect.gen(function*() {
      const sql = yield* own
      const one = step(1, 1, "create table {schema}.one (id int)")
      const expand = step(2, 1, "alter table {schema}.one add column name text")
      const contract = step(3, 2, "alter table {schema}.one drop column id")
      yield* Migrations.run(sql, { schema: "millrace", migrations: [one, expand], codeVersion: 2 })
      assert.deepStrictEqual(yield* Migrations.run(sql, { schema: "millrace", migrations: [one], codeVersion: 1 }), [])
      yield* Migrations.run(sql, { schema: "millrace", migrations: [one, expand, contract], codeVersion: 2 })
      assert.strictEqual(
        yield* reasonOf(Migrations.run(sql, { schema: "millrace", migrations: [one], codeVersion: 1 })),
        "CodeTooOld"
      )
    })))

  it.live("a schema name that would need quotes is refused before anything is created", () =>
    inDatabase(Effect.gen(function*() {
      const sql = yield* own
      for (const schema of ["Millrace", "a b", "x;drop", "", "user"]) {
        assert.strictEqual(yield* reasonOf(Migrations.run(sql, { schema })), "InvalidSchema", schema)
      }
    })))

  it.live("a user without the right to create schemas can migrate into one made for it", () =>
    inDatabase(Effect.gen(function*() {
      const sql = yield* own
      const { name } = yield* TestDatabase
      const role = `role_${name}`
      yield* sql.unsafe(`create role ${role} login password 'p'`)
      yield* Effect.addFinalizer(() =>
        Effect.orDie(Effect.andThen(sql.unsafe(`drop owned by ${role}`), sql.unsafe(`drop role ${role}`)))
      )
      yield* sql.unsafe(`create schema tenant_jobs authorization ${role}`)
      yield* sql.unsafe(`set role ${role}`)
      assert.deepStrictEqual(
        yield* Migrations.run(sql, { schema: "tenant_jobs" }),
        Migrations.migrations.map(({ number }) => number)
      )
      yield* sql.unsafe("reset role")
    })))

  it.live("the checks in the database are the codes of JobState", () =>
    inDatabase(Effect.gen(function*() {
      const sql = yield* own
      yield* Migrations.run(sql, { schema: "millrace" })
      const checks = yield* sql<{ readonly name: string; readonly definition: string }>`
        select conname::text as name, pg_get_constraintdef(oid) as definition from pg_constraint
        where contype = 'c' and connamespace = 'millrace'::regnamespace`
      const codesOf = (name: string) => {
        const definition = checks.find((check) => check.name === name)?.definition ?? ""
        return [...definition.matchAll(/\d+/g)].map(([code]) => Number(code)).toSorted(Order.Number)
      }
      assert.deepStrictEqual(codesOf("jobs_state"), Object.values(liveCodes).toSorted(Order.Number))
      assert.deepStrictEqual(codesOf("finished_jobs_outcome"), Object.values(outcomeCodes).toSorted(Order.Number))
      assert.deepStrictEqual(codesOf("jobs_lane"), [0, lanes.length - 1])
    })))

  it.live("test/schema.sql is the schema that the steps make: npm run schema writes it", () =>
    inDatabase(Effect.gen(function*() {
      const sql = yield* own
      yield* Migrations.run(sql, { schema: "millrace" })
      const committed = yield* Effect.promise(() => readFile(new URL("schema.sql", import.meta.url), "utf8"))
      assert.strictEqual(yield* dumpSchema(sql, "millrace"), committed)
    })))
})

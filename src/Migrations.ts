/**
 * The numbered, immutable, checksummed steps of the schema, and their runner. All pending steps are one transaction under an advisory lock,
 * so several processes may start at once and a crash leaves either all of them or none. Each step names the oldest code that it serves
 * (expand first, contract later): a process starts unless the database says it serves only newer code.
 */
import type { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { isSqlError, type SqlError } from "effect/sql/SqlError"
import { createHash } from "node:crypto"
import { messageOf } from "./internal/sql/database.ts"
import { sqlState } from "./internal/sql/transaction.ts"
import store from "./migrations/0001_store.ts"
import grouped from "./migrations/0002_grouped.ts"
import together from "./migrations/0003_together.ts"
import partitions from "./migrations/0004_partitions.ts"
import moves from "./migrations/0005_moves.ts"
import locks from "./migrations/0006_locks.ts"
import reruns from "./migrations/0007_reruns.ts"
import type { Migration } from "./migrations/migration.ts"

export type { Migration } from "./migrations/migration.ts"

/** Raised with every change of the code that needs a newer schema, or that an older code could not share one with. */
export const codeVersion = 7

/** Every step, in order. */
export const migrations: ReadonlyArray<Migration> = [store, grouped, together, partitions, moves, locks, reruns]

/**
 * The schema cannot be used by this code. `ChecksumMismatch`: an applied step is not the one in this code. `CodeTooOld`: the database
 * serves only newer code. `InvalidSchema`: not a name that needs no quotes. `Failed`: the database refused a step.
 */
export class MigrationError extends Schema.TaggedError<MigrationError>("millrace/MigrationError")("MigrationError", {
  reason: Schema.Literals(["ChecksumMismatch", "CodeTooOld", "InvalidSchema", "Failed"]),
  message: Schema.String,
  sqlState: Schema.optionalKey(Schema.String),
  cause: Schema.optional(Schema.Defect())
}) {}

/** What a step is recognised by. The schema's name is no part of it. */
export const checksum = ({ statements }: Migration): string =>
  createHash("sha256").update(statements.join(";\n")).digest("hex")

interface Applied {
  readonly number: number
  readonly name: string
  readonly checksum: string
  readonly serves_from: number
}

const schemaName = /^[a-z_][a-z0-9_]{0,47}$/

const failed = (error: SqlError): MigrationError => {
  const state = sqlState(error)
  return new MigrationError({
    reason: "Failed",
    message: `the schema could not be prepared: ${messageOf(error)}`,
    cause: error,
    ...(state === undefined ? {} : { sqlState: state })
  })
}

const mismatch = (step: Migration, applied: Applied, schema: string) =>
  new MigrationError({
    reason: "ChecksumMismatch",
    message:
      `migration ${step.number} (${step.name}) was applied to schema "${schema}" with checksum ${
        applied.checksum.slice(0, 12)
      }, ` +
      `this code has ${checksum(step).slice(0, 12)}: applied migrations must not change; add a new one`
  })

const tooOld = (servesFrom: number, ours: number, schema: string) =>
  new MigrationError({
    reason: "CodeTooOld",
    message:
      `schema "${schema}" serves code version ${servesFrom} and later, this is ${ours}: deploy a newer version of millrace`
  })

/** The steps still to be taken, once nothing speaks against the ones that were. */
const pending = (steps: ReadonlyArray<Migration>, applied: ReadonlyArray<Applied>, ours: number, schema: string) => {
  const servesFrom = Math.max(0, ...applied.map(({ serves_from }) => serves_from))
  if (servesFrom > ours) return Effect.fail(tooOld(servesFrom, ours, schema))
  const todo: Array<Migration> = []
  for (const step of steps) {
    const found = applied.find(({ number }) => number === step.number)
    if (found === undefined) todo.push(step)
    else if (found.checksum !== checksum(step)) return Effect.fail(mismatch(step, found, schema))
  }
  return Effect.succeed(todo)
}

const apply = Effect.fnUntraced(
  function*(sql: PgClient, schema: string, steps: ReadonlyArray<Migration>, ours: number) {
    // Ended by COMMIT. `create ... if not exists` alone is no protection: two at once fail on the catalogue's unique indexes.
    yield* sql`select pg_advisory_xact_lock(hashtext(${`millrace.migrate.${schema}`}))`
    const exists = yield* sql<{ readonly yes: boolean }>`select to_regnamespace(${schema}) is not null as yes`
    // Creating a schema takes a right that its mere user need not have.
    if (exists[0]?.yes !== true) yield* sql.unsafe(`create schema ${schema}`)
    yield* sql.unsafe(`
create table if not exists ${schema}.migrations (
  number      int primary key,
  name        text not null,
  checksum    text not null,
  serves_from int not null,               -- the oldest version of the code that works with the schema after this step
  applied_at  timestamptz not null default now()
)`)
    const todo = yield* pending(steps, yield* readApplied(sql, schema), ours, schema)
    for (const step of todo) {
      for (const statement of step.statements) yield* sql.unsafe(statement.replaceAll("{schema}", schema)).unprepared
      yield* sql.unsafe(
        `insert into ${schema}.migrations (number, name, checksum, serves_from) values ($1, $2, $3, $4)`,
        [
          step.number,
          step.name,
          checksum(step),
          step.servesFrom
        ]
      )
    }
    return todo.map(({ number }) => number)
  }
)

const readApplied = (sql: PgClient, schema: string): Effect.Effect<ReadonlyArray<Applied>, SqlError> =>
  sql.unsafe<Applied>(`select number, name, checksum, serves_from from ${schema}.migrations order by number`)

/**
 * Brings `schema` up to date and answers with the numbers of the steps it took: none where another process was first.
 *
 * `sql` has to be a plain client. Waits while another process migrates.
 */
export const run = Effect.fnUntraced(function*(
  sql: PgClient,
  options: {
    readonly schema: string
    readonly migrations?: ReadonlyArray<Migration>
    readonly codeVersion?: number
  }
): Effect.fn.Return<ReadonlyArray<number>, MigrationError> {
  const { schema } = options
  const steps = options.migrations ?? migrations
  const ours = options.codeVersion ?? codeVersion
  if (!schemaName.test(schema)) {
    return yield* new MigrationError({
      reason: "InvalidSchema",
      message: `schema: expected up to 48 lower-case letters, digits and underscores, received "${schema}"`
    })
  }
  return yield* Effect.gen(function*() {
    const [found] = yield* sql<{ readonly quoted: string; readonly ready: boolean }>`
      select quote_ident(${schema}) as quoted, to_regclass(${`${schema}.migrations`}) is not null as ready`
    if (found?.quoted !== schema) {
      return yield* new MigrationError({
        reason: "InvalidSchema",
        message: `schema: "${schema}" is a reserved word of SQL`
      })
    }
    // Nothing to do in the common case: no lock, no transaction.
    if (found.ready && (yield* pending(steps, yield* readApplied(sql, schema), ours, schema)).length === 0) return []
    return yield* sql.withTransaction(apply(sql, schema, steps, ours))
  }).pipe(
    // The lock of another process that migrates, or that of a long transaction in the way: wait for it.
    Effect.retry({ while: (error) => isSqlError(error) && sqlState(error) === "55P03", times: 60 }),
    Effect.mapError((error) => isSqlError(error) ? failed(error) : error),
    Effect.withTracerEnabled(false)
  )
})

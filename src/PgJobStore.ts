/**
 * The durable mailbox on PostgreSQL. Each verb is one file in `internal/sql`, with its statement, invariants and serving index.
 *
 * A job's row is written once and deleted once on its straight way; whoever deletes it, at the version it read, owns the outcome. A crash at
 * any line leaves a live row that is run again, or its outcome, never both and never neither.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import { Lending } from "./internal/postgres/lending.ts"
import { announce, announcements } from "./internal/sql/announce.ts"
import { listening } from "./internal/sql/channel.ts"
import * as Clock from "./internal/sql/clock.ts"
import * as Database from "./internal/sql/database.ts"
import { cancel, replay } from "./internal/sql/deadLetter.ts"
import { transactGrouped } from "./internal/sql/group.ts"
import { heads, intake, payload, reread } from "./internal/sql/intake.ts"
import { declareQueue, leftovers, queues, shardGroups } from "./internal/sql/layout.ts"
import { fields, type Options, resolve, type Settings } from "./internal/sql/options.ts"
import { depth, find } from "./internal/sql/query.ts"
import * as Retention from "./internal/sql/retention.ts"
import { heard, say } from "./internal/sql/say.ts"
import { nextDue, promote } from "./internal/sql/schedule.ts"
import { settle } from "./internal/sql/settle.ts"
import { agreeOnShards, shards } from "./internal/sql/shards.ts"
import * as Submit from "./internal/sql/submit.ts"
import { countCrashes, handOver, isOwner, noteDone, noteRunning, takeOver } from "./internal/sql/takeOver.ts"
import { terminator } from "./internal/sql/terminate.ts"
import { refence, transact } from "./internal/sql/transact.ts"
import { transactionsOf } from "./internal/sql/transaction.ts"
import { checkFields } from "./internal/words/options.ts"
import { JobStore, type StoreError } from "./JobStore.ts"
import * as Migrations from "./Migrations.ts"
import * as Postgres from "./Postgres.ts"

export type { Options } from "./internal/sql/options.ts"

/**
 * Makes the store. Handlers and callers use `PgClient` as it is given; Millrace's own statements get a small pool to the same database. The
 * schema is brought up to date first, so that a wrong database fails here and not at the first job. Wrong options throw, see {@link layer}.
 */
export const make = (
  options: Options = {}
): Effect.Effect<JobStore["Service"], Migrations.MigrationError | StoreError, PgClient | Scope.Scope> =>
  makeWith(settingsOf("PgJobStore.make", options))

const settingsOf = (where: string, options: Options): Settings => {
  checkFields(where, options, fields)
  return resolve(where, options)
}

const makeWith = Effect.fnUntraced(function*(
  { connections, lockTimeoutMs, schema }: Settings
): Effect.fn.Return<JobStore["Service"], Migrations.MigrationError | StoreError, PgClient | Scope.Scope> {
  const client = yield* PgClient
  const lockTimeout = Duration.millis(lockTimeoutMs)
  const makePool = (maxConnections: number, settings: Readonly<Record<string, string>>) =>
    Postgres.makePool(client, {
      maxConnections,
      applicationName: "millrace",
      // A row is one message: payload, result or failure, history, each bounded. What can be stored can be read.
      maxMessageSize: 64 * 1024 * 1024,
      startupParameters: { ...Database.startupParameters(lockTimeout), ...settings }
    }).pipe(Effect.mapError(Database.toStoreError("connect")))
  const pool = yield* makePool(connections + 1, {})
  yield* Database.checkSettings(pool, Database.startupParameters(lockTimeout))
  yield* Migrations.run(pool, { schema })

  // Opened when the first job is submitted alone.
  const planned = yield* makePool(2, Database.plannedOnce)
  const db = Database.make(pool, schema)
  const clock = yield* Clock.make(Clock.databaseTime(db))
  const listen = yield* listening(pool, schema)
  const retention = Retention.make(db)
  const lending = transactionsOf(client)?.lending ?? new Lending()
  const terminate = terminator(db)
  const alone = transact(db, client, { foresee: retention.foresee, terminate }, lending)
  const settleMany = settle(db, retention.inDays, retention.foresee)
  return {
    now: clock.now,
    declareQueue: declareQueue(db),
    queues: queues(db),
    leftovers: leftovers(db),
    shardGroups: shardGroups(db),
    agreeOnShards: agreeOnShards(db),
    shards: shards(db),
    submit: Submit.make(db, client, Math.ceil(lockTimeoutMs), Database.runOn(planned)),
    isInTransaction: Submit.isInTransaction(client),
    afterCommit: (effect) => client.afterCommit(effect),
    announce: announce(db),
    announcements: announcements(listen),
    say: say(db),
    heard: heard(listen),
    find: find(db),
    takeOver: takeOver(db),
    isOwner: isOwner(db),
    handOver: handOver(db),
    countCrashes: countCrashes(db),
    intake: intake(db),
    heads: heads(db),
    payload: payload(db),
    reread: reread(db),
    noteRunning: noteRunning(db),
    noteDone: noteDone(db),
    settle: settleMany,
    transact: alone,
    transactGrouped: yield* transactGrouped(db, client, retention, { alone, terminate }),
    endTransactions: (job) => lending.sever(job, terminate),
    handlerServices: Context.make(PgClient, client).pipe(Context.add(SqlClient, client)),
    shortage: Effect.sync(() => lending.shortage),
    refence: refence(db),
    promote: promote(db),
    nextDue: nextDue(db),
    cancel: cancel(db, retention.inDays),
    replay: replay(db),
    depth: depth(db),
    purge: (now) => Effect.andThen(clock.measure, retention.purge(now))
  }
})

/** The store over the `PgClient` in context. Wrong options are a mistake of the program and throw a `RangeError` that names the field. */
export const layer = (options: Options = {}): Layer.Layer<JobStore, Migrations.MigrationError | StoreError, PgClient> =>
  Layer.effect(JobStore, makeWith(settingsOf("PgJobStore.layer", options)))

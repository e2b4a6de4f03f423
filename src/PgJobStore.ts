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
import { depth, find } from "./internal/sql/query.ts"
import * as Retention from "./internal/sql/retention.ts"
import { heard, say } from "./internal/sql/say.ts"
import { nextDue, promote } from "./internal/sql/schedule.ts"
import { settle } from "./internal/sql/settle.ts"
import { agreeOnShards, shards } from "./internal/sql/shards.ts"
import * as Submit from "./internal/sql/submit.ts"
import { countCrashes, handOver, isOwner, noteDone, noteRunning, takeOver } from "./internal/sql/takeOver.ts"
import { refence, transact } from "./internal/sql/transact.ts"
import { transactionsOf } from "./internal/sql/transaction.ts"
import { JobStore, type StoreError } from "./JobStore.ts"
import * as Migrations from "./Migrations.ts"
import * as Postgres from "./Postgres.ts"

/** What {@link layer} takes. */
export interface Options {
  /** The schema that holds everything of Millrace, `millrace` by default: lower-case letters, digits, underscores. */
  readonly schema?: string | undefined
  /** Connections for Millrace's own statements, 4 by default. Listening to other processes takes one more, submitting two more. */
  readonly connections?: number | undefined
  /** How long a statement of the store waits for a lock, 5 seconds by default. */
  readonly lockTimeout?: Duration.Input | undefined
}

/**
 * Makes the store. Handlers and callers use `PgClient` as it is given; Millrace's own statements get a small pool to the same database. The
 * schema is brought up to date first, so that a wrong database fails here and not at the first job.
 */
export const make = Effect.fnUntraced(function*(
  options: Options = {}
): Effect.fn.Return<JobStore["Service"], Migrations.MigrationError | StoreError, PgClient | Scope.Scope> {
  const client = yield* PgClient
  const schema = options.schema ?? "millrace"
  const connections = options.connections ?? 4
  const lockTimeout = Duration.fromInputUnsafe(options.lockTimeout ?? "5 seconds")
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
  const alone = transact(schema, client, retention.foresee, lending)
  const settleMany = settle(db, retention.inDays, retention.foresee)
  return {
    now: clock.now,
    declareQueue: declareQueue(db),
    queues: queues(db),
    leftovers: leftovers(db),
    shardGroups: shardGroups(db),
    agreeOnShards: agreeOnShards(db),
    shards: shards(db),
    submit: Submit.make(db, client, Math.ceil(Duration.toMillis(lockTimeout)), Database.runOn(planned)),
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
    transactGrouped: yield* transactGrouped(db, client, retention, alone),
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

/** The store over the `PgClient` in context. */
export const layer = (options: Options = {}): Layer.Layer<JobStore, Migrations.MigrationError | StoreError, PgClient> =>
  Layer.effect(JobStore, make(options))

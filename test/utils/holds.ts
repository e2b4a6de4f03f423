/**
 * Ways to hold an interleaving on PostgreSQL without sleeping: transactions that stop inside COMMIT, and waiting until somebody waits.
 */
import type { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"

/**
 * A table for handlers to write to. A row with `hold` stops its transaction inside COMMIT (after its settlement) until nobody has that
 * advisory lock; one with `other` must find that id at COMMIT.
 */
export const makeBusinessTable = (sql: PgClient) =>
  Effect.forEach([
    `create table public.business (id text primary key, hold bigint, other text references public.business deferrable initially deferred)`,
    `create function public.hold() returns trigger language plpgsql as $$
     begin perform pg_advisory_xact_lock_shared(new.hold); return null; end $$`,
    `create constraint trigger hold after insert on public.business deferrable initially deferred
     for each row when (new.hold is not null) execute function public.hold()`
  ], (statement) =>
    sql.unsafe(statement), { discard: true })

/** Takes an advisory lock on a session of its own until the scope closes or `release` runs. */
export const holdLock = (sql: PgClient, key: number) =>
  Effect.gen(function*() {
    const session = yield* sql.reserve
    yield* session.executeUnprepared("select 1 from pg_advisory_lock($1)", [key], undefined)
    const release = Effect.asVoid(session.executeUnprepared("select pg_advisory_unlock_all()::text", [], undefined))
    yield* Effect.addFinalizer(() => Effect.ignore(release))
    return { release }
  })

interface Waiting {
  readonly pid: number
}

/** The sessions that wait for a lock in this database, once there are `count`. */
export const untilWaiting = (sql: PgClient, count = 1, event = "%") =>
  sql<Waiting>`select pid from pg_stat_activity
    where datname = current_database() and wait_event_type = 'Lock' and wait_event like ${event} order by query_start`
    .pipe(
      Effect.repeat({ until: (rows) => rows.length >= count, schedule: Schedule.spaced("5 millis") })
    )

/** Ends a session, as a crash of its process would. */
export const terminate = (sql: PgClient, pid: number) => sql`select pg_terminate_backend(${pid}, 5000)`

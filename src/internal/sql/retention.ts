/**
 * retention: the days of finished_jobs. A day is made when something is first finished into it (or just before, by purge), and dropped as a
 * whole when it is over. DETACH CONCURRENTLY first: a plain drop waited for a reader and held settlements back for seconds.
 * A crash between detach and drop leaves a table by itself, or a detach half done: the next purge ends both.
 */
import * as Effect from "effect/Effect"
import type { Connection } from "effect/sql/SqlConnection"
import type { SqlError } from "effect/sql/SqlError"
import type { StoreError } from "../../JobStore.ts"
import { type Database, isMissingDay, toStoreError } from "./database.ts"
import { dayOf, int4 } from "./rows.ts"

/** Runs a statement that writes finished rows into these days, whose partitions are made first. */
export type InDays = <A>(
  days: ReadonlySet<number>,
  statement: Effect.Effect<A, StoreError>
) => Effect.Effect<A, StoreError>

/** Remembers how long finished rows are kept, so that purge can make tomorrow's partitions ahead of time. */
export type Foresee = (now: number, purgeAt: number) => void

/** At most so many days are dropped by one purge. */
const maxDrops = 100

interface Day {
  readonly name: string
  readonly how: "attached" | "pending" | "alone"
}

// The days that are over, oldest first: a day that has only begun holds rows whose retention has not passed. Their dates are in their names.
const daysSql = (schema: string) => `
select c.relname::text as name, case when i.inhrelid is null then 'alone' when i.inhdetachpending then 'pending' else 'attached' end as how
from pg_catalog.pg_class c
left join pg_catalog.pg_inherits i on i.inhrelid = c.oid and i.inhparent = '${schema}.finished_jobs'::regclass
where c.relnamespace = '${schema}'::regnamespace and c.relkind = 'r' and c.relname ~ '^finished_jobs_\\d{8}$'
  and c.relname < 'finished_jobs_' || to_char(date '1970-01-01' + $1, 'YYYYMMDD')
order by c.relname limit ${maxDrops}`

export const make = (db: Database) => {
  const { schema } = db
  /** Days whose partitions this process has seen. Another one's purge may drop them: see `inDays`. */
  const known = new Set<number>()
  /** How many days after their finishing this process's rows may go. */
  const horizons = new Set<number>()
  const ensure = `select 1 from ${schema}.ensure_partition(date '1970-01-01' + $1)`
  const days = daysSql(schema)

  const prepare = (wanted: Iterable<number>): Effect.Effect<void, StoreError> =>
    Effect.suspend(() =>
      Effect.forEach(
        [...wanted].filter((day) => !known.has(day)),
        (day) => Effect.andThen(db.run("retention", ensure, [int4(day)]), Effect.sync(() => known.add(day))),
        { discard: true }
      )
    )

  const inDays: InDays = (wanted, statement) =>
    Effect.andThen(prepare(wanted), statement).pipe(
      Effect.tapErrorTag("StoreError", (error) =>
        Effect.sync(() => {
          if (isMissingDay(error)) known.clear()
        })),
      Effect.retry({ times: 3, while: isMissingDay })
    )

  const foresee: Foresee = (now, purgeAt) => {
    horizons.add(dayOf(purgeAt) - dayOf(now))
  }

  const remove = (connection: Connection, { how, name }: Day): Effect.Effect<void, SqlError> => {
    const send = (sql: string) => connection.executeUnprepared(sql, [], undefined)
    const detach = how === "attached"
      ? send(`alter table ${schema}.finished_jobs detach partition ${schema}.${name} concurrently`)
      : how === "pending"
      ? send(`alter table ${schema}.finished_jobs detach partition ${schema}.${name} finalize`)
      : Effect.void
    return Effect.asVoid(Effect.andThen(detach, send(`drop table ${schema}.${name}`)))
  }

  /** On a connection of its own: DETACH CONCURRENTLY is no part of a transaction, and the lock that keeps others out is a session's. */
  const dropPast = Effect.fnUntraced(function*(now: number) {
    const connection = yield* db.pool.reserve
    const lock = `hashtext('${schema}.purge')`
    const [locked] = yield* connection.executeValuesUnprepared(`select pg_try_advisory_lock(${lock})`, [])
    if (locked?.[0] !== true) return 0
    yield* Effect.addFinalizer(() =>
      Effect.ignore(connection.executeUnprepared(`select pg_advisory_unlock(${lock})`, [], undefined))
    )
    const past: ReadonlyArray<Day> = yield* Effect.map(
      connection.executeValuesUnprepared(days, [int4(dayOf(now))]),
      (rows) =>
        rows.map(([name, how]): Day => ({
          name: String(name),
          how: how === "pending" || how === "alone" ? how : "attached"
        }))
    )
    for (const day of past) yield* remove(connection, day)
    known.clear()
    return past.length
  })

  const purge = (now: number): Effect.Effect<number, StoreError> => {
    const today = dayOf(now)
    const ahead = [...horizons].flatMap((horizon) => [today + horizon, today + horizon + 1]).filter((day) =>
      day > today
    )
    return Effect.andThen(
      prepare(ahead),
      Effect.withTracerEnabled(Effect.mapError(Effect.scoped(dropPast(now)), toStoreError("purge")), false)
    )
  }

  return { foresee, inDays, purge }
}

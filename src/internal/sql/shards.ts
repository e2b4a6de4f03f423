/**
 * shards: how many shards a group has. The numbers of the shard locks depend on it, so runners that count otherwise could own one partition
 * at the same time: they are kept out while others live. A crash leaves the number as it was, or as it is now.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { LayoutError, ShardsDiffer } from "../../JobError.ts"
import type { JobStore, StoreError } from "../../JobStore.ts"
import { type Database, toStoreError } from "./database.ts"
import { int4, text } from "./rows.ts"

interface Shards {
  readonly shards: number
  readonly expiration_ms: number
}

const sharedSql = (schema: string) => `select shards, expiration_ms from ${schema}.cluster`

/** How Effect's SqlRunnerStorage numbers the advisory locks of a prefix: FNV-1a, which it promises never to change. */
export const lockNamespace = (prefix: string): number => {
  let hash = 0x811c9dc5
  for (const byte of new TextEncoder().encode(`effect-cluster:${prefix}`)) hash = Math.imul(hash ^ byte, 0x01000193)
  return hash >>> 0
}

/** The prefix of the cluster's tables and locks. */
export const clusterPrefix = (schema: string): string => `${schema}_cluster`

/** Whether a row `l` of pg_locks is a shard lock of this schema that somebody holds. */
export const isShardLockSql = (schema: string): string =>
  `l.locktype = 'advisory' and l.granted and l.objsubid = 2 and l.classid = ${lockNamespace(clusterPrefix(schema))}
  and l.database = (select oid from pg_database where datname = current_database())`

// Who has been heard of since, and whoever holds a lock without having been heard of: a process that is stopped.
const livingSql = (schema: string) => `
select address from ${schema}.${
  clusterPrefix(schema)
}_runners where last_heartbeat > localtimestamp - $1 * interval '1 ms'
union
select 'process ' || coalesce(client_addr::text, 'local') || ':' || coalesce(client_port::text, pid::text)
from pg_locks l join pg_stat_activity a using (pid)
where ${isShardLockSql(schema)}`

export const shards = (db: Database): Effect.Effect<Option.Option<number>, StoreError> =>
  Effect.map(
    db.run<Shards>("shards", sharedSql(db.schema), []),
    ([stored]) => Option.map(Option.fromUndefinedOr(stored), (one) => one.shards)
  )

export const agreeOnShards = (db: Database): JobStore["Service"]["agreeOnShards"] => {
  const { schema } = db
  const read = sharedSql(schema)
  const write = `insert into ${schema}.cluster (shards, expiration_ms) values ($1, $2)
    on conflict (one) do update set shards = excluded.shards, expiration_ms = excluded.expiration_ms, changed_at = now()`
  const hasRunners = `select to_regclass('${schema}.${clusterPrefix(schema)}_runners') is not null as yes`

  const living = (expirationMs: number) =>
    Effect.gen(function*() {
      // Made by the first runner of all.
      const [found] = yield* db.run<{ readonly yes: boolean }>("agreeOnShards", hasRunners, [])
      if (found?.yes !== true) return []
      return yield* db.run<{ readonly address: string }>("agreeOnShards", livingSql(schema), [int4(expirationMs)])
    })

  return (ours) =>
    db.pool.withTransaction(Effect.gen(function*() {
      yield* db.run("agreeOnShards", "select pg_advisory_xact_lock(hashtext($1))", [text(`millrace.cluster.${schema}`)])
      const [stored] = yield* db.run<Shards>("agreeOnShards", read, [])
      if (stored !== undefined && stored.shards !== ours.shards) {
        const others = yield* living(stored.expiration_ms)
        if (others.length > 0) {
          return yield* new LayoutError({
            reason: new ShardsDiffer({
              stored: stored.shards,
              asked: ours.shards,
              living: others.map(({ address }) => address)
            })
          })
        }
      }
      if (stored?.shards === ours.shards && stored.expiration_ms === ours.expirationMs) return
      yield* db.run("agreeOnShards", write, [int4(ours.shards), int4(ours.expirationMs)])
    })).pipe(
      Effect.mapError((error) => error._tag === "SqlError" ? toStoreError("agreeOnShards")(error) : error),
      Effect.withTracerEnabled(false)
    )
}

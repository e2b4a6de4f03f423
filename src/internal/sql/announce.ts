/**
 * announce: tells owners in other processes of ready rows, by NOTIFY after the commit (inside the submitting transaction it would serialise
 * all commits). Nothing depends on it: lost ones are found by the sweep.
 */
import type { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { Ready, StoreError } from "../../JobStore.ts"
import { type Database, toStoreError } from "./database.ts"
import { text, texts } from "./rows.ts"

/** PostgreSQL takes less than 8000 bytes. */
const maxBytes = 7_900

const Payload = Schema.fromJsonString(
  Schema.Array(Schema.Tuple([Schema.Int, Schema.Int, Schema.Int, Schema.String, Schema.Int]))
)
const decode = Schema.decodeUnknownOption(Payload)

/** The channel of one schema. */
export const channelOf = (schema: string) => `${schema}_wake`

/** The lowest seq of each queue, partition, lane and tenant, in as few payloads as fit. What fits into none is left to the sweep. */
export const payloads = (ready: ReadonlyArray<Ready>): ReadonlyArray<string> => {
  const lowest = new Map<string, Ready>()
  for (const one of ready) {
    const key = `${one.queueId}/${one.partition}/${one.lane}/${one.tenant}`
    const known = lowest.get(key)
    if (known === undefined || one.seq < known.seq) lowest.set(key, one)
  }
  const encoder = new TextEncoder()
  const all: Array<string> = []
  let open: Array<string> = []
  let bytes = 2
  for (const { lane, partition, queueId, seq, tenant } of lowest.values()) {
    const item = JSON.stringify([queueId, partition, lane, tenant, seq])
    const size = encoder.encode(item).byteLength + 1
    if (size + 2 > maxBytes) continue
    if (bytes + size > maxBytes) {
      all.push(`[${open.join(",")}]`)
      open = []
      bytes = 2
    }
    open.push(item)
    bytes += size
  }
  return open.length === 0 ? all : [...all, `[${open.join(",")}]`]
}

export const announce = (db: Database) => {
  const sql = "select count(pg_notify($1, p))::int4 as sent from unnest($2) as u(p)"
  return (ready: ReadonlyArray<Ready>): Effect.Effect<void, StoreError> => {
    const sent = payloads(ready)
    return sent.length === 0
      ? Effect.void
      : Effect.asVoid(db.run("announce", sql, [text(channelOf(db.schema)), texts(sent)]))
  }
}

const toReady = (payload: string): ReadonlyArray<Ready> =>
  Option.match(decode(payload), {
    onNone: () => [],
    onSome: (items) =>
      items.map(([queueId, partition, lane, tenant, seq]) => ({ queueId, partition, lane, tenant, seq }))
  })

/** Holds one connection of the pool. A payload that is not ours is passed over. */
export const announcements = (
  pool: PgClient,
  schema: string
): Effect.Effect<Queue.Dequeue<ReadonlyArray<Ready>, StoreError>, StoreError, Scope.Scope> =>
  Effect.gen(function*() {
    const source = yield* Effect.mapError(pool.listen(channelOf(schema)), toStoreError("announcements"))
    const heard = yield* Effect.acquireRelease(Queue.unbounded<ReadonlyArray<Ready>, StoreError>(), Queue.shutdown)
    yield* Queue.take(source).pipe(
      Effect.flatMap(({ payload }) => {
        const ready = toReady(payload)
        return ready.length === 0 ? Effect.void : Queue.offer(heard, ready)
      }),
      Effect.forever,
      Effect.mapError(toStoreError("announcements")),
      Effect.catchCause((cause) => Queue.failCause(heard, cause)),
      Effect.forkScoped
    )
    return heard
  })

/**
 * The one channel of a schema: NOTIFY after the commit (inside a transaction it would serialise all commits), and one LISTEN a process,
 * held while somebody here listens. Nothing depends on a payload: what a lost connection or a crash swallows is found by looking.
 */
import type { PgClient } from "@effect/sql-pg/PgClient"
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as RcRef from "effect/RcRef"
import type * as Scope from "effect/Scope"
import type { StoreError } from "../../JobStore.ts"
import { type Database, toStoreError } from "./database.ts"
import { text, texts } from "./rows.ts"

/** PostgreSQL takes less than 8000 bytes. */
export const maxBytes = 7_900

const encoder = new TextEncoder()

/** The size of a text as it is sent. */
export const bytesOf = (text: string): number => encoder.encode(text).byteLength

/** Its name. */
const channelOf = (schema: string) => `${schema}_wake`

/** Sends payloads, each of at most `maxBytes`. */
export const notify = (db: Database) => {
  const sql = "select count(pg_notify($1, p))::int4 as sent from unnest($2) as u(p)"
  return (operation: string, payloads: ReadonlyArray<string>): Effect.Effect<void, StoreError> =>
    payloads.length === 0
      ? Effect.void
      : Effect.asVoid(db.run(operation, sql, [text(channelOf(db.schema)), texts(payloads)]))
}

/** JSON items in as few payloads as fit. What fits into none is left out. */
export const pack = (
  items: Iterable<string>,
  head: string,
  tail: string
): { readonly payloads: ReadonlyArray<string>; readonly left: number } => {
  const frame = bytesOf(head) + bytesOf(tail)
  const payloads: Array<string> = []
  let open: Array<string> = []
  let bytes = frame
  let left = 0
  const close = () => {
    if (open.length > 0) payloads.push(`${head}${open.join(",")}${tail}`)
    open = []
    bytes = frame
  }
  for (const item of items) {
    const size = bytesOf(item) + 1
    if (frame + size > maxBytes) {
      left++
      continue
    }
    if (bytes + size > maxBytes) close()
    open.push(item)
    bytes += size
  }
  close()
  return { payloads, left }
}

/** Payloads from the moment of the effect's return; fails when the connection is lost: what was sent meanwhile is missed. */
export type Listen = Effect.Effect<Queue.Dequeue<string, StoreError>, StoreError, Scope.Scope>

/** Who listens on one connection, and how it has ended. */
interface Line {
  readonly listeners: Set<Queue.Queue<string, StoreError>>
  ended: Cause.Cause<StoreError> | undefined
}

/** One connection of the pool for all that listen, none while nobody does. */
const lineOf = (pool: PgClient, schema: string) =>
  Effect.gen(function*() {
    const shared: RcRef.RcRef<Line, StoreError> = yield* RcRef.make({
      acquire: Effect.gen(function*() {
        const source = yield* pool.listen(channelOf(schema))
        const line: Line = { listeners: new Set(), ended: undefined }
        yield* Queue.take(source).pipe(
          Effect.flatMap(({ payload }) =>
            Effect.forEach(line.listeners, (listener) => Queue.offer(listener, payload), { discard: true })
          ),
          Effect.forever,
          Effect.mapError(toStoreError("listen")),
          Effect.catchCause((cause) => {
            line.ended = cause
            return Effect.andThen(
              RcRef.invalidate(shared),
              Effect.forEach(line.listeners, (listener) => Queue.failCause(listener, cause), { discard: true })
            )
          }),
          Effect.forkScoped
        )
        return line
      }).pipe(Effect.mapError(toStoreError("listen")), Effect.withTracerEnabled(false))
    })
    return shared
  })

/** The listening of one process. */
export const listening = (pool: PgClient, schema: string): Effect.Effect<Listen, never, Scope.Scope> =>
  Effect.map(
    lineOf(pool, schema),
    (shared): Listen =>
      Effect.flatMap(RcRef.get(shared), ({ ended, listeners }) =>
        ended !== undefined ? Effect.failCause(ended) : Effect.acquireRelease(
          Effect.tap(Queue.unbounded<string, StoreError>(), (listener) =>
            Effect.sync(() => listeners.add(listener))),
          (listener) => {
            listeners.delete(listener)
            return Queue.shutdown(listener)
          }
        ))
  )

/** What is heard, read: a payload that `read` makes nothing of is passed over. */
export const reading = <A>(
  listen: Listen,
  read: (payload: string) => ReadonlyArray<A>
): Effect.Effect<Queue.Dequeue<A, StoreError>, StoreError, Scope.Scope> =>
  Effect.gen(function*() {
    const source = yield* listen
    const heard = yield* Effect.acquireRelease(Queue.unbounded<A, StoreError>(), Queue.shutdown)
    yield* Queue.take(source).pipe(
      Effect.flatMap((payload) => Queue.offerAll(heard, read(payload))),
      Effect.forever,
      Effect.catchCause((cause) => Queue.failCause(heard, cause)),
      Effect.forkScoped
    )
    return heard
  })

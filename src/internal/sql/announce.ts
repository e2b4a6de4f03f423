/**
 * announce: tells owners in other processes of ready rows. Nothing depends on it: lost ones are found by the sweep.
 */
import type * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Queue from "effect/Queue"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { Ready, StoreError } from "../../JobStore.ts"
import { type Listen, notify, pack, reading } from "./channel.ts"
import type { Database } from "./database.ts"

const Payload = Schema.fromJsonString(
  Schema.Array(
    Schema.Tuple([Schema.Int, Schema.Int, Schema.Int, Schema.String, Schema.Int, Schema.optionalKey(Schema.String)])
  )
)
const decode = Schema.decodeUnknownOption(Payload)

/** The lowest seq of each queue, partition, lane and tenant, and of a key that its queue's order may hold back, in as few payloads as fit. What fits into none is left to the sweep. */
const payloadsOf = (ready: ReadonlyArray<Ready>): ReadonlyArray<string> => {
  const lowest = new Map<string, Ready>()
  for (const one of ready) {
    const key = `${one.queueId}/${one.partition}/${one.lane}/${one.tenant}\n${one.key ?? ""}`
    const known = lowest.get(key)
    if (known === undefined || one.seq < known.seq) lowest.set(key, one)
  }
  const items = [...lowest.values()].map(({ key, lane, partition, queueId, seq, tenant }) =>
    JSON.stringify([queueId, partition, lane, tenant, seq, ...(key === undefined ? [] : [key])])
  )
  return pack(items, "[", "]").payloads
}

export const announce = (db: Database) => {
  const send = notify(db)
  return (ready: ReadonlyArray<Ready>): Effect.Effect<void, StoreError> => send("announce", payloadsOf(ready))
}

const toReady = (payload: string): ReadonlyArray<ReadonlyArray<Ready>> =>
  Option.match(decode(payload), {
    onNone: () => [],
    onSome: (items) => [
      items.map(([queueId, partition, lane, tenant, seq, key]) => ({
        queueId,
        partition,
        lane,
        tenant,
        seq,
        ...(key === undefined ? {} : { key })
      }))
    ]
  })

/** What is announced, here too. */
export const announcements = (
  listen: Listen
): Effect.Effect<Queue.Dequeue<ReadonlyArray<Ready>, StoreError>, StoreError, Scope.Scope> => reading(listen, toReady)

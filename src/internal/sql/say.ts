/**
 * say: what processes tell each other beside ready rows, as JSON objects; a version of the code passes over those it does not know.
 */
import type * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Queue from "effect/Queue"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { JobId } from "../../JobId.ts"
import type { Message, StoreError } from "../../JobStore.ts"
import { bytesOf, type Listen, maxBytes, notify, reading } from "./channel.ts"
import type { Database } from "./database.ts"

/** Queue, partition, job, and who wants it cancelled. */
const Cancel = Schema.Struct({ cancel: Schema.Tuple([Schema.Int, Schema.Int, JobId, Schema.NullOr(Schema.String)]) })

const decode = Schema.decodeUnknownOption(Schema.fromJsonString(Cancel))

const payloadsOf = ({ by, jobId, partition, queueId }: Message): ReadonlyArray<string> => {
  const payload = (by: string | undefined) => JSON.stringify({ cancel: [queueId, partition, jobId, by ?? null] })
  // A name as long as a context may hold does not fit: cancelling matters more than by whom.
  return [bytesOf(payload(by)) > maxBytes ? payload(undefined) : payload(by)]
}

export const say = (db: Database) => {
  const send = notify(db)
  return (messages: ReadonlyArray<Message>): Effect.Effect<void, StoreError> =>
    send("say", messages.flatMap(payloadsOf))
}

const toMessages = (payload: string): ReadonlyArray<Message> =>
  Option.match(decode(payload), {
    onNone: () => [],
    onSome: ({ cancel: [queueId, partition, jobId, by] }) => [
      { _tag: "Cancel", queueId, partition, jobId, by: by ?? undefined }
    ]
  })

/** What is said, here too. */
export const heard = (listen: Listen): Effect.Effect<Queue.Dequeue<Message, StoreError>, StoreError, Scope.Scope> =>
  reading(listen, toMessages)

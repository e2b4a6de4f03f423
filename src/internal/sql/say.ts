/**
 * say: what processes tell each other beside ready rows. A payload is a JSON object, and the events below it on a line of their own, which
 * is read only where somebody wants them. A version of the code passes over what it does not know.
 */
import type * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Queue from "effect/Queue"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { JobFailure } from "../../JobError.ts"
import { JobEvent } from "../../JobEvent.ts"
import { JobId } from "../../JobId.ts"
import type { Message, StoreError } from "../../JobStore.ts"
import { bytesOf, type Listen, maxBytes, notify, pack, reading } from "./channel.ts"
import type { Database } from "./database.ts"

const Head = Schema.Union([
  /** Queue, partition, job, and who wants it cancelled. */
  Schema.Struct({ cancel: Schema.Tuple([Schema.Int, Schema.Int, JobId, Schema.NullOr(Schema.String)]) }),
  Schema.Struct({ interest: Schema.Tuple([Schema.String, Schema.Literals(["ends", "all"])]) }),
  Schema.Struct({ asking: Schema.String }),
  /** From, and how many are missed. */
  Schema.Struct({ events: Schema.Tuple([Schema.String, Schema.Int]) })
])
const headOf = Schema.decodeUnknownOption(Schema.fromJsonString(Head))
const head = (fields: typeof Head.Type): string => JSON.stringify(fields)

// ------------------------------------------------------------------------------------------------ events

/** Tag, job, type, queue, time, tenant, and what only this kind of event has. */
const Line = Schema.Tuple([
  Schema.String,
  Schema.String,
  Schema.String,
  Schema.String,
  Schema.Finite,
  Schema.NullOr(Schema.String),
  Schema.Record(Schema.String, Schema.Json)
])
const linesOf = Schema.decodeUnknownOption(Schema.fromJsonString(Schema.Array(Line)))
const eventOf = Schema.decodeUnknownOption(JobEvent)

/** Of a failure no more than shows what it was: the job has the rest. */
const brief = ({ class: errorClass, message, tag }: JobFailure): JobFailure => ({
  class: errorClass,
  tag,
  message: message.slice(0, 200)
})

const lineOf = (event: JobEvent): string => {
  const { _tag, at, jobId, queue, tenantId, type, ...rest } = event
  const own = "failure" in rest ? { ...rest, failure: brief(rest.failure) } : rest
  return JSON.stringify([_tag, jobId, type, queue, at, tenantId ?? null, own])
}

const readEvents = (lines: string): ReadonlyArray<JobEvent> =>
  Option.getOrElse(linesOf(lines), () => []).flatMap(([_tag, jobId, type, queue, at, tenant, own]) =>
    Option.toArray(
      eventOf({ ...own, _tag, jobId, type, queue, at, ...(tenant === null ? {} : { tenantId: tenant }) })
    )
  )

// ------------------------------------------------------------------------------------------------ messages

const payloadsOf = (message: Message): ReadonlyArray<string> => {
  switch (message._tag) {
    case "Cancel": {
      const { jobId, partition, queueId } = message
      const payload = (by: string | undefined) => head({ cancel: [queueId, partition, jobId, by ?? null] })
      // A name as long as a context may hold does not fit: cancelling matters more than by whom.
      return [bytesOf(payload(message.by)) > maxBytes ? payload(undefined) : payload(message.by)]
    }
    case "Interest":
      return [head({ interest: [message.from, message.interest] })]
    case "Asking":
      return [head({ asking: message.from })]
    case "Events": {
      const of = (missed: number) => head({ events: [message.from, missed] })
      const { left, payloads } = pack(message.events().map(lineOf), `${of(0)}\n[`, "]")
      const missed = message.missed + left
      return missed === 0 ? payloads : [of(missed), ...payloads]
    }
  }
}

export const say = (db: Database) => {
  const send = notify(db)
  return (messages: ReadonlyArray<Message>): Effect.Effect<void, StoreError> =>
    send("say", messages.flatMap(payloadsOf))
}

const toMessage = (found: typeof Head.Type, below: string | undefined): Message => {
  if ("cancel" in found) {
    const [queueId, partition, jobId, by] = found.cancel
    return { _tag: "Cancel", queueId, partition, jobId, by: by ?? undefined }
  }
  if ("interest" in found) return { _tag: "Interest", from: found.interest[0], interest: found.interest[1] }
  if ("asking" in found) return { _tag: "Asking", from: found.asking }
  const [from, missed] = found.events
  return { _tag: "Events", from, missed, events: () => below === undefined ? [] : readEvents(below) }
}

const toMessages = (payload: string): ReadonlyArray<Message> => {
  const end = payload.indexOf("\n")
  const [first, below] = end < 0 ? [payload, undefined] : [payload.slice(0, end), payload.slice(end + 1)]
  return Option.toArray(Option.map(headOf(first), (found) => toMessage(found, below)))
}

/** What is said, here too. */
export const heard = (listen: Listen): Effect.Effect<Queue.Dequeue<Message, StoreError>, StoreError, Scope.Scope> =>
  reading(listen, toMessages)

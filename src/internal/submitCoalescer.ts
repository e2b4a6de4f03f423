/**
 * Stores what many callers submit one by one at the same time, in one statement. Each gets its own answer.
 *
 * Promise: a job that the database refuses fails alone; one whose caller has been interrupted is stored, and told of, all the same. A crash
 * leaves each statement's jobs stored or not, all of them alike.
 */
import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import type { SubmitError } from "../JobError.ts"
import type { JobId } from "../JobId.ts"
import { type JobStore, StoreError } from "../JobStore.ts"
import * as Coalescer from "./coalescer.ts"
import type { Prepared } from "./newJob.ts"
import { failed } from "./submitError.ts"
import type { Teller } from "./submitted.ts"

/** One that waits. */
interface Item {
  readonly prepared: Prepared
  /** Its number, in the order of arrival. */
  readonly arrival: number
  isSent: boolean
}

/** An answer: the id, or why not. */
type Answer = Exit.Exit<JobId, SubmitError>

/** About how large a statement gets; a larger job travels alone. */
const maxMessageBytes = 1024 * 1024

/** Cuts what travels together into statements of bounded size. */
const inMessages = (items: ReadonlyArray<Item>): ReadonlyArray<ReadonlyArray<Item>> => {
  const messages: Array<ReadonlyArray<Item>> = []
  let start = 0
  let size = 0
  items.forEach(({ prepared: { bytes, job } }, index) => {
    const added = bytes + (job.context?.length ?? 0)
    if (size > 0 && size + added > maxMessageBytes) {
      messages.push(items.slice(start, index))
      start = index
      size = 0
    }
    size += added
  })
  return start < items.length ? [...messages, items.slice(start)] : messages
}

/** It was not sent, and will not be. */
const unsent = (cause: unknown) => new StoreError({ reason: "Unavailable", operation: "submit", cause })

/** Its statement was cut off. */
const cutOff = (cause: unknown) =>
  new StoreError({ reason: "Unavailable", operation: "submit", cause, isUncertain: true })

/** Stores one prepared job without a dedupe key, outside of any transaction of the caller's. */
export const make = (
  store: JobStore["Service"],
  tell: Teller
): Effect.Effect<(prepared: Prepared) => Effect.Effect<JobId, SubmitError>, never, Scope.Scope> =>
  Effect.gen(function*() {
    // A statement belongs to many callers: it runs in the context of none of them.
    const context = yield* Effect.context()
    const asNobody: (caller: Context.Context<never>) => Context.Context<never> = () => context
    let arrivals = 0
    /** While the store does not answer: who had arrived when it was last asked has waited as long as that took. */
    let outage: { readonly before: number; readonly error: StoreError } | undefined

    const write = (items: ReadonlyArray<Item>): Effect.Effect<ReadonlyArray<Answer>> => {
      const before = arrivals
      const jobs = items.map(({ prepared }) => prepared.job)
      // The oldest one's: what is due after its own submission must not look ready here.
      const now = items.reduce((oldest, { prepared }) => Math.min(oldest, prepared.at), Number.MAX_SAFE_INTEGER)
      return store.submit(jobs, { batchId: undefined, now }).pipe(
        Effect.matchEffect({
          onSuccess: (submitted) => {
            outage = undefined
            return Effect.as(
              tell(items.map(({ prepared }) => prepared), submitted, { batchId: undefined, isJoined: false }),
              submitted.map(({ id }) => Exit.succeed(id))
            )
          },
          onFailure: (error) => {
            if (error.reason === "Refused" && items.length > 1) {
              const half = Math.ceil(items.length / 2)
              return Effect.zipWith(
                write(items.slice(0, half)),
                write(items.slice(half)),
                (left, right) => [...left, ...right]
              )
            }
            if (error.reason === "Unavailable") outage = { before, error }
            return Effect.succeed(items.map(({ prepared }) => Exit.fail(failed(error, [prepared.job]))))
          }
        })
      )
    }

    /** Those who have waited out an outage are told so; the others are stored. */
    const run = (items: ReadonlyArray<Item>): Effect.Effect<ReadonlyArray<Answer>> => {
      const { before, error } = outage ?? { before: 0, error: undefined }
      // In the order of arrival: the late ones come first.
      const rest = before === 0 ? items : items.filter(({ arrival }) => arrival >= before)
      const written = Effect.map(
        Effect.forEach(inMessages(rest), (some) => {
          for (const item of some) item.isSent = true
          return Effect.updateContext(write(some), asNobody)
        }),
        (answers) => answers.flat()
      )
      if (rest.length === items.length || error === undefined) return written
      const late = Exit.fail(failed(unsent(error.cause), []))
      return Effect.map(written, (answers) => [...items.slice(rest.length).map(() => late), ...answers])
    }

    const coalesce = yield* Coalescer.make({
      run,
      maxBatch: 500,
      maxInFlight: 2
    })

    return (prepared) =>
      Effect.suspend(() => {
        const item: Item = { prepared, arrival: arrivals++, isSent: false }
        return Effect.flatten(Effect.catchCause(coalesce(item), (cause) =>
          Cause.hasInterruptsOnly(cause)
            ? Effect.fail(failed((item.isSent ? cutOff : unsent)(new Error("the runtime was stopped")), [prepared.job]))
            : Effect.failCause(cause)))
      })
  })

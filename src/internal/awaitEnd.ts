/**
 * `Jobs.await`: waits for the end of a job, told of by an event or seen in the table.
 *
 * Writes nothing. A caller whose process dies while it waits asks again: the job goes on without it.
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import type * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import type { EventBus } from "../EventBus.ts"
import type { Codec } from "../Job.ts"
import { type JobNotFound, JobUnsuccessful, type StoreUnavailable } from "../JobError.ts"
import { ends } from "../JobEvent.ts"
import type { JobId } from "../JobId.ts"
import { isFinal } from "../JobState.ts"
import type { JobStatus } from "../JobStatus.ts"
import type { JobReader, Typed } from "./jobReader.ts"
import { monotonicMillis, onLiveClock } from "./time/liveClock.ts"

/** Waits for a job, known by its id alone or with its definition. */
export interface AwaitEnd {
  (jobId: JobId): Effect.Effect<unknown, JobNotFound | JobUnsuccessful | StoreUnavailable>
  <Success extends Codec, Failure extends Codec>(
    jobId: JobId,
    definition: Typed<Success, Failure>
  ): Effect.Effect<
    Success["Type"],
    Failure["Type"] | JobNotFound | JobUnsuccessful | StoreUnavailable | Schema.SchemaError
  >
}

/** How long it waits for an event before it looks for itself, in milliseconds: at first, and at last. */
export const Pauses = Context.Reference<{ readonly first: number; readonly last: number }>(
  "millrace/internal/AwaitPauses",
  { defaultValue: () => ({ first: 100, last: 5_000 }) }
)

/** For how long a job that was seen once is waited for while the database does not answer: a restart of it ends no wait. */
const patienceMs = 30_000

/** Waits for jobs that `reader` finds. */
export const make = ({ find, idOf, statusOf }: JobReader, bus: EventBus["Service"]): AwaitEnd => {
  const ended = (asked: JobId) =>
    Effect.gen(function*() {
      const jobId = yield* idOf(asked)
      const events = yield* bus.subscribe({ jobId, tags: [...ends, "Missed"] })
      const told = Stream.runHead(events)
      const { first, last } = yield* Pauses
      // Events of other processes may get lost: look from time to time, ever more rarely.
      let isKnown = false
      let answeredAt = monotonicMillis()
      for (let pause = first;; pause = Math.min(pause * 2, last)) {
        const found = yield* Effect.result(find(jobId, "await"))
        if (Result.isSuccess(found)) {
          isKnown = true
          answeredAt = monotonicMillis()
          if (isFinal(found.success.state)) return yield* statusOf(found.success)
        } else if (
          found.failure._tag !== "StoreUnavailable" || !isKnown || monotonicMillis() - answeredAt >= patienceMs
        ) {
          return yield* found.failure
        }
        yield* Effect.raceFirst(told, onLiveClock(Effect.sleep(Duration.millis(pause))))
      }
    }).pipe(Effect.scoped)

  const unsuccessful = ({ failure, jobId, state }: JobStatus) =>
    new JobUnsuccessful({
      jobId,
      jobState: state,
      ...(failure === undefined ? {} : { errorTag: failure.tag, errorMessage: failure.message })
    })

  function awaitEnd(jobId: JobId): Effect.Effect<unknown, JobNotFound | JobUnsuccessful | StoreUnavailable>
  function awaitEnd<Success extends Codec, Failure extends Codec>(
    jobId: JobId,
    definition: Typed<Success, Failure>
  ): Effect.Effect<
    Success["Type"],
    Failure["Type"] | JobNotFound | JobUnsuccessful | StoreUnavailable | Schema.SchemaError
  >
  function awaitEnd(jobId: JobId, definition?: Typed<Codec, Codec>): Effect.Effect<unknown, unknown> {
    return Effect.gen(function*() {
      const status = yield* ended(jobId)
      if (status.state === "completed") {
        return definition === undefined ? status.result : yield* definition.decodeSuccess(status.result ?? null)
      }
      if (definition === undefined || status.error === undefined) return yield* unsuccessful(status)
      return yield* Effect.flatMap(definition.decodeError(status.error), Effect.fail)
    })
  }

  return awaitEnd
}

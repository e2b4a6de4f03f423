/**
 * What a failed attempt means: what is kept of its error, its class, what becomes of the job, and that as a settlement.
 *
 * Total, and it writes nothing: whatever a handler fails with gets a judgement. A crash here leaves the job's row as it was.
 */
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Random from "effect/Random"
import * as Result from "effect/Result"
import type * as Schema from "effect/Schema"
import * as JobError from "../JobError.ts"
import type { Handler } from "../JobHandlers.ts"
import type { Attempt } from "../JobHistory.ts"
import type { Retention } from "../JobQueue.ts"
import type { ReadyJob, Settlement } from "../JobStore.ts"
import * as RetryPolicy from "../RetryPolicy.ts"
import { wrongRetryAfter } from "./words/failure.ts"

/** The same failure as a settlement. Also for the runtime's own verdicts (crash loops, reruns that do not end). */
export const settlementOf = (
  job: ReadyJob,
  entry: Omit<Attempt, "outcome">,
  decision: RetryPolicy.Decision,
  failure: JobError.JobFailure,
  retention: Retention
): Settlement => {
  const { id, version } = job
  const brief = withoutLargeError(failure)
  switch (decision._tag) {
    case "Retry": {
      const dueAt = entry.endedAt + decision.delayMs
      return { _tag: "Retry", id, version, dueAt, entry: { ...entry, outcome: "retried", dueAt, failure: brief } }
    }
    case "DeadLetter":
      return {
        _tag: "DeadLetter",
        id,
        version,
        failure,
        isAttempt: true,
        entry: { ...entry, outcome: "dead-lettered", failure: brief }
      }
    case "Snooze": {
      const dueAt = entry.endedAt + decision.delayMs
      return { _tag: "PutBack", id, version, dueAt, entry: { ...entry, outcome: "put back", dueAt } }
    }
    case "Discard":
      return {
        _tag: "Finish",
        id,
        version,
        outcome: "cancelled",
        result: undefined,
        purgeAt: entry.endedAt + retention.cancelledMs,
        entry: { ...entry, outcome: "cancelled", failure: brief }
      }
  }
}

/** Of a typed error, in characters of JSON. */
const maxErrorLength = 1_000_000

/** History keeps at most 8 kB of an encoded error; the dead letter itself keeps all of it. */
export const withoutLargeError = (failure: JobError.JobFailure): JobError.JobFailure => {
  if (failure.error === undefined || JSON.stringify(failure.error).length <= 8_000) return failure
  const { error: _, ...rest } = failure
  return rest
}

/** Classifies a failure and decides. A policy of the user's that throws is a dead letter, not a wedged queue. */
export const judge = (
  cause: Cause.Cause<unknown>,
  handler: Handler,
  attempt: number
): Effect.Effect<{ readonly decision: RetryPolicy.Decision; readonly failure: JobError.JobFailure }> =>
  Effect.gen(function*() {
    const failed = cause.reasons.find(Cause.isFailReason)
    const error = failed === undefined ? Cause.squash(cause) : failed.error
    const { failure, isTyped } = yield* describe(error, failed !== undefined, handler)
    // Getters of the user's may throw.
    const asks = isTyped ? Result.getOrElse(Result.try(() => wrongRetryAfter(error)), () => undefined) : undefined
    if (asks !== undefined) {
      yield* Effect.logWarning(`The error ${failure.tag} does not say when to try again, its policy does: ${asks}`)
    }
    const question: RetryPolicy.Question = {
      policy: handler.retry,
      attempt,
      class: failure.class,
      error,
      retryAfterMs: isTyped
        ? Result.getOrElse(Result.try(() => JobError.retryAfterOf(error)), () => undefined)
        : undefined,
      asked: askedBy(error),
      jitter: yield* Random.next
    }
    const decision = yield* Effect.sync(() => RetryPolicy.decide(question)).pipe(
      Effect.catchCause((cause) =>
        Effect.as(
          Effect.logError("A custom retry policy died: the job becomes a dead letter", cause),
          { _tag: "DeadLetter" } satisfies RetryPolicy.Decision
        )
      )
    )
    return { decision, failure }
  })

/** What a failure says of itself that is to become of the job, also after the database broke its transaction. */
export const verdictOf = (cause: Cause.Cause<unknown>): "discard" | "snooze" | "timeout" | undefined => {
  const error = Cause.squash(cause)
  return error instanceof JobError.Discard
    ? "discard"
    : error instanceof JobError.Snooze
    ? "snooze"
    : error instanceof JobError.JobTimeout
    ? "timeout"
    : undefined
}

const askedBy = (error: unknown): RetryPolicy.Question["asked"] =>
  error instanceof JobError.Snooze
    ? { snoozeMs: Duration.toMillis(error.delay) }
    : error instanceof JobError.Discard
    ? { discard: error.because }
    : undefined

/**
 * The encoded error as plain JSON. None of what holds itself or a BigInt, which schemas like `Any` let through, and of what is too long, for a
 * dead letter has to stay readable: what is left of such an error is its tag and message.
 */
const jsonOf = (encoded: unknown): Schema.Json | undefined => {
  const text = Result.try((): string | undefined => JSON.stringify(encoded))
  if (Result.isFailure(text) || text.success === undefined || text.success.length > maxErrorLength) return undefined
  // oxlint-disable-next-line typescript/no-unsafe-return -- what was written as JSON a line above is read as JSON
  return JSON.parse(text.success)
}

/** What the definition says, what the error says of itself, or `Business`. Neither may hold up the judgement. */
const classOf = (error: unknown, handler: Handler): JobError.ErrorClass => {
  const named = Result.try(() => JobError.errorClassOf({ errorClass: handler.classify(error) }))
  if (Result.isSuccess(named) && named.success !== undefined) return named.success
  return Result.getOrElse(Result.try(() => JobError.errorClassOf(error)), () => undefined) ?? "Business"
}

/** Our own verdicts carry their class; a failure the definition can encode is typed; everything else is a defect, class System. */
const describe = (error: unknown, isFailure: boolean, handler: Handler) =>
  Effect.gen(function*() {
    if (
      error instanceof JobError.ParseError || error instanceof JobError.JobTimeout ||
      error instanceof JobError.CommitFailed ||
      error instanceof JobError.ResultTooLarge
    ) {
      return { failure: JobError.toFailure(error, { class: error.errorClass }), isTyped: true }
    }
    if (error instanceof JobError.Snooze || error instanceof JobError.Discard) {
      return { failure: JobError.toFailure(error, { class: "Business" }), isTyped: true }
    }
    const encoded = isFailure ? yield* Effect.exit(handler.encodeError(error)) : undefined
    if (encoded === undefined || Exit.isFailure(encoded)) {
      return { failure: JobError.toFailure(error, { class: "System" }), isTyped: false }
    }
    const json = jsonOf(encoded.value)
    const failure = JobError.toFailure(error, {
      class: classOf(error, handler),
      ...(json === undefined ? {} : { encoded: json })
    })
    return { failure, isTyped: true }
  })

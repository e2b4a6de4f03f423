/**
 * What a failed attempt means: what is kept of its error, its class, what becomes of the job, and that as a settlement.
 *
 * Total, and it writes nothing: whatever a handler fails with gets a judgement, also an error that throws at every touch, and so does
 * whatever its schema, `classify` or policy throws. A crash here leaves the job's row as it was.
 */
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Random from "effect/Random"
import type * as Schema from "effect/Schema"
import * as JobError from "../JobError.ts"
import type { Handler } from "../JobHandlers.ts"
import type { Attempt } from "../JobHistory.ts"
import type { Retention } from "../JobQueue.ts"
import type { ReadyJob, Settlement } from "../JobStore.ts"
import * as RetryPolicy from "../RetryPolicy.ts"
import { onLiveClock } from "./time/liveClock.ts"
import { told } from "./told.ts"
import { unjudged, wrongRetryAfter } from "./words/failure.ts"
import { stringify } from "./words/json.ts"
import { inspectableCause, isA, property, read } from "./words/safely.ts"

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

/** What becomes of a failed attempt, and what is kept of its failure. */
export interface Judged {
  readonly decision: RetryPolicy.Decision
  readonly failure: JobError.JobFailure
}

/**
 * Classifies a failure and decides. A policy of the user's that throws is a dead letter, not a wedged queue; a failure that cannot be judged
 * is one of class System.
 */
export const judge = (cause: Cause.Cause<unknown>, handler: Handler, attempt: number): Effect.Effect<Judged> =>
  Effect.catchCause(
    Effect.suspend(() => judged(cause, handler, attempt)),
    () =>
      Effect.map(
        decide({
          policy: handler.retry,
          attempt,
          class: unjudged.class,
          error: undefined,
          retryAfterMs: undefined,
          asked: undefined,
          jitter: 0.5
        }),
        (decision) => ({ decision, failure: unjudged })
      )
  )

/** What is kept of a failure, where nothing is to be decided. */
export const failureOf = (cause: Cause.Cause<unknown>, handler: Handler): Effect.Effect<JobError.JobFailure> =>
  Effect.suspend(() => {
    const failed = cause.reasons.find(Cause.isFailReason)
    const error = failed === undefined ? Cause.squash(cause) : failed.error
    return describe(error, failed !== undefined, false, handler)
  }).pipe(
    Effect.map(({ failure }) => failure),
    Effect.catchCause(() => Effect.succeed(unjudged))
  )

const judged = (cause: Cause.Cause<unknown>, handler: Handler, attempt: number): Effect.Effect<Judged> =>
  Effect.gen(function*() {
    const failed = cause.reasons.find(Cause.isFailReason)
    const error = failed === undefined ? Cause.squash(cause) : failed.error
    const asked = askedBy(error)
    const { failure, isTyped } = yield* describe(error, failed !== undefined, asked !== undefined, handler)
    const asks = isTyped ? wrongRetryAfter(error) : undefined
    if (asks !== undefined) {
      yield* told(
        Effect.logWarning(`The error ${failure.tag} does not say when to try again, its policy does: ${asks}`)
      )
    }
    const decision = yield* decide({
      policy: handler.retry,
      attempt,
      class: failure.class,
      error,
      retryAfterMs: isTyped ? JobError.retryAfterOf(error) : undefined,
      asked,
      jitter: yield* Random.next
    })
    return { decision, failure }
  })

/** What a failure says of itself that is to become of the job, also after the database broke its transaction. */
export const verdictOf = (cause: Cause.Cause<unknown>): "discard" | "snooze" | "timeout" | undefined => {
  const error = Cause.squash(cause)
  const asked = askedBy(error)
  if (asked !== undefined) return "discard" in asked ? "discard" : "snooze"
  return isA(error, JobError.JobTimeout) ? "timeout" : undefined
}

const decide = (question: RetryPolicy.Question): Effect.Effect<RetryPolicy.Decision> =>
  Effect.sync(() => RetryPolicy.decide(question)).pipe(
    Effect.catchCause((cause) =>
      Effect.as(
        told(Effect.logError("A custom retry policy died: the job becomes a dead letter", inspectableCause(cause))),
        { _tag: "DeadLetter" } satisfies RetryPolicy.Decision
      )
    )
  )

const askedBy = (error: unknown): RetryPolicy.Question["asked"] => {
  if (isA(error, JobError.Snooze)) {
    const snoozeMs = read(() => Duration.toMillis(error.delay))
    return typeof snoozeMs === "number" ? { snoozeMs } : undefined
  }
  const because = isA(error, JobError.Discard) ? property(error, "because") : undefined
  return typeof because === "string" ? { discard: because } : undefined
}

/**
 * The encoded error as plain JSON. None of what holds itself or a BigInt, which schemas like `Any` let through, and of what is too long, for a
 * dead letter has to stay readable: what is left of such an error is its tag and message.
 */
const jsonOf = (encoded: unknown): Schema.Json | undefined => {
  const text = read(() => stringify(encoded, maxErrorLength))
  if (text === undefined || text.length > maxErrorLength) return undefined
  // oxlint-disable-next-line typescript/no-unsafe-return -- what was written as JSON a line above is read as JSON
  return JSON.parse(text)
}

/** What the definition says, what the error says of itself, or `Business`. Neither may hold up the judgement. */
const classOf = (error: unknown, handler: Handler): JobError.ErrorClass =>
  JobError.errorClassOf({ errorClass: read(() => handler.classify(error)) }) ?? JobError.errorClassOf(error) ??
    "Business"

/** Errors of the runtime itself, which carry their class. */
const isOwn = (error: unknown): boolean =>
  isA(error, JobError.ParseError) || isA(error, JobError.JobTimeout) || isA(error, JobError.CommitFailed) ||
  isA(error, JobError.ResultTooLarge)

/** The error as its definition encodes it; `undefined` where that has no words for it, or takes more than a second. */
const encodedBy = (error: unknown, handler: Handler): Effect.Effect<{ readonly value: unknown } | undefined> =>
  Effect.suspend((): Effect.Effect<unknown, unknown> => {
    const encoded = handler.encodeError(error)
    return Exit.isExit(encoded) ? encoded : onLiveClock(Effect.timeout(Effect.interruptible(encoded), "1 second"))
  }).pipe(
    Effect.map((value) => ({ value })),
    Effect.catchCause(() => Effect.undefined)
  )

/** Our own verdicts carry their class; a failure the definition can encode is typed; everything else is a defect, class System. */
const describe = (error: unknown, isFailure: boolean, isAsking: boolean, handler: Handler) =>
  Effect.gen(function*() {
    if (isOwn(error)) {
      return {
        failure: JobError.toFailure(error, { class: JobError.errorClassOf(error) ?? "System" }),
        isTyped: true
      }
    }
    if (isAsking) return { failure: JobError.toFailure(error, { class: "Business" }), isTyped: true }
    const encoded = isFailure ? yield* encodedBy(error, handler) : undefined
    if (encoded === undefined) {
      return { failure: JobError.toFailure(error, { class: "System" }), isTyped: false }
    }
    const json = jsonOf(encoded.value)
    const failure = JobError.toFailure(error, {
      class: classOf(error, handler),
      ...(json === undefined ? {} : { encoded: json })
    })
    return { failure, isTyped: true }
  })

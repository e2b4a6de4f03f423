/**
 * Every error of Millrace: few tags, rich reasons. `isRetryable` says whether calling again can help.
 *
 * The second half are the errors a handler may fail with, or that are recorded for it; their classes, and what is kept of any error, come
 * from `internal/words/failure`.
 */
import * as Duration from "effect/Duration"
import * as Schema from "effect/Schema"
import type { ErrorClass } from "./internal/words/failure.ts"
import { check, durationLike, millisOf } from "./internal/words/options.ts"
import { JobId } from "./JobId.ts"
import { JobState } from "./JobState.ts"

// ------------------------------------------------------------------------------------------------ of the store

/** The database cannot be reached, or refused the work for now. Nothing is known to be lost; try again. */
export class StoreUnavailable extends Schema.TaggedError<StoreUnavailable>()("StoreUnavailable", {
  operation: Schema.String,
  cause: Schema.optionalKey(Schema.Defect())
}) {
  readonly isRetryable = true
  override get message() {
    return `the database did not answer during ${this.operation}: check that PostgreSQL is up and reachable, then try again`
  }
}

// ------------------------------------------------------------------------------------------------ of the layout

/** By what a queue is divided cannot be changed while jobs are in it: they have their partitions already. */
export class QueueNotEmpty extends Schema.TaggedError<QueueNotEmpty>()("QueueNotEmpty", {
  queue: Schema.String,
  field: Schema.Literals(["partitionBy", "ordered", "group"]),
  stored: Schema.String,
  asked: Schema.String
}) {
  readonly isRetryable = true
  override get message() {
    return `queue "${this.queue}": ${this.field} is ${this.stored} in the database and ${this.asked} in this program; that can only be changed while no job is in the queue. Let it run empty, or keep ${this.stored}`
  }
}

/** The count of a queue's partitions was changed before: jobs that lie by the former one have to run before it changes again. */
export class QueueMoving extends Schema.TaggedError<QueueMoving>()("QueueMoving", {
  queue: Schema.String,
  stored: Schema.Int,
  asked: Schema.Int
}) {
  readonly isRetryable = true
  override get message() {
    return `queue "${this.queue}": its count of partitions was changed to ${this.stored}, and jobs that were there before have not run yet; this program asks for ${this.asked}. It works with ${this.stored}, and asks again when they have`
  }
}

/** Other runners live that count the shards otherwise: the number of a lock would mean something else to each. */
export class ShardsDiffer extends Schema.TaggedError<ShardsDiffer>()("ShardsDiffer", {
  stored: Schema.Int,
  asked: Schema.Int,
  living: Schema.Array(Schema.String)
}) {
  readonly isRetryable = true
  override get message() {
    return `shards: ${this.stored} in the database and ${this.asked} in this program, and runners with ${this.stored} are there (${
      this.living.join(", ")
    }): use the same number everywhere, or stop all runners first`
  }
}

/** There is no number left for another shard group. */
export class TooManyGroups extends Schema.TaggedError<TooManyGroups>()("TooManyGroups", {
  group: Schema.String,
  known: Schema.Array(Schema.String)
}) {
  readonly isRetryable = false
  override get message() {
    return `group "${this.group}": ${this.known.length} groups are known already, which is all there can be: ${
      this.known.join(", ")
    }. Delete from shard_groups what no queue and no runner uses any more`
  }
}

/** This program and the database do not agree on how work is divided; nothing was started. */
export class LayoutError extends Schema.TaggedError<LayoutError>()("LayoutError", {
  reason: Schema.Union([QueueNotEmpty, QueueMoving, ShardsDiffer, TooManyGroups])
}) {
  get isRetryable(): boolean {
    return this.reason.isRetryable
  }
  override get message() {
    return this.reason.message
  }
}

// ------------------------------------------------------------------------------------------------ of submit

/** `submit([])`. */
export class EmptyBatch extends Schema.TaggedError<EmptyBatch>()("EmptyBatch", {}) {
  readonly isRetryable = false
  override get message() {
    return "a batch needs at least one request; got an empty array"
  }
}

/** A field of a request is not what it should be. `field` is a path such as `[3].priority`; `cause` is what a function of its definition threw. */
export class InvalidField extends Schema.TaggedError<InvalidField>()("InvalidField", {
  field: Schema.String,
  expected: Schema.String,
  received: Schema.String,
  cause: Schema.optionalKey(Schema.Defect())
}) {
  readonly isRetryable = false
  override get message() {
    return `${this.field}: expected ${this.expected}, received ${this.received}`
  }
}

/** The queue is declared neither in this process nor in the database. */
export class UnknownQueue extends Schema.TaggedError<UnknownQueue>()("UnknownQueue", {
  field: Schema.String,
  queue: Schema.String,
  known: Schema.Array(Schema.String)
}) {
  readonly isRetryable = false
  override get message() {
    return `${this.field}: no queue is called "${this.queue}"; known: ${
      this.known.join(", ")
    }. Declare it with JobQueue.make and give it to JobRuntime`
  }
}

/** The encoded payload is larger than its queue takes. */
export class PayloadTooLarge extends Schema.TaggedError<PayloadTooLarge>()("PayloadTooLarge", {
  field: Schema.String,
  bytes: Schema.Int,
  limitBytes: Schema.Int
}) {
  readonly isRetryable = false
  override get message() {
    return `${this.field}: ${this.bytes} bytes of JSON, the queue takes ${this.limitBytes}. Store it elsewhere and submit a reference, or raise maxPayloadBytes of the queue`
  }
}

/** Another transaction held one of the dedupe keys for too long. */
export class DedupeKeyBusy extends Schema.TaggedError<DedupeKeyBusy>()("DedupeKeyBusy", {}) {
  readonly isRetryable = true
  override get message() {
    return "a dedupe key of this submission is held by another open transaction: commit or roll it back, then try again"
  }
}

/** The database refused the data itself, whatever checks it had passed. */
export class Refused extends Schema.TaggedError<Refused>()("Refused", { detail: Schema.String }) {
  readonly isRetryable = false
  override get message() {
    return `the database refused this submission, and would again: ${this.detail}`
  }
}

/**
 * The connection was lost after the jobs were sent and before the answer: they are all stored, or none is. Not retryable as it is: a
 * submission that is sent again gets new ids, and its jobs would be there twice.
 */
export class OutcomeUnknown extends Schema.TaggedError<OutcomeUnknown>()("OutcomeUnknown", {
  jobIds: Schema.Array(JobId),
  cause: Schema.optionalKey(Schema.Defect())
}) {
  readonly isRetryable = false
  override get message() {
    const [first] = this.jobIds
    const which = this.jobIds.length === 1
      ? `job ${first} may`
      : `${this.jobIds.length} jobs (jobIds, the first is ${first}) may`
    return `the database did not answer, and ${which} have been stored: ask status of these before submitting again, or submit with a dedupeKey`
  }
}

/** Why a submission failed. */
export const SubmitErrorReason = Schema.Union([
  EmptyBatch,
  InvalidField,
  UnknownQueue,
  PayloadTooLarge,
  DedupeKeyBusy,
  Refused,
  OutcomeUnknown,
  StoreUnavailable
])

/** A submission failed. Nothing of it is stored, unless the reason is `OutcomeUnknown`: then all of it may be. */
export class SubmitError extends Schema.TaggedError<SubmitError>()("SubmitError", { reason: SubmitErrorReason }) {
  /** Whether the same submission may succeed later. */
  get isRetryable(): boolean {
    return this.reason.isRetryable
  }
  override get message() {
    return this.reason.message
  }
}

// ------------------------------------------------------------------------------------------------ of one job

/** No such job (or not this tenant's). */
export class JobNotFound extends Schema.TaggedError<JobNotFound>()("JobNotFound", { jobId: Schema.String }) {
  readonly isRetryable = false
  override get message() {
    return `no job ${this.jobId}: it was never stored (or its transaction has not committed), belongs to another tenant, or was purged after its retention`
  }
}

/** No such dead letter: `jobState` says what the job is instead, where it is known. */
export class DeadLetterNotFound extends Schema.TaggedError<DeadLetterNotFound>()("DeadLetterNotFound", {
  jobId: Schema.String,
  jobState: Schema.optionalKey(JobState)
}) {
  readonly isRetryable = false
  override get message() {
    return this.jobState === undefined
      ? `no dead letter ${this.jobId}: it was never one, belongs to another tenant, or was purged`
      : `job ${this.jobId} is ${this.jobState}: only a failed job can be replayed`
  }
}

/** A live job holds the dead letter's dedupe key. */
export class DedupeKeyTaken extends Schema.TaggedError<DedupeKeyTaken>()("DedupeKeyTaken", { jobId: Schema.String }) {
  readonly isRetryable = true
  override get message() {
    return `a live job holds the dedupe key of dead letter ${this.jobId}: replay it when that job has ended`
  }
}

/** The job had ended before it could be cancelled. */
export class JobAlreadyFinal extends Schema.TaggedError<JobAlreadyFinal>()("JobAlreadyFinal", {
  jobId: JobId,
  jobState: JobState
}) {
  readonly isRetryable = false
  override get message() {
    return `job ${this.jobId} is ${this.jobState} already`
  }
}

/** The awaited job ended without a result of its definition: it was cancelled or expired, or failed in a way its schema does not name. */
export class JobUnsuccessful extends Schema.TaggedError<JobUnsuccessful>()("JobUnsuccessful", {
  jobId: JobId,
  jobState: JobState,
  errorTag: Schema.optionalKey(Schema.String),
  errorMessage: Schema.optionalKey(Schema.String)
}) {
  readonly isRetryable = false
  override get message() {
    const why = this.errorMessage === undefined ? "" : `: ${this.errorTag}: ${this.errorMessage}`
    return `job ${this.jobId} is ${this.jobState}${why}`
  }
}

/**
 * The process that owns the job's partition does not answer, or the job's handler cannot be interrupted, or somebody holds the job's row. The
 * job may be cancelled all the same.
 */
export class PartitionUnavailable extends Schema.TaggedError<PartitionUnavailable>()("PartitionUnavailable", {
  entity: Schema.String
}) {
  readonly isRetryable = true
  override get message() {
    return `the owner of ${this.entity} does not answer (it may be frozen, busy or cut off, or the job's handler is uninterruptible), or somebody holds the job's row. Try again`
  }
}

// ------------------------------------------------------------------------------------------------ of an attempt

export { ErrorClass, errorClassOf, JobFailure, retryAfterOf, tagOf, toFailure } from "./internal/words/failure.ts"

/** The stored payload does not fit the definition. Not retried: the dead letter can be replayed once the definition takes it. */
export class ParseError extends Schema.TaggedError<ParseError>()("ParseError", { issue: Schema.String }) {
  readonly errorClass: ErrorClass = "Validation"
  override get message() {
    return this.issue
  }
}

/** The handler ran longer than its definition allows. */
export class JobTimeout extends Schema.TaggedError<JobTimeout>()("JobTimeout", { timeoutMs: Schema.Finite }) {
  readonly errorClass: ErrorClass = "Timeout"
  override get message() {
    return `the handler did not end within ${this.timeoutMs} ms and was interrupted`
  }
}

/** The handler's result is more JSON than can be stored. Its writes are rolled back. Not retried: it would be as large again. */
export class ResultTooLarge extends Schema.TaggedError<ResultTooLarge>()("ResultTooLarge", {
  bytes: Schema.Int,
  limitBytes: Schema.Int
}) {
  readonly errorClass: ErrorClass = "Permanent"
  override get message() {
    return `the result is at least ${this.bytes} bytes of JSON, at most ${this.limitBytes} are stored: store it elsewhere and return a reference`
  }
}

/** The owner of the queue had no handler for the type during the whole grace period. */
export class HandlerMissing extends Schema.TaggedError<HandlerMissing>()("HandlerMissing", {
  type: Schema.String,
  graceMs: Schema.Finite
}) {
  readonly errorClass: ErrorClass = "Permanent"
  override get message() {
    return `the process that owns the queue had no handler for "${this.type}" within ${this.graceMs} ms: give it one, then replay`
  }
}

/** Something died while the run was judged, encoded or settled, most often on a value that the handler failed with. */
export class UnjudgedRun extends Schema.TaggedError<UnjudgedRun>()("UnjudgedRun", { detail: Schema.String }) {
  readonly errorClass: ErrorClass = "System"
  override get message() {
    return `the run could not be judged or settled, and counts as a failed attempt: ${this.detail}`
  }
}

/** The runtime has interrupted runs of this job so often that this one counts as an attempt. */
export class RunInterrupted extends Schema.TaggedError<RunInterrupted>()("RunInterrupted", { reruns: Schema.Int }) {
  readonly errorClass: ErrorClass = "Transient"
  override get message() {
    return `the run was interrupted by a shutdown or a lost lock, and runs of this job have been broken off ${this.reruns} times: give it a shorter handler, or a longer gracePeriod`
  }
}

/** Each time the job ran its process died or stalled, or its database session ended while a statement was in flight. */
export class CrashLoop extends Schema.TaggedError<CrashLoop>()("CrashLoop", { crashes: Schema.Int }) {
  readonly errorClass: ErrorClass = "System"
  override get message() {
    return `${this.crashes} runs of this job ended with the death or a stall of their process, or of their database session with a statement in flight: see its history`
  }
}

/** The handler's transaction could not be committed, and nothing of it was. */
export class CommitFailed extends Schema.TaggedError<CommitFailed>()("CommitFailed", {
  sqlState: Schema.String,
  detail: Schema.String
}) {
  readonly errorClass: ErrorClass = "Transient"
  override get message() {
    return `the transaction did not commit (SQLSTATE ${this.sqlState}): ${this.detail}`
  }
}

/** Fail a handler with this to run the job again after `delay`, at no cost of an attempt. What is no duration throws a `RangeError`. */
export class Snooze extends Schema.TaggedError<Snooze>()("Snooze", { delay: Schema.Duration }) {
  // Decoding goes through here with its options, as through the constructor that this one calls.
  // @effect-diagnostics-next-line overriddenSchemaConstructor:off
  constructor(snooze: { readonly delay: Duration.Input }, options?: Schema.MakeOptions) {
    const millis = millisOf(snooze.delay)
    check(!Number.isNaN(millis), "new Snooze", "delay", `a duration, ${durationLike}`, snooze.delay)
    super({ ...snooze, delay: Duration.fromInputUnsafe(snooze.delay) }, options)
  }
  override get message() {
    return `snoozed for ${Duration.format(this.delay)}`
  }
}

/** Fail a handler with this to end the job for good, without a dead letter: it becomes `cancelled`. */
export class Discard extends Schema.TaggedError<Discard>()("Discard", { because: Schema.String }) {
  override get message() {
    return this.because
  }
}

/**
 * What happened to a job, told after the commit that made it true. No event tells of what was rolled back; live ones may be missing
 * after a crash.
 */
import * as Schema from "effect/Schema"
import { JobFailure } from "./JobError.ts"
import { JobId } from "./JobId.ts"

const job = {
  jobId: JobId,
  type: Schema.String,
  queue: Schema.String,
  /** Absent for the system. */
  tenantId: Schema.optionalKey(Schema.String),
  /** Milliseconds since 1970, by the clock of the process that tells. */
  at: Schema.Finite
}

/** A job was stored. */
export class JobSubmitted extends Schema.TaggedClass<JobSubmitted>()("JobSubmitted", {
  ...job,
  batchId: Schema.optionalKey(Schema.String),
  dueAt: Schema.optionalKey(Schema.Finite)
}) {}

/** A handler was started. */
export class JobStarted extends Schema.TaggedClass<JobStarted>()("JobStarted", { ...job, attempt: Schema.Int }) {}

/** A handler reported progress: `progress` is a fraction from 0 to 1. */
export class JobProgressed extends Schema.TaggedClass<JobProgressed>()("JobProgressed", {
  ...job,
  attempt: Schema.Int,
  progress: Schema.Finite,
  message: Schema.optionalKey(Schema.String)
}) {}

/** An attempt failed. `JobRetried` or `JobDeadLettered` follows. */
export class JobFailed extends Schema.TaggedClass<JobFailed>()("JobFailed", {
  ...job,
  attempt: Schema.Int,
  failure: JobFailure
}) {}

/** Another attempt is due. */
export class JobRetried extends Schema.TaggedClass<JobRetried>()("JobRetried", {
  ...job,
  attempt: Schema.Int,
  dueAt: Schema.Finite
}) {}

/** The job ended well. */
export class JobCompleted extends Schema.TaggedClass<JobCompleted>()("JobCompleted", {
  ...job,
  attempt: Schema.Int
}) {}

/** The job became a dead letter. */
export class JobDeadLettered extends Schema.TaggedClass<JobDeadLettered>()("JobDeadLettered", {
  ...job,
  attempt: Schema.Int,
  failure: JobFailure
}) {}

/** A dead letter was put back into its queue. */
export class JobReplayed extends Schema.TaggedClass<JobReplayed>()("JobReplayed", {
  ...job,
  by: Schema.optionalKey(Schema.String)
}) {}

/** The job was cancelled, or discarded by its handler. */
export class JobCancelled extends Schema.TaggedClass<JobCancelled>()("JobCancelled", {
  ...job,
  by: Schema.optionalKey(Schema.String)
}) {}

/** The job was not started in time. */
export class JobExpired extends Schema.TaggedClass<JobExpired>()("JobExpired", job) {}

/** Everything that can happen to a job. */
export const JobEvent = Schema.Union([
  JobSubmitted,
  JobStarted,
  JobProgressed,
  JobFailed,
  JobRetried,
  JobCompleted,
  JobDeadLettered,
  JobReplayed,
  JobCancelled,
  JobExpired
])

/** Everything that can happen to a job. */
export type JobEvent = typeof JobEvent.Type

/** Which events to hear of; what is left out is not asked for. */
export interface Filter {
  readonly tags?: ReadonlyArray<JobEvent["_tag"]>
  readonly jobId?: JobId
  readonly type?: string
  readonly queue?: string
  readonly tenantId?: string
}

/** Whether an event passes. */
export const matches = (filter: Filter) => (event: JobEvent): boolean =>
  (filter.tags === undefined || filter.tags.includes(event._tag)) &&
  (filter.jobId === undefined || filter.jobId === event.jobId) &&
  (filter.type === undefined || filter.type === event.type) &&
  (filter.queue === undefined || filter.queue === event.queue) &&
  (filter.tenantId === undefined || filter.tenantId === event.tenantId)

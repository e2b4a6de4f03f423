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

/** How a job can end. */
export const ends = ["JobCompleted", "JobDeadLettered", "JobCancelled", "JobExpired"] as const

/**
 * Events of other processes that did not come here: too many at once, or the connection was lost for a while (no `count`). Told to who
 * asks for it by its tag. Whoever must know what happened looks at the jobs.
 */
export class Missed extends Schema.TaggedClass<Missed>()("Missed", { count: Schema.optionalKey(Schema.Int) }) {}

/** What a subscriber can be told. */
export type Told = JobEvent | Missed

/** Which events to hear of; what is left out is not asked for. Without `tags`: all that happens to jobs. */
export interface Filter<Tag extends Told["_tag"] = JobEvent["_tag"]> {
  readonly tags?: ReadonlyArray<Tag>
  readonly jobId?: JobId
  readonly type?: string
  readonly queue?: string
  readonly tenantId?: string
}

/** Whether an event passes. */
export const matches =
  <Tag extends Told["_tag"]>(filter: Filter<Tag>) => (event: Told): event is Extract<Told, { readonly _tag: Tag }> => {
    const tags: ReadonlyArray<Told["_tag"]> | undefined = filter.tags
    if (event._tag === "Missed") return tags?.includes("Missed") === true
    return (tags === undefined || tags.includes(event._tag)) &&
      (filter.jobId === undefined || filter.jobId === event.jobId) &&
      (filter.type === undefined || filter.type === event.type) &&
      (filter.queue === undefined || filter.queue === event.queue) &&
      (filter.tenantId === undefined || filter.tenantId === event.tenantId)
  }

/** What of all events somebody wants: how jobs end, which is what most wait for, or everything. */
export type Interest = "ends" | "all"

const isEnd = (tag: Told["_tag"]): boolean => tag === "Missed" || ends.some((end) => end === tag)

/** Whether an event of this tag is of interest. */
export const isOf = (interest: Interest, tag: Told["_tag"]): boolean => interest === "all" || isEnd(tag)

/** The least interest that has all events of a filter in it. */
export const interestOf = (filter: { readonly tags?: ReadonlyArray<Told["_tag"]> } | undefined): Interest =>
  filter?.tags?.every(isEnd) === true ? "ends" : "all"

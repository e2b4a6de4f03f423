/**
 * The ids of jobs and batches: UUIDv7, made by the submitter, so that a submission can be sent again after an unknown outcome.
 */
import * as Brand from "effect/Brand"
import * as Schema from "effect/Schema"

/** Identifies a job for its whole life: live, finished, dead-lettered and replayed. Lower-case UUID text. */
export const JobId = Schema.String.check(Schema.isUUID(), Schema.isLowercased()).pipe(Schema.brand("millrace/JobId"))

/** Identifies a job for its whole life. */
export type JobId = typeof JobId.Type

/** A job id of this process's own making, unchecked. */
export const made = Brand.nominal<JobId>()

/** Whether something is a job id. */
export const isJobId = Schema.is(JobId)

/** The id as everybody spells it. UUIDs may be written in upper case, and PostgreSQL would find the job: its owner and events would not. */
export const normalize = (text: string): JobId | undefined => {
  const id = text.toLowerCase()
  return isJobId(id) ? id : undefined
}

/** Shared by the jobs of one `submit([...])`. */
export const BatchId = Schema.String.check(Schema.isUUID(), Schema.isLowercased()).pipe(
  Schema.brand("millrace/BatchId")
)

/** Shared by the jobs of one `submit([...])`. */
export type BatchId = typeof BatchId.Type

/** A batch id of this process's own making, unchecked. */
export const madeBatch = Brand.nominal<BatchId>()

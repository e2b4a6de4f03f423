/**
 * The ids of jobs and batches: UUIDv7, made by the submitter, so that a submission can be sent again after an unknown outcome.
 */
import * as Schema from "effect/Schema"

/** Identifies a job for its whole life: live, finished, dead-lettered and replayed. Lower-case UUID text. */
export const JobId = Schema.String.check(Schema.isUUID()).pipe(Schema.brand("millrace/JobId"))

/** Identifies a job for its whole life. */
export type JobId = typeof JobId.Type

/** Whether something is a job id. */
export const isJobId = Schema.is(JobId)

/** Shared by the jobs of one `submit([...])`. */
export const BatchId = Schema.String.check(Schema.isUUID()).pipe(Schema.brand("millrace/BatchId"))

/** Shared by the jobs of one `submit([...])`. */
export type BatchId = typeof BatchId.Type

/**
 * Why a submission fails, as its caller is told: what the store's failures mean to one who submits.
 */
import { DedupeKeyBusy, OutcomeUnknown, Refused, StoreUnavailable, SubmitError } from "../JobError.ts"
import type { NewJob, StoreError } from "../JobStore.ts"

/** Nothing was sent yet: a queue could not be looked up, say. */
export const unavailable = (error: StoreError): SubmitError =>
  new SubmitError({ reason: new StoreUnavailable({ operation: "submit", cause: error }) })

/** The store's failure as a submitter sees it. */
export const failed = (error: StoreError, jobs: ReadonlyArray<NewJob>): SubmitError => {
  switch (error.reason) {
    case "LockTimeout":
      return new SubmitError({ reason: new DedupeKeyBusy() })
    case "Refused":
      return new SubmitError({ reason: new Refused({ detail: error.message }) })
    case "Conflict":
    case "Unavailable":
      return error.isUncertain === true
        ? new SubmitError({ reason: new OutcomeUnknown({ jobIds: jobs.map(({ id }) => id), cause: error }) })
        : unavailable(error)
  }
}

/**
 * The service applications use: submit work, see how it stands, wait for it, cancel it, replay what failed.
 */
import * as Context from "effect/Context"
import type { SecureRandom } from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Schema from "effect/Schema"
import { EventBus } from "./EventBus.ts"
import * as Announcer from "./internal/announcer.ts"
import * as AwaitEnd from "./internal/awaitEnd.ts"
import * as CancelJob from "./internal/cancelJob.ts"
import * as JobReader from "./internal/jobReader.ts"
import { Owners } from "./internal/owners.ts"
import { Queues } from "./internal/queues.ts"
import * as Submit from "./internal/submit.ts"
import { Waker } from "./internal/waker.ts"
import type { Codec } from "./Job.ts"
import { DeadLetterNotFound, DedupeKeyTaken, type JobNotFound, type StoreUnavailable } from "./JobError.ts"
import * as JobEvent from "./JobEvent.ts"
import type { JobHandlers } from "./JobHandlers.ts"
import type * as JobHistory from "./JobHistory.ts"
import type { JobId } from "./JobId.ts"
import type { JobStatus } from "./JobStatus.ts"
import { JobStore, tenantId } from "./JobStore.ts"

export type { Batch, BatchOptions } from "./internal/submit.ts"
export type { JobStatus } from "./JobStatus.ts"

/** The service. */
export class Jobs extends Context.Service<Jobs, {
  /**
   * Stores one request, or many: all of them or none. Answers when they are stored and does not wait for the work. Inside a transaction
   * of the caller's `SqlClient` the jobs become visible exactly when it commits. A request whose dedupe key is held by a live job is
   * answered with that job's id. The request context it is made in goes along, at most 8 kB of JSON. A lost answer is `OutcomeUnknown`: all
   * of it is stored, or nothing.
   *
   * Requests that many fibers submit one by one at the same time travel together, each with its own answer. Interrupting the caller then
   * ends its waiting, not its submission: once it has got as far as the store, its job is stored all the same.
   */
  readonly submit: Submit.Submit
  /**
   * How a job stands; with its definition the result and the error are typed. Reads on a connection of its own and does not take part in
   * the caller's transaction: a job submitted there is not found before it commits.
   */
  readonly status: {
    (jobId: JobId): Effect.Effect<JobStatus, JobNotFound | StoreUnavailable>
    <Success extends Codec, Failure extends Codec>(
      jobId: JobId,
      definition: JobReader.Typed<Success, Failure>
    ): Effect.Effect<
      JobStatus<Success["Type"], Failure["Type"]>,
      JobNotFound | StoreUnavailable | Schema.SchemaError
    >
  }
  /** Waits for the end: the result, or the failure. With its definition both are typed. */
  readonly await: AwaitEnd.AwaitEnd
  /**
   * Puts a dead letter back into its queue: same id, history kept. Once, also when called twice at the same time. Does not take part in the
   * caller's transaction: it stands when that rolls back.
   */
  readonly replayJob: (
    deadLetterId: JobId
  ) => Effect.Effect<void, DeadLetterNotFound | DedupeKeyTaken | StoreUnavailable>
  /**
   * Cancels a job that has not ended, from any process; a running one is interrupted and rolled back. A queued or running one is cancelled
   * by the process that owns its queue, and in the table where no living one does: where an owner does not answer within 30 seconds, the
   * handler cannot be interrupted (`Effect.uninterruptible`), or somebody holds the job's row for so long, this fails with
   * `PartitionUnavailable`, and the job may still be cancelled later. Does not take part in the caller's transaction: it stands when that
   * rolls back, and a job submitted there is not found before it commits.
   */
  readonly cancel: CancelJob.CancelJob
}>()("millrace/Jobs") {}

/** The service on whatever store, owners and bus there are. */
export const layer: Layer.Layer<
  Jobs,
  never,
  JobStore | Queues | Owners | Waker | EventBus | JobHandlers | SecureRandom
> = Layer.effect(
  Jobs,
  Effect.gen(function*() {
    const store = yield* JobStore
    const queues = yield* Queues
    const owners = yield* Owners
    const waker = yield* Waker
    const bus = yield* EventBus
    const publish = Announcer.tell(bus)
    const reader = JobReader.make(store, queues, owners)

    // ------------------------------------------------------------------------------------------- status

    const { addressOf, find, statusOf } = reader

    function status(jobId: JobId): Effect.Effect<JobStatus, JobNotFound | StoreUnavailable>
    function status<Success extends Codec, Failure extends Codec>(
      jobId: JobId,
      definition: JobReader.Typed<Success, Failure>
    ): Effect.Effect<JobStatus<Success["Type"], Failure["Type"]>, JobNotFound | StoreUnavailable | Schema.SchemaError>
    function status(jobId: JobId, definition?: JobReader.Typed<Codec, Codec>) {
      return Effect.gen(function*() {
        const plain = yield* Effect.flatMap(find(jobId, "status"), statusOf)
        if (definition === undefined) return plain
        return {
          ...plain,
          result: plain.state === "completed" ? yield* definition.decodeSuccess(plain.result ?? null) : undefined,
          error: plain.error === undefined ? undefined : yield* definition.decodeError(plain.error)
        }
      })
    }

    // ------------------------------------------------------------------------------------------- replay and cancel

    const replayJob = (asked: JobId) =>
      Effect.gen(function*() {
        const found = yield* Effect.catchTag(find(asked, "replayJob"), "JobNotFound", () =>
          new DeadLetterNotFound({ jobId: asked }))
        const jobId = found.id
        if (found.state !== "failed") {
          const { state } = yield* statusOf(found)
          return yield* new DeadLetterNotFound({ jobId, jobState: state })
        }
        const now = yield* store.now
        const entry: JobHistory.Entry = { kind: "replayed", at: now, ...(yield* CancelJob.by) }
        const replayed = yield* Effect.mapError(
          store.replay(jobId, found.tenant, entry),
          JobReader.storeUnavailable("replayJob")
        )
        if (replayed === "taken") {
          return yield* new DedupeKeyTaken({ jobId })
        }
        if (Option.isNone(replayed)) {
          return yield* new DeadLetterNotFound({ jobId, jobState: "queued" })
        }
        const ready = replayed.value
        const { queue } = yield* addressOf(found)
        const tenant = tenantId(found.tenant)
        // Committed on a connection of the store's own, also inside a transaction of the caller's.
        waker.wake([ready])
        yield* publish(
          new JobEvent.JobReplayed({
            jobId,
            type: found.type,
            queue,
            at: now,
            ...(tenant === undefined ? {} : { tenantId: tenant }),
            ...("by" in entry && entry.by !== undefined ? { by: entry.by } : {})
          })
        )
      })

    const cancel = CancelJob.make({ store, queues, owners, reader, bus, waker })

    return Jobs.of({ submit: yield* Submit.make, status, await: AwaitEnd.make(reader, bus), replayJob, cancel })
  })
)

/**
 * What the owner before has left running: counted once as crashes, after a take-over that it did not hand over to.
 */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { JobId } from "../JobId.ts"
import type { Crashes, JobStore, Owner } from "../JobStore.ts"
import type { Outage } from "./outage.ts"
import { onLiveClock } from "./time/liveClock.ts"
import { told } from "./told.ts"
import { untilAvailable } from "./untilAvailable.ts"

/**
 * Counts, before the first intake. Jobs whose settlement is just ending are put into `blocked`, and must not run, until it is known how it
 * ended: that is found out in the background, in `scope`.
 */
export const count = (options: {
  readonly store: JobStore["Service"]
  readonly owner: Owner
  /** Who owned the partition before. */
  readonly former: string | undefined
  readonly blocked: Set<JobId>
  /** What this owner runs meanwhile: never counted. */
  readonly running: () => ReadonlyArray<JobId>
  readonly onUnblocked: (id: JobId) => void
  /** A crash of a job of this type is counted. */
  readonly onCounted: (type: string) => void
  readonly scope: Scope.Scope
  /** Of this partition. */
  readonly outage: Outage
}): Effect.Effect<void> =>
  Effect.gen(function*() {
    const { blocked, former = "unknown", outage, owner, running, store } = options
    // Without the incarnation behind it.
    const runner = former.split("#")[0] ?? former
    const report = ({ attempt, crashes, id, type }: Crashes["counted"][number]) => {
      options.onCounted(type)
      return told(
        Effect.annotateLogs(Effect.logWarning("Run broken off, the job runs again"), {
          event: "job.rerun",
          end: "processDied",
          counts: "crash",
          jobId: id,
          jobType: type,
          attempt: attempt + 1,
          crashes,
          runner
        })
      )
    }
    const counted = (held: ReadonlyArray<JobId>) =>
      Effect.map(
        untilAvailable(
          Effect.flatMap(store.now, (now) => store.countCrashes(owner, held, { runner, now })),
          "Counting crashes",
          outage
        ),
        ({ busy, counted }) => ({ busy: new Set(busy), counted })
      ).pipe(Effect.flatMap(({ busy, counted }) => Effect.as(Effect.forEach(counted, report, { discard: true }), busy)))
    for (const id of yield* counted([])) blocked.add(id)
    if (blocked.size === 0) return
    const recount = Effect.gen(function*() {
      const still = yield* counted(running())
      for (const id of blocked) {
        if (still.has(id)) continue
        blocked.delete(id)
        options.onUnblocked(id)
      }
      return blocked.size === 0
    })
    yield* recount.pipe(
      Effect.repeat({ until: (isDone) => isDone, schedule: Schedule.spaced("250 millis") }),
      onLiveClock,
      Effect.forkIn(options.scope)
    )
  })

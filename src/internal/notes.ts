/**
 * What a partition does 20 times a second: notes the attempts that take longer than a moment. And four times a second: notes what they report,
 * puts back the jobs that found no handler, and looks whether the time of suspects is over.
 *
 * A crash on any line loses no job: an attempt without a note counts no crash, and a parked job has its row.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { JobStore } from "../JobStore.ts"
import type { Attempts } from "./attempts.ts"
import type { PartitionState } from "./partitionState.ts"
import type * as Suspects from "./suspects.ts"
import { onLiveClock } from "./time/liveClock.ts"
import type { Settle } from "./unstarted.ts"
import * as Verdict from "./verdict.ts"

/** How often starts are looked for that have to be recorded. */
const noteMs = 50
/** After so many looks the rest of the turn is due. */
const looks = 5

/** One turn of one ownership. */
export const make = (options: {
  readonly state: PartitionState
  readonly attempts: Attempts
  readonly store: JobStore["Service"]
  readonly suspects: Suspects.Suspects
  readonly settle: Settle
  /** How long a job waits for a handler of its type. */
  readonly handlerGraceMs: number
  /** What has to be written down runs here. */
  readonly loops: Scope.Scope
}): Effect.Effect<void> => {
  const { attempts, handlerGraceMs, loops, settle, state, store, suspects } = options
  const { dispatchDue, parking } = state

  const tellOfMissing = (type: string) =>
    Effect.logWarning(
      `No handler for jobs of type "${type}" in this process: they wait for one for ${
        Duration.format(Duration.millis(handlerGraceMs))
      }, then become dead letters`
    )

  return Effect.gen(function*() {
    for (let look = 0; look < looks; look++) {
      yield* onLiveClock(Effect.sleep(Duration.millis(noteMs)))
      if (attempts.size() > 0) yield* attempts.note(look === 0)
    }
    yield* attempts.forget
    // Their time runs out in one partition for all others.
    if (suspects.isActive) dispatchDue.openUnsafe()
    const now = yield* store.now
    for (const job of parking.overdue()) {
      // Not sooner: handlers may be registered a moment after the runtime has started.
      if (parking.isNews(job.type)) yield* tellOfMissing(job.type)
      const verdict = Verdict.withoutHandler(job, now, parking.missingFor(job.type), handlerGraceMs)
      yield* Effect.forkIn(settle(job, verdict), loops)
    }
  })
}

/**
 * Cancels that have reached the owner of a job and found it between two attempts, or at the end of one: the job is cancelled in place of its
 * next attempt. Without them a job that is put back at once would be missed again and again.
 *
 * Bounded in number and in time: a caller that still wants it asks again. A crash forgets them, and the caller asks the next owner.
 */
import type { JobId } from "../JobId.ts"
import type { JobQueue } from "../JobQueue.ts"
import type { Finish, Settlement } from "../JobStore.ts"
import { monotonicMillis } from "./time/liveClock.ts"

/** A cancel, and who wants it. */
export interface Cancel {
  readonly by: string | undefined
}

/** The cancels of one partition. */
export interface Cancels {
  /** A caller wants the job cancelled, and asks again every second for as long as it waits. */
  readonly ask: (id: JobId, by: string | undefined) => void
  /** Whether a caller wants that still. */
  readonly of: (id: JobId) => Cancel | undefined
  /** The job is final: should it be replayed, it runs. */
  readonly forget: (id: JobId) => void
}

const capacity = 10_000
/** A caller that has not asked for so long waits no more. */
const forgottenMs = 3_000

/** Nothing is to be cancelled. `now`: milliseconds that only go forward. */
export const make = (now: () => number = monotonicMillis): Cancels => {
  const asked = new Map<JobId, Cancel & { readonly at: number }>()

  /** In the order in which they were asked for last. */
  const drop = (at: number) => {
    for (const [id, one] of asked) {
      if (asked.size <= capacity && at - one.at < forgottenMs) return
      asked.delete(id)
    }
  }

  return {
    ask: (id, by) => {
      const at = now()
      asked.delete(id)
      asked.set(id, { by, at })
      drop(at)
    },
    of: (id) => {
      if (asked.size === 0) return undefined
      drop(now())
      return asked.get(id)
    },
    forget: (id) => void (asked.size > 0 && asked.delete(id))
  }
}

/** The outcome of an attempt that would be followed by another one: the job is cancelled instead. */
export const instead = (settlement: Settlement, { by }: Cancel, { retention }: JobQueue): Finish | undefined => {
  const { entry, id, version } = settlement
  if (settlement._tag === "Finish" || settlement._tag === "DeadLetter" || entry.kind !== "attempt") return undefined
  const { dueAt: _, ...attempt } = entry
  return {
    _tag: "Finish",
    id,
    version,
    outcome: "cancelled",
    result: undefined,
    purgeAt: attempt.endedAt + retention.cancelledMs,
    entry: { ...attempt, outcome: "cancelled", ...(by === undefined ? {} : { by }) }
  }
}

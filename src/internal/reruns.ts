/**
 * How often the database has broken each job's transaction, and how long to wait before it runs again: conflicts are over soon, a server
 * that restarts is not.
 */
import type { JobId } from "../JobId.ts"

/** What broke the transaction: it lost against another one, or the database was in no state to do the work. */
export type Trouble = "conflict" | "outage"

/** Counts of one ownership. */
export interface Reruns {
  /** Counts one more: milliseconds to wait, or `undefined` when it has been enough. */
  readonly next: (id: JobId, trouble: Trouble) => number | undefined
  /** It ended some other way. */
  readonly forget: (id: JobId) => void
}

const maxConflicts = 5
const maxOutages = 20
/** Of a job that was cancelled meanwhile nobody else would take its count out. */
const capacity = 10_000

/** Nothing counted yet. */
export const make = (): Reruns => {
  const counts = new Map<JobId, number>()
  return {
    next: (id, trouble) => {
      const count = (counts.get(id) ?? 0) + 1
      if (count > (trouble === "conflict" ? maxConflicts : maxOutages)) {
        counts.delete(id)
        return undefined
      }
      counts.set(id, count)
      const [oldest] = counts.keys()
      if (counts.size > capacity && oldest !== undefined) counts.delete(oldest)
      return trouble === "conflict" ? 5 * count : Math.min(50 * 2 ** count, 5_000)
    },
    forget: (id) => void (counts.size > 0 && counts.delete(id))
  }
}

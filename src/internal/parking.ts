/**
 * Jobs whose type has no handler in this process: kept for a second (handlers register while a process starts), then put back.
 */
import type { ReadyJob } from "../JobStore.ts"
import { liveClock } from "./time/liveClock.ts"

const patienceMs = 1_000
const capacity = 256
const maxTypes = 10_000

/** Parked jobs of one partition. */
export interface Parking {
  readonly park: (job: ReadyJob) => void
  /** Whether nobody has asked this of the type yet, since it was first missed. */
  readonly isNews: (type: string) => boolean
  /** All jobs of a type that has got a handler. */
  readonly unpark: (type: string) => ReadonlyArray<ReadyJob>
  readonly remove: (id: string) => ReadyJob | undefined
  /** Jobs that have waited long enough, or do not fit. */
  readonly overdue: () => ReadonlyArray<ReadyJob>
  /** How long the type has had no handler here, in milliseconds. */
  readonly missingFor: (type: string) => number
}

/** An empty parking. */
export const make = (): Parking => {
  const parked = new Map<string, { readonly job: ReadyJob; readonly since: number }>()
  const missingSince = new Map<string, number>()
  const told = new Set<string>()
  const take = (choose: (entry: { readonly job: ReadyJob; readonly since: number }) => boolean) => {
    const chosen = [...parked.values()].filter(choose).map(({ job }) => job)
    for (const { id } of chosen) parked.delete(id)
    return chosen
  }
  return {
    park: (job) => {
      const now = liveClock.currentTimeMillisUnsafe()
      if (!missingSince.has(job.type)) missingSince.set(job.type, now)
      // Types are any text: of too many the oldest is forgotten, whose jobs then wait longer for a handler.
      const [oldest] = missingSince.keys()
      if (missingSince.size > maxTypes && oldest !== undefined) {
        missingSince.delete(oldest)
        told.delete(oldest)
      }
      parked.set(job.id, { job, since: now })
    },
    isNews: (type) => {
      const isNews = missingSince.has(type) && !told.has(type)
      if (isNews) told.add(type)
      return isNews
    },
    unpark: (type) => {
      missingSince.delete(type)
      told.delete(type)
      return take(({ job }) => job.type === type)
    },
    remove: (id) => {
      const entry = parked.get(id)
      parked.delete(id)
      return entry?.job
    },
    overdue: () => {
      const now = liveClock.currentTimeMillisUnsafe()
      return take(({ since }) => parked.size > capacity || now - since >= patienceMs)
    },
    missingFor: (type) => {
      const since = missingSince.get(type)
      return since === undefined ? 0 : liveClock.currentTimeMillisUnsafe() - since
    }
  }
}

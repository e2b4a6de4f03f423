/**
 * Jobs whose type has no handler in this process: kept for a second (handlers register while a process starts), then put back. While
 * handlers are leaving they are kept on: mostly the whole process is leaving, and then its waiting jobs need no write at all.
 */
import type { ReadyJob } from "../JobStore.ts"
import { liveClock } from "./time/liveClock.ts"

const patienceMs = 1_000
const capacity = 256

/** Parked jobs of one partition. */
export interface Parking {
  readonly park: (job: ReadyJob) => void
  /** All jobs of a type that has got a handler. */
  readonly unpark: (type: string) => ReadonlyArray<ReadyJob>
  readonly remove: (id: string) => ReadyJob | undefined
  /** Jobs that have waited long enough, or do not fit. */
  readonly overdue: () => ReadonlyArray<ReadyJob>
  /** A handler goes as soon as its attempts have ended. */
  readonly leaving: () => void
  /** It has gone. */
  readonly left: () => void
  /** Whether handlers are leaving and there is no room for more of their jobs. */
  readonly isFull: () => boolean
  /** How long the type has had no handler here, in milliseconds. */
  readonly missingFor: (type: string) => number
}

/** An empty parking. */
export const make = (): Parking => {
  const parked = new Map<string, { readonly job: ReadyJob; readonly since: number }>()
  const missingSince = new Map<string, number>()
  let leaving = 0
  const take = (choose: (entry: { readonly job: ReadyJob; readonly since: number }) => boolean) => {
    const chosen = [...parked.values()].filter(choose).map(({ job }) => job)
    for (const { id } of chosen) parked.delete(id)
    return chosen
  }
  return {
    park: (job) => {
      const now = liveClock.currentTimeMillisUnsafe()
      if (!missingSince.has(job.type)) missingSince.set(job.type, now)
      parked.set(job.id, { job, since: now })
    },
    unpark: (type) => {
      missingSince.delete(type)
      return take(({ job }) => job.type === type)
    },
    remove: (id) => {
      const entry = parked.get(id)
      parked.delete(id)
      return entry?.job
    },
    overdue: () => {
      const now = liveClock.currentTimeMillisUnsafe()
      return leaving > 0 ? [] : take(({ since }) => parked.size > capacity || now - since >= patienceMs)
    },
    leaving: () => void leaving++,
    left: () => {
      leaving--
      const now = liveClock.currentTimeMillisUnsafe()
      for (const [id, { job }] of parked) parked.set(id, { job, since: now })
    },
    isFull: () => leaving > 0 && parked.size >= capacity,
    missingFor: (type) => {
      const since = missingSince.get(type)
      return since === undefined ? 0 : liveClock.currentTimeMillisUnsafe() - since
    }
  }
}

/**
 * Outcomes of this process that could not be written before their ownership ended, because the database was away. They wait for the next
 * take-over of their partition by this process. The job's version fences them: they mean nothing once another settlement, or the crash of another
 * owner's run, has raised it. A run alone does not raise it, so the take-over leaves a row alone that another owner has on record.
 *
 * A crash of the process loses them: then the runs on record count as crashes.
 */
import type { JobId } from "../JobId.ts"
import type { PartitionKey, Settlement } from "../JobStore.ts"

/** Those of a process. */
export interface Unwritten {
  readonly keep: (partition: PartitionKey, settlement: Settlement) => void
  readonly of: (partition: PartitionKey) => ReadonlyArray<Settlement>
  /** They are written, or mean nothing any more. */
  readonly forget: (settlements: ReadonlyArray<Settlement>) => void
}

/** More than an outage leaves behind; beyond it the oldest go. */
const capacity = 10_000

/** Nothing kept yet. */
export const make = (): Unwritten => {
  const kept = new Map<JobId, { readonly key: string; readonly settlement: Settlement }>()
  const keyOf = ({ partition, queueId }: PartitionKey) => `${queueId}/${partition}`
  return {
    keep: (partition, settlement) => {
      kept.delete(settlement.id)
      kept.set(settlement.id, { key: keyOf(partition), settlement })
      const [oldest] = kept.keys()
      if (kept.size > capacity && oldest !== undefined) kept.delete(oldest)
    },
    of: (partition) => {
      const key = keyOf(partition)
      return [...kept.values()].flatMap((one) => one.key === key ? [one.settlement] : [])
    },
    forget: (settlements) => {
      for (const settlement of settlements) {
        if (kept.get(settlement.id)?.settlement === settlement) kept.delete(settlement.id)
      }
    }
  }
}

/**
 * Hears of ready rows from submitters of this process: takes jobs from their hands, or remembers what is to be read.
 *
 * Promise: nothing that is told is forgotten, and what is taken passes nothing that waits in the table. After a crash the rows are read.
 */
import type { Ready } from "../JobStore.ts"
import type { PartitionState } from "./partitionState.ts"

/** Listens for one partition. */
export const make = (state: PartitionState): (ready: ReadonlyArray<Ready>) => void => {
  const { dispatchDue, held, intakeDue, isOrdered, keys, offer, timerDue } = state

  /** Takes a job from its submitter's hand, where that passes nothing that waits in the table. */
  const isTaken = ({ job, lane }: Ready): boolean => {
    if (job === undefined || state.owned === undefined || state.isStopping || !held.isRead(lane)) return false
    if (!state.hasRoom(lane)) return false
    const ready = job()
    if (!held.given(ready)) return false
    offer(ready)
    return true
  }

  return (ready) => {
    for (const row of ready) {
      if (row.dueAt !== undefined) timerDue.openUnsafe()
      else if (isTaken(row)) dispatchDue.openUnsafe()
      else if (isOrdered && row.key !== undefined) keys.look({ tenant: row.tenant, key: row.key })
      else {
        held.told(row)
        intakeDue.openUnsafe()
      }
    }
  }
}

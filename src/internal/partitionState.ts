/**
 * What one partition has in memory, for all that works on it: its jobs that wait, its ownership, and what wakes its loops.
 *
 * None of it is written anywhere: after a crash the next owner reads the table, and nothing is lost.
 */
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import type { JobQueue } from "../JobQueue.ts"
import type { Owner, ReadyJob } from "../JobStore.ts"
import * as Mailbox from "../Mailbox.ts"
import * as Priority from "../Priority.ts"
import type { Attempts } from "./attempts.ts"
import * as Held from "./held.ts"
import * as Keys from "./keys.ts"
import * as Parking from "./parking.ts"
import type { Settler } from "./settler.ts"
import type * as Suspects from "./suspects.ts"

/** Since the take-over. */
export interface Owned {
  readonly owner: Owner
  readonly attempts: Attempts
  readonly settler: Settler
  /** Its jobs that wait to run alone in the process. */
  readonly suspects: Suspects.OwnSuspects
}

/** The memory of one partition. */
export interface PartitionState {
  readonly mailbox: Mailbox.Mailbox<ReadyJob & Mailbox.Item>
  readonly held: Held.Held
  /** Whether jobs of one key wait for each other; `keys` sees to it. */
  readonly isOrdered: boolean
  readonly keys: Keys.Keys
  readonly keysDue: Latch.Latch
  readonly parking: Parking.Parking
  readonly intakeDue: Latch.Latch
  readonly dispatchDue: Latch.Latch
  readonly timerDue: Latch.Latch
  /** `undefined` until the partition is taken over. */
  owned: Owned | undefined
  /** Nothing is started any more. */
  isStopping: boolean
  /** Puts a job that was read into the mailbox. */
  readonly offer: (job: ReadyJob) => void
  /** Holds the job no longer. `isReady`: its row is still there, to be read again. */
  readonly release: (job: ReadyJob, isReady: boolean) => void
  /** Whether this lane takes another job. */
  readonly hasRoom: (lane: number) => boolean
  /** How many jobs of each lane are worth reading. */
  readonly rooms: () => ReadonlyArray<number>
  /** The same for tenants of whom nothing waits yet. */
  readonly reserves: () => ReadonlyArray<number>
}

/** Room of each lane for tenants that come while another's flood fills it. */
const reserve = 64

/** Nothing read yet. */
export const make = (queue: JobQueue): Effect.Effect<PartitionState> =>
  Effect.gen(function*() {
    const capacity = Math.min(Math.max(queue.concurrency * 4, 512), 2_000)
    const mailbox = Mailbox.make<ReadyJob & Mailbox.Item>({
      weights: queue.weights,
      capacityPerLane: capacity + reserve
    })
    const held = Held.make(Priority.lanes.length)
    const intakeDue = yield* Latch.make(true)

    // Jobs that neither wait nor run (parked, or being settled) are in memory too: a flood of them stops the intake for a moment.
    const isCrowded = () => held.size - mailbox.size - (state.owned?.attempts.size() ?? 0) > capacity

    const keysDue = yield* Latch.make(false)
    const keys = Keys.make(() => void keysDue.openUnsafe())

    const release = (job: ReadyJob, isReady: boolean) => {
      held.release(job, isReady)
      keys.leave(job, isReady)
      if (isReady) intakeDue.openUnsafe()
    }

    const state: PartitionState = {
      mailbox,
      held,
      isOrdered: queue.isOrdered,
      keys,
      keysDue,
      parking: Parking.make(),
      intakeDue,
      dispatchDue: yield* Latch.make(true),
      timerDue: yield* Latch.make(true),
      owned: undefined,
      isStopping: false,
      offer: (job) => {
        if (mailbox.offer({ ...job, tenantId: job.tenant }) === "full") release(job, true)
      },
      release,
      hasRoom: (lane) => !isCrowded() && mailbox.room(lane) > reserve,
      rooms: () =>
        Priority.lanes.map(({ index }) =>
          isCrowded() || mailbox.sizeOf(index) * 2 > capacity ? 0 : mailbox.room(index) - reserve
        ),
      reserves: () => Priority.lanes.map(({ index }) => isCrowded() ? 0 : mailbox.room(index))
    }
    return state
  })

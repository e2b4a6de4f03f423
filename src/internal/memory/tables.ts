/**
 * The tables of MemoryJobStore, and what PostgreSQL would refuse to put into them. Pure but for the maps.
 */
import * as Effect from "effect/Effect"
import * as Order from "effect/Order"
import type * as Queue from "effect/Queue"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type { JobFailure } from "../../JobError.ts"
import type { Entry } from "../../JobHistory.ts"
import type { BatchId, JobId } from "../../JobId.ts"
import type { Outcome } from "../../JobState.ts"
import {
  type LiveRow,
  type Message,
  type NewJob,
  type Owner,
  type PartitionKey,
  type QueueRow,
  type Ready,
  type RunNote,
  StoreError
} from "../../JobStore.ts"

/** A row of `jobs`. JSON stays text and is parsed by each reading, so that no reader shares an object with another. */
export interface Row extends NewJob {
  readonly state: LiveRow["state"]
  readonly seq: number
  readonly version: number
  readonly attempt: number
  readonly crashes: number
  readonly reruns: number
  readonly batchId: BatchId | undefined
  readonly createdAt: number
  readonly history: ReadonlyArray<Entry>
}

/** A row of `dead_letters`. */
export interface Dead {
  readonly _tag: "Dead"
  readonly row: Row
  readonly endedAt: number
  readonly failure: JobFailure
}

/** A row of `finished_jobs`. */
export interface Finished {
  readonly _tag: "Finished"
  readonly row: Row
  readonly endedAt: number
  readonly outcome: Outcome
  readonly result: string | undefined
  readonly purgeOn: number
}

/** A row of `partitions`: the fence. */
interface Fence {
  readonly epoch: number
  readonly owner: string | undefined
  readonly isCareful: boolean
}

/** A row of `running_jobs`. */
type NoteRow = RunNote & Owner

/** What an owner is told of a row that is ready. */
export const readyOf = ({ key, lane, partition, queueId, seq, tenant }: Row): Ready => ({
  queueId,
  partition,
  lane,
  tenant,
  seq,
  ...(key === undefined ? {} : { key })
})

/** An id is in `live` or in `ended`, never in both. */
export class Tables {
  /** In the order of `seq`: an update keeps a row's place, a put back or a replay appends it. */
  readonly live = new Map<JobId, Row>()
  readonly ended = new Map<JobId, Dead | Finished>()
  readonly notes = new Map<JobId, NoteRow>()
  readonly fences = new Map<string, Fence>()
  readonly queues = new Map<string, QueueRow>()
  /** The last change of a count that jobs follow, by queue. */
  readonly moves = new Map<number, { readonly former: number; readonly barrier: number }>()
  /** Shard groups in the order of their numbers. */
  readonly groups: Array<string> = ["default"]
  shards: number | undefined
  /** Who listens to `announce`, and who to `say`. */
  readonly announcedTo = new Set<Queue.Queue<ReadonlyArray<Ready>, StoreError>>()
  readonly saidTo = new Set<Queue.Queue<Message, StoreError>>()
  /** Who holds a dedupe key. */
  readonly holders = new Map<string, JobId>()
  private drawn = 0

  nextSeq(): number {
    return ++this.drawn
  }

  put(row: Row): void {
    this.live.set(row.id, row)
    const key = dedupeKeyOf(row)
    if (key !== undefined) this.holders.set(key, row.id)
  }

  end(ended: Dead | Finished): void {
    const { row } = ended
    this.live.delete(row.id)
    this.ended.set(row.id, ended)
    const key = dedupeKeyOf(row)
    if (key !== undefined) this.holders.delete(key)
  }

  rowsOf({ partition, queueId }: PartitionKey): ReadonlyArray<Row> {
    return [...this.live.values()].filter((row) => row.queueId === queueId && row.partition === partition)
  }

  owns(owner: Owner): boolean {
    return this.fences.get(fenceKey(owner))?.epoch === owner.epoch
  }

  /** The live row, if it is still as it was read. */
  at(id: JobId, version: number): Row | undefined {
    const row = this.live.get(id)
    return row?.version === version ? row : undefined
  }
}

export const fenceKey = ({ partition, queueId }: PartitionKey): string => `${queueId}/${partition}`

export const dedupeKeyOf = (job: Pick<NewJob, "tenant" | "queueId" | "dedupeKey">): string | undefined =>
  job.dedupeKey === undefined ? undefined : JSON.stringify([job.tenant, job.queueId, job.dedupeKey])

/** The day (UTC) of a time, counted from 1970. */
export const dayOf = (millis: number): number => Math.floor(millis / 86_400_000)

/** The order of the "C" collation, by code points. JavaScript's own is by UTF-16 units, which differs above U+FFFF. */
export const byCodePoint: Order.Order<string> = Order.make((left, right) => {
  let same = 0
  while (same < left.length && left[same] === right[same]) same++
  return Order.Number(left.codePointAt(same) ?? -1, right.codePointAt(same) ?? -1)
})

// ------------------------------------------------------------------------------------------------ what PostgreSQL refuses

const parse = Schema.decodeUnknownResult(Schema.fromJsonString(Schema.Unknown))

/** Absent JSON reads as `null`, as the driver does. */
export const read = (json: string | undefined): unknown => json === undefined ? null : JSON.parse(json)

export const refused = (operation: string, sqlState: string, because: string): StoreError =>
  new StoreError({ reason: "Refused", operation, sqlState, cause: new Error(because) })

export const refuseJson = (operation: string, json: string | undefined): Effect.Effect<void, StoreError> =>
  json === undefined || Result.isSuccess(parse(json))
    ? Effect.void
    : Effect.fail(refused(operation, "22P02", "invalid input syntax for type json"))

export const refuseText = (operation: string, text: string | undefined): Effect.Effect<void, StoreError> =>
  text?.includes("\u0000")
    ? Effect.fail(refused(operation, "22021", "invalid byte sequence for encoding \"UTF8\": 0x00"))
    : Effect.void

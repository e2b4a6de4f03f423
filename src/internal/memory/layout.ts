/**
 * How queues are divided in MemoryJobStore: what `internal/sql/layout.ts` does, without other programs to agree with.
 */
import * as Effect from "effect/Effect"
import { LayoutError, QueueMoving, QueueNotEmpty, TooManyGroups } from "../../JobError.ts"
import {
  changesOf,
  defaultLayout,
  fixedWhileUsed,
  isMove,
  isSameLayout,
  type Layout,
  type LayoutField
} from "../../JobQueue.ts"
import { type NewJob, type PartitionKey, type QueueRow, shardGroupCount } from "../../JobStore.ts"
import { fenceKey, type Tables } from "./tables.ts"

/** The number of a group; a new one gets the lowest that is free. */
export const groupNumber = (tables: Tables, name: string): Effect.Effect<number, LayoutError> =>
  Effect.suspend(() => {
    const known = tables.groups.indexOf(name)
    if (known !== -1) return Effect.succeed(known)
    return tables.groups.length === shardGroupCount
      ? Effect.fail(new LayoutError({ reason: new TooManyGroups({ group: name, known: tables.groups }) }))
      : Effect.succeed(tables.groups.push(name) - 1)
  })

const shown = (layout: Layout, field: LayoutField) => String(field === "ordered" ? layout.isOrdered : layout[field])

export const declareQueue = (tables: Tables, name: string, wanted?: Layout): Effect.Effect<QueueRow, LayoutError> =>
  Effect.gen(function*() {
    const known = tables.queues.get(name)
    if (known !== undefined && (wanted === undefined || isSameLayout(known, wanted))) return known
    const { group, isOrdered, partitionBy, partitions } = wanted ?? defaultLayout
    const shardGroup = yield* groupNumber(tables, group)
    const fixed = known === undefined || wanted === undefined ? undefined : fixedWhileUsed(known, wanted)
    const isUsed = [...tables.live.values()].some(({ queueId }) => queueId === known?.queueId)
    if (known !== undefined && wanted !== undefined && fixed !== undefined && isUsed) {
      const reason = new QueueNotEmpty({
        queue: name,
        field: fixed,
        stored: shown(known, fixed),
        asked: shown(wanted, fixed)
      })
      return yield* new LayoutError({ reason })
    }
    if (known !== undefined && wanted !== undefined && fixed === undefined && isMove(known, wanted)) {
      if (isMoving(tables, known)) {
        const reason = new QueueMoving({ queue: name, stored: known.partitions, asked: wanted.partitions })
        return yield* new LayoutError({ reason })
      }
      tables.moves.set(known.queueId, { former: known.partitions, barrier: tables.nextSeq() })
    }
    const row: QueueRow = {
      queueId: known?.queueId ?? tables.queues.size + 1,
      name,
      partitions,
      partitionBy,
      isOrdered,
      group,
      shardGroup,
      layout: (known?.layout ?? 0) + 1
    }
    tables.queues.set(name, row)
    if (known !== undefined) {
      yield* Effect.logInfo(`Queue "${name}": this program has changed ${changesOf(known, row)}`)
    }
    return row
  })

/** Whether jobs lie where a former count has put them. */
const isMoving = (tables: Tables, { partitions, queueId }: QueueRow): boolean =>
  [...tables.live.values()].some((row) =>
    row.queueId === queueId && row.place !== undefined && row.state !== "scheduled" &&
    row.seq < (tables.moves.get(queueId)?.barrier ?? 0) && row.partition !== row.place % partitions
  )

/** One of the partitions there are now. */
export const partitionOf = (
  tables: Tables,
  { partition, place, queueId }: Pick<NewJob, "partition" | "place" | "queueId">
): number => {
  const row = [...tables.queues.values()].find((queue) => queue.queueId === queueId)
  return (place ?? partition) % (row?.partitions ?? Infinity)
}

export const leftovers = (tables: Tables): ReadonlyArray<PartitionKey> => {
  const counts = new Map([...tables.queues.values()].map(({ partitions, queueId }) => [queueId, partitions]))
  const found = new Map<string, PartitionKey>()
  for (const row of tables.live.values()) {
    const { partition, queueId } = row
    if (partition >= (counts.get(queueId) ?? Infinity)) found.set(fenceKey(row), { queueId, partition })
  }
  return [...found.values()].sort((left, right) => left.queueId - right.queueId || left.partition - right.partition)
}

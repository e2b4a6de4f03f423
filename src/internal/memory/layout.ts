/**
 * How queues are divided in MemoryJobStore: what `internal/sql/layout.ts` does, without other programs to agree with.
 */
import * as Effect from "effect/Effect"
import { LayoutError, QueueNotEmpty, TooManyGroups } from "../../JobError.ts"
import { defaultLayout, fixedWhileUsed, isSameLayout, type Layout, type LayoutField } from "../../JobQueue.ts"
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
    return row
  })

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

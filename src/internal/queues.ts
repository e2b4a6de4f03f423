/**
 * The queues this process knows: those declared in code, with their row, and those others have declared in the database.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type { LayoutError } from "../JobError.ts"
import * as JobQueue from "../JobQueue.ts"
import { JobStore, type QueueRow, type StoreError } from "../JobStore.ts"

/** A queue with its identity in the database. `isDeclared`: in this process's code. */
export interface KnownQueue {
  readonly queue: JobQueue.JobQueue
  /** As last read: other programs may have changed it since. */
  readonly row: QueueRow
  readonly isDeclared: boolean
}

/** Where its partitions are. */
export const partitionsOf = ({ row: { name, partitions } }: KnownQueue) =>
  Array.from({ length: partitions }, (_, partition) => ({ queue: name, partition }))

/** Looks queues up. */
export class Queues extends Context.Service<Queues, {
  /** Those of this process's code, as they are now. */
  readonly declared: ReadonlyArray<KnownQueue>
  readonly byName: (name: string) => Effect.Effect<Option.Option<KnownQueue>, StoreError>
  readonly byId: (queueId: number) => Effect.Effect<Option.Option<KnownQueue>, StoreError>
  readonly names: Effect.Effect<ReadonlyArray<string>, StoreError>
  /** Reads again what the table says. */
  readonly refresh: Effect.Effect<void, StoreError>
  /** The queue as one of its partitions runs it: with its share of the concurrency, which follows the count. */
  readonly partOf: (known: KnownQueue, partition: number) => JobQueue.JobQueue
}>()("millrace/internal/Queues") {}

const unique = (queues: ReadonlyArray<JobQueue.JobQueue>): ReadonlyArray<JobQueue.JobQueue> => {
  const byName = new Map<string, JobQueue.JobQueue>([[JobQueue.fallback.name, JobQueue.fallback]])
  for (const queue of queues) {
    const other = byName.get(queue.name)
    if (other !== undefined && other !== queue && other !== JobQueue.fallback) {
      throw new RangeError(`JobRuntime: the queue "${queue.name}" is declared twice; make it once and share the value`)
    }
    byName.set(queue.name, queue)
  }
  return [...byName.values()]
}

/** Whether what is asked for may be had later, as the queue is. */
const isLater = (error: StoreError | LayoutError): boolean =>
  error._tag === "LayoutError" ? error.reason._tag === "QueueMoving" : error.reason === "LockTimeout"

/** By which the README's table of errors has it. */
const nameOf = ({ _tag, reason }: StoreError | LayoutError): string =>
  `${_tag}, ${typeof reason === "string" ? reason : reason._tag}`

/**
 * Makes the declared queues known to the database as they are declared, and `default` with them. Where another count of partitions cannot be
 * had yet, it goes by the one there is, and asks again with each refresh, until another program has asked for something else.
 */
export const layer = (
  queues: ReadonlyArray<JobQueue.JobQueue>
): Layer.Layer<Queues, StoreError | LayoutError, JobStore> =>
  Layer.effect(
    Queues,
    Effect.gen(function*() {
      const store = yield* JobStore
      const known = new Map<string, KnownQueue>()
      /** What is to be asked for again, and the number of the layout that was there then. */
      const later = new Map<JobQueue.JobQueue, number>()
      /** What is being asked for at this moment: the answer says what has become of it, and who changed it. */
      const asking = new Set<string>()
      for (const queue of unique(queues)) {
        // Nobody has asked for the one of ours: whoever divides it otherwise is right.
        const wanted = queue === JobQueue.fallback ? undefined : queue
        const row = yield* Effect.catch(store.declareQueue(queue.name, wanted), (error) =>
          Effect.gen(function*() {
            if (!isLater(error)) return yield* Effect.fail(error)
            const row = yield* store.declareQueue(queue.name)
            if (JobQueue.fixedWhileUsed(row, queue) !== undefined) return yield* Effect.fail(error)
            later.set(queue, row.layout)
            yield* Effect.logWarning(`${nameOf(error)}: ${error.message}`)
            return row
          }))
        known.set(queue.name, { queue, row, isDeclared: true })
      }
      const askAgain = Effect.suspend(() =>
        Effect.forEach(later, ([queue, layout]) => {
          const row = known.get(queue.name)?.row
          if (asking.has(queue.name)) return Effect.void
          if (row?.layout !== layout) return Effect.sync(() => later.delete(queue))
          asking.add(queue.name)
          return Effect.map(store.declareQueue(queue.name, queue), (row) => {
            later.delete(queue)
            known.set(queue.name, { queue, row, isDeclared: true })
          }).pipe(
            Effect.ignore,
            Effect.ensuring(Effect.sync(() => asking.delete(queue.name)))
          )
        }, { discard: true })
      )
      const saw = (row: QueueRow) => {
        if (asking.has(row.name)) return Effect.void
        const before = known.get(row.name)
        // Read before this program, at the same time, changed it or read it again.
        if (before !== undefined && row.layout < before.row.layout) return Effect.void
        const { isDeclared, queue } = before ?? { queue: JobQueue.make(row.name), isDeclared: false }
        known.set(row.name, { queue, row, isDeclared })
        const changes = isDeclared && before !== undefined ? JobQueue.changesOf(before.row, row) : ""
        return changes === ""
          ? Effect.void
          : Effect.logInfo(`Queue "${row.name}": another program has changed ${changes}`)
      }
      const refresh = Effect.flatMap(store.queues, (rows) => Effect.forEach(rows, saw, { discard: true })).pipe(
        Effect.andThen(askAgain)
      )
      const find = (choose: (queue: KnownQueue) => boolean) => {
        const lookUp = Effect.sync(() => Option.fromUndefinedOr([...known.values()].find(choose)))
        return Effect.flatMap(
          lookUp,
          (found) => Option.isSome(found) ? Effect.succeed(found) : Effect.andThen(refresh, lookUp)
        )
      }
      return Queues.of({
        get declared() {
          return [...known.values()].filter(({ isDeclared }) => isDeclared)
        },
        byName: (name) => {
          const queue = known.get(name)
          return queue === undefined ? find(({ row }) => row.name === name) : Effect.succeedSome(queue)
        },
        byId: (queueId) => find(({ row }) => row.queueId === queueId),
        names: Effect.map(refresh, () => [...known.keys()]),
        refresh,
        partOf: ({ queue, row: { name, partitions } }, partition) => ({
          ...queue,
          get concurrency() {
            return JobQueue.shareOf(queue, partition, known.get(name)?.row.partitions ?? partitions)
          }
        })
      })
    })
  )

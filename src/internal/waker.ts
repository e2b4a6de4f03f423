/**
 * Carries "rows have become ready" from submitters to owners: at once within the process, else coalesced, by a fiber of each partition's
 * own, and never waited for: an owner that does not answer delays nobody else's wakes. What is left at the end of the process is sent then:
 * many a program submits and is done.
 *
 * A crash here loses a wake; the owner's sweep finds the rows.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Semaphore from "effect/Semaphore"
import { JobStore, type Ready } from "../JobStore.ts"
import { type Address, Owners, partitionName } from "./owners.ts"
import { type KnownQueue, Queues } from "./queues.ts"
import { onLiveClock } from "./time/liveClock.ts"

/** Wakes owners. */
export class Waker extends Context.Service<Waker, {
  /** Returns at once. */
  readonly wake: (ready: ReadonlyArray<Ready>) => void
}>()("millrace/internal/Waker") {}

const keyOf = (ready: Ready) =>
  `${ready.queueId} ${ready.partition} ${ready.lane} ${ready.dueAt === undefined} ${ready.tenant} ${ready.key ?? ""}`

const byPartition = (all: ReadonlyArray<Ready>): Iterable<ReadonlyArray<Ready>> => {
  if (all.length === 1) return [all]
  const groups = new Map<string, Array<Ready>>()
  for (const ready of all) {
    const key = `${ready.queueId} ${ready.partition}`
    const group = groups.get(key)
    if (group === undefined) groups.set(key, [ready])
    else group.push(ready)
  }
  return groups.values()
}

/** What is to be told, each row once: of those alike the first in order. */
type Pending = Map<string, Ready>

const add = (pending: Pending, ready: ReadonlyArray<Ready>): void => {
  for (const { job: _, ...one } of ready) {
    const key = keyOf(one)
    const other = pending.get(key)
    if (other === undefined || one.seq < other.seq) pending.set(key, one)
  }
}

/** Owners in this process are told at once, other runners get a message; who cannot be reached hears of it through the database. */
export const layer: Layer.Layer<Waker, never, JobStore | Owners | Queues> = Layer.effect(
  Waker,
  Effect.gen(function*() {
    const store = yield* JobStore
    const owners = yield* Owners
    const queues = yield* Queues
    const latch = yield* Latch.make(false)
    const fibers = yield* FiberSet.make()
    const fork = yield* FiberSet.runtime(fibers)()
    const taking = yield* Semaphore.make(1)
    const pending: Pending = new Map()
    /** Partitions with a message under way, and what is to follow it. */
    const sending = new Map<string, Pending>()

    const bestEffort = <E>(effect: Effect.Effect<void, E>) =>
      effect.pipe(
        Effect.timeoutOption("2 seconds"),
        onLiveClock,
        Effect.catchCause((cause) => Effect.logDebug("A wake was lost; the sweep will find the jobs", cause)),
        Effect.asVoid
      )

    const addressOf = (ready: Ready) =>
      Effect.map(
        Effect.orElseSucceed(queues.byId(ready.queueId), () => Option.none<KnownQueue>()),
        Option.map(({ row }): Address => ({ queue: row.name, partition: ready.partition }))
      )

    const sendAll = (address: Address, next: Pending): Effect.Effect<void> =>
      Effect.suspend(() => {
        if (next.size === 0) {
          sending.delete(partitionName(address))
          return Effect.void
        }
        const ready = [...next.values()]
        next.clear()
        const sent = Effect.flatMap(
          owners.wake(address, ready),
          (isHeard) => isHeard ? Effect.void : bestEffort(store.announce(ready))
        )
        return Effect.andThen(sent, sendAll(address, next))
      })

    const send = (address: Address, ready: ReadonlyArray<Ready>): void => {
      const key = partitionName(address)
      const known = sending.get(key)
      if (known !== undefined) return add(known, ready)
      const next: Pending = new Map()
      sending.set(key, next)
      add(next, ready)
      fork(Effect.withTracerEnabled(sendAll(address, next), false))
    }

    const tell = (all: ReadonlyArray<Ready>) =>
      Effect.gen(function*() {
        const unreached: Array<Ready> = []
        for (const group of byPartition(all)) {
          const [first] = group
          const address = first === undefined ? Option.none<Address>() : yield* addressOf(first)
          if (Option.isSome(address) && owners.reach(address.value) !== "database") send(address.value, group)
          else unreached.push(...group)
        }
        if (unreached.length > 0) yield* store.announce(unreached)
      })

    const tellPending = taking.withPermit(Effect.suspend(() => {
      latch.closeUnsafe()
      const all = [...pending.values()]
      pending.clear()
      return all.length === 0 ? Effect.void : bestEffort(tell(all))
    }))

    yield* Effect.andThen(latch.await, tellPending).pipe(
      Effect.forever,
      Effect.withTracerEnabled(false),
      Effect.forkScoped
    )
    // Before the loop and the messages under way are interrupted.
    yield* Effect.addFinalizer(() =>
      bestEffort(Effect.andThen(tellPending, FiberSet.awaitEmpty(fibers))).pipe(
        Effect.interruptible,
        Effect.withTracerEnabled(false)
      )
    )

    return Waker.of({
      wake: (ready) => {
        let isPending = false
        for (const group of byPartition(ready)) {
          const [first] = group
          if (first === undefined || owners.tell(first.queueId, first.partition, group)) continue
          isPending = true
          add(pending, group)
        }
        if (isPending) latch.openUnsafe()
      }
    })
  })
)

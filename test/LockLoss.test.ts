/**
 * Guarantee 10, for an owner that cannot be sure of its lock any more: it interrupts what runs at once and takes nothing, whoever may close
 * it later.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { Lock } from "../src/internal/supervisor.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as Jobs from "../src/Jobs.ts"
import { JobStore } from "../src/JobStore.ts"
import { recordLog } from "./utils/logged.ts"
import { layerMemory, Partitions } from "./utils/partitions.ts"
import { until } from "./utils/runtime.ts"

const Work = JobQueue.make("work", { concurrency: 4 })

/** A lock that the test takes away. */
const makeLock = () => {
  const lost = Deferred.makeUnsafe<void>()
  let isHeld = true
  let wasGivenUp = false
  const lock: Lock = {
    isHeld: () => isHeld,
    lost: Deferred.await(lost),
    giveUp: () => {
      wasGivenUp = true
    }
  }
  return {
    lock,
    /** Overdue, and nobody has said so yet: a process that has just woken up. */
    oversleep: () => {
      isHeld = false
    },
    lose: () => {
      isHeld = false
      Deferred.doneUnsafe(lost, Effect.void)
    },
    wasGivenUp: () => wasGivenUp
  }
}

/** A handler that never returns by itself: who runs, and who was interrupted. */
const endless = Effect.gen(function*() {
  const running = new Set<unknown>()
  const interrupted: Array<unknown> = []
  yield* JobHandlers.register("endless", (name) =>
    Effect.suspend(() => {
      running.add(name)
      return Effect.onInterrupt(Effect.never, () =>
        Effect.sync(() => {
          running.delete(name)
          interrupted.push(name)
        }))
    }))
  const jobs = yield* Jobs.Jobs
  return { running, interrupted, submit: (payload: string) => jobs.submit({ type: "endless", payload, queue: Work }) }
})

/** How many jobs wait in memory, once they are read: whatever would start them has had its turn. */
const waiting = Effect.gen(function*() {
  const { of } = yield* Partitions
  const size = () => of(Work).snapshot().lanes.reduce((sum, lane) => sum + lane.size, 0)
  yield* until(Effect.sync(() => size() > 0))
  yield* Effect.repeat(Effect.yieldNow, { times: 100 })
  return size()
})

describe("an owner that loses its lock", () => {
  it.live("interrupts its attempts at once, says that they run again if they are not stored, and starts nothing more", () => {
    const { lock, lose } = makeLock()
    const { layer, of } = recordLog()
    return Effect.gen(function*() {
      const { interrupted, running, submit } = yield* endless
      yield* submit("one")
      yield* until(Effect.sync(() => running.has("one")))
      lose()
      yield* until(Effect.sync(() => interrupted.length === 1))
      yield* submit("two")
      // The first one waits again.
      assert.strictEqual(yield* waiting, 2)
      assert.deepStrictEqual([...running], [])
      assert.deepStrictEqual(of("The lock of"), [
        "The lock of work/0 is lost: 1 job under way ends here, and runs again where it is owned next if its outcome is not stored"
      ])
    }).pipe(
      Effect.scoped,
      Effect.provide(Layer.provideMerge(layerMemory({ queues: [Work], lock }), layer))
    )
  })

  it.live("takes nothing from the moment it is overdue, though nobody has told it yet", () => {
    const { lock, oversleep } = makeLock()
    return Effect.gen(function*() {
      const { running, submit } = yield* endless
      yield* submit("one")
      yield* until(Effect.sync(() => running.has("one")))
      oversleep()
      yield* submit("two")
      assert.strictEqual(yield* waiting, 1)
      assert.deepStrictEqual([...running], ["one"])
    }).pipe(Effect.scoped, Effect.provide(layerMemory({ queues: [Work], lock })))
  })
})

describe("an owner that stood still", () => {
  it.live("and whose partition is another's by now blames nobody for it", () => {
    const { lock, oversleep, wasGivenUp } = makeLock()
    const { layer, lines } = recordLog()
    const asked = Deferred.makeUnsafe<void>()
    const changeStore = (store: JobStore["Service"]): JobStore["Service"] => ({
      ...store,
      isOwner: (owner) => Effect.ensuring(store.isOwner(owner), Deferred.succeed(asked, undefined))
    })
    return Effect.gen(function*() {
      const { running, submit } = yield* endless
      yield* submit("one")
      yield* until(Effect.sync(() => running.has("one")))
      const store = yield* JobStore
      const row = (yield* store.queues).find(({ name }) => name === Work.name)
      yield* store.takeOver({ queueId: row!.queueId, partition: 0 }, { owner: "its heir", now: yield* store.now })
      oversleep()
      yield* Deferred.await(asked)
      yield* Effect.repeat(Effect.yieldNow, { times: 100 })
      assert.isFalse(wasGivenUp())
      assert.deepStrictEqual(lines.filter(({ level }) => level === "Warn"), [])
    }).pipe(
      Effect.scoped,
      Effect.provide(Layer.provideMerge(layerMemory({ queues: [Work], lock, changeStore }), layer))
    )
  })
})

describe("an owner whose partition was taken over by a process that had lost its lock", () => {
  it.live("finds out, and gives the lock up so as to take over again", () => {
    const { lock, wasGivenUp } = makeLock()
    return Effect.gen(function*() {
      const { running, submit } = yield* endless
      yield* submit("one")
      yield* until(Effect.sync(() => running.has("one")))
      const store = yield* JobStore
      const row = (yield* store.queues).find(({ name }) => name === Work.name)
      const stale = { queueId: row!.queueId, partition: 0 }
      yield* store.takeOver(stale, { owner: "somebody who was frozen", now: yield* store.now })
      yield* until(Effect.sync(wasGivenUp))
    }).pipe(Effect.scoped, Effect.provide(layerMemory({ queues: [Work], lock })))
  })
})

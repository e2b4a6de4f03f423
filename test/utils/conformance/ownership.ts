/**
 * What a partition's owners can rely on: one at a time, and a crash is counted once.
 */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { bury, day, everything, finish, fresh, note, noted, putBack, retry, t0, times } from "../storeFixture.ts"
import type { Suite } from "./suite.ts"

export const ownership = (it: Suite): void => {
  describe("ownership", () => {
    it.effect("two that take over at the same time do not get the same epoch", () =>
      Effect.gen(function*() {
        const { owner, takeOver } = yield* fresh
        const owners = yield* Effect.all(times(10, () => takeOver()), { concurrency: "unbounded" })
        assert.deepStrictEqual(
          owners.map(({ epoch }) => epoch).sort((a, b) => a - b),
          times(10, (index) => owner.epoch + 1 + index)
        )
      }))

    it.effect("only after an owner that did not hand over has the next one to be careful", () =>
      Effect.gen(function*() {
        const { queueId, store } = yield* fresh
        const partition = { queueId, partition: 1 }
        const take = (name: string) => store.takeOver(partition, { owner: name, now: t0 })
        const first = yield* take("a")
        assert.isFalse(first.isCareful)
        const second = yield* take("b")
        assert.isTrue(second.isCareful)
        assert.isTrue(yield* store.handOver(second.owner))
        assert.isFalse((yield* take("c")).isCareful)
      }))

    it.effect("a living process that takes its own partition again is as careful as it was: nothing new has crashed", () =>
      Effect.gen(function*() {
        const { queueId, store } = yield* fresh
        const take = (name: string) =>
          Effect.map(
            store.takeOver({ queueId, partition: 1 }, { owner: name, now: t0 }),
            ({ isCareful, owner: { epoch } }) => ({ epoch, isCareful })
          )
        assert.deepStrictEqual(yield* take("a"), { epoch: 1, isCareful: false })
        assert.deepStrictEqual(yield* take("a"), { epoch: 2, isCareful: false })
        assert.deepStrictEqual(yield* take("b"), { epoch: 3, isCareful: true })
        // What "a" left behind may not be counted yet.
        assert.deepStrictEqual(yield* take("b"), { epoch: 4, isCareful: true })
        assert.deepStrictEqual(yield* take("a"), { epoch: 5, isCareful: true })
      }))

    it.effect("a superseded owner reads nothing, settles nothing, promotes nothing, notes nothing, hands over nothing", () =>
      Effect.gen(function*() {
        const { get, owner, readyIds, settle, store, stored, takeOver } = yield* fresh
        const one = yield* stored()
        const two = yield* stored()
        const later = yield* stored({ dueAt: t0 + 1 })
        const before = yield* Effect.all([one, two, later].map(({ id }) => get(id)))
        assert.isTrue(yield* store.isOwner(owner))
        const successor = yield* takeOver()

        assert.isFalse(yield* store.isOwner(owner))
        assert.isTrue(yield* store.isOwner(successor))
        assert.deepStrictEqual(yield* store.intake(owner, everything()), { jobs: [], visited: [] })
        assert.deepStrictEqual(yield* settle(owner, finish(one)), [])
        assert.deepStrictEqual(yield* settle(owner, retry(one)), [])
        assert.deepStrictEqual(yield* settle(owner, putBack(one)), [])
        assert.deepStrictEqual(yield* settle(owner, bury(one)), [])
        assert.deepStrictEqual(yield* store.promote(owner, t0 + 10, 10), [])
        assert.deepStrictEqual(yield* store.noteRunning(owner, [note(one)], t0), [])
        assert.isTrue(Option.isNone(yield* store.refence(owner, one.id, 0)))
        assert.isFalse(yield* store.handOver(owner))
        assert.deepStrictEqual(yield* store.countCrashes(owner, [], { runner: "runner", now: t0 }), {
          counted: [],
          busy: []
        })
        assert.isFalse(
          yield* store.cancel({
            id: one.id,
            version: 0,
            owner,
            entry: noted("cancelled"),
            now: t0,
            purgeAt: t0 + day
          })
        )

        assert.deepStrictEqual(yield* Effect.all([one, two, later].map(({ id }) => get(id))), before)
        assert.deepStrictEqual(yield* readyIds(successor), [one.id, two.id])
        assert.deepStrictEqual(yield* settle(successor, finish(one)), [one.id])
      }))

    it.effect("the owner of one partition is a stranger in the other", () =>
      Effect.gen(function*() {
        const { queueId, readyIds, store, stored, takeOver } = yield* fresh
        yield* stored({ partition: 1 })
        // Epoch 1 exists in partition 0 only, as long as nobody has taken partition 1.
        assert.deepStrictEqual(yield* store.intake({ queueId, partition: 1, epoch: 1 }, everything()), {
          jobs: [],
          visited: []
        })
        assert.strictEqual((yield* readyIds(yield* takeOver(1))).length, 1)
      }))
  })

  describe("crashes", () => {
    it.effect("a run that died with its owner is counted once", () =>
      Effect.gen(function*() {
        const { get, owner, settle, store, stored, takeOver } = yield* fresh
        const one = yield* stored()
        const idle = yield* stored()
        assert.deepStrictEqual(yield* store.noteRunning(owner, [note(one)], t0), [one.id])
        const second = yield* takeOver()
        assert.deepStrictEqual(yield* store.countCrashes(second, [], { runner: "runner", now: t0 }), {
          counted: [{ id: one.id, version: 1, crashes: 1, attempt: 0, type: "Greet" }],
          busy: []
        })
        assert.deepStrictEqual(yield* store.countCrashes(second, [], { runner: "runner", now: t0 }), {
          counted: [],
          busy: []
        })
        const third = yield* takeOver()
        assert.deepStrictEqual(yield* store.countCrashes(third, [], { runner: "runner", now: t0 }), {
          counted: [],
          busy: []
        })
        assert.deepStrictEqual(yield* settle(third, finish(one)), [])
        assert.deepStrictEqual([(yield* get(one.id)).crashes, (yield* get(idle.id)).crashes], [1, 0])
        const { jobs } = yield* store.intake(third, everything())
        assert.deepStrictEqual(jobs.map(({ crashes }) => crashes), [1, 0])
      }))

    it.effect("a run that ended, moved on or was handed over is no crash", () =>
      Effect.gen(function*() {
        const { owner, settle, store, stored, takeOver } = yield* fresh
        const [done, retried, forgotten] = [yield* stored(), yield* stored(), yield* stored()]
        yield* store.noteRunning(owner, [note(done), note(retried), note(forgotten)], t0)
        yield* settle(owner, finish(done), retry(retried))
        yield* store.noteDone(owner, [forgotten.id])
        const second = yield* takeOver()
        assert.deepStrictEqual(yield* store.countCrashes(second, [], { runner: "runner", now: t0 }), {
          counted: [],
          busy: []
        })

        yield* store.noteRunning(second, [note(forgotten)], t0)
        assert.isTrue(yield* store.handOver(second))
        assert.deepStrictEqual(yield* store.countCrashes(yield* takeOver(), [], { runner: "runner", now: t0 }), {
          counted: [],
          busy: []
        })
      }))

    it.effect("reruns and crashes that a former ownership could not write are counted by the take-over, once each", () =>
      Effect.gen(function*() {
        const { get, owner: dead, queueId, store, stored } = yield* fresh
        const [crashed, broken, gone, noted] = [yield* stored(), yield* stored(), yield* stored(), yield* stored()]
        // Another owner has run it since, and died.
        yield* store.noteRunning(dead, [note(noted)], t0)
        const entry = (outcome: "crashed" | "interrupted") => ({
          kind: "attempt" as const,
          attempt: 1,
          startedAt: t0,
          endedAt: t0 + 1,
          runner: "runner",
          outcome
        })
        const unwritten = [
          { _tag: "Rerun", id: crashed.id, version: 0, isCrash: true, entry: entry("crashed") },
          { _tag: "Rerun", id: broken.id, version: 0, isCrash: false, entry: entry("interrupted") },
          // Somebody has run it since.
          { _tag: "Rerun", id: gone.id, version: 7, isCrash: true, entry: entry("crashed") },
          { _tag: "Rerun", id: noted.id, version: 0, isCrash: false, entry: entry("interrupted") }
        ] as const
        const again = () => store.takeOver({ queueId, partition: 0 }, { owner: "living", now: t0, unwritten })
        yield* again()
        const { owner } = yield* again()
        yield* store.countCrashes(owner, [], { runner: "runner", now: t0 })
        const found = yield* Effect.all([crashed, broken, gone, noted].map(({ id }) => get(id)))
        assert.deepStrictEqual(
          found.map((
            { crashes, history, reruns, state, version }
          ) => [crashes, reruns, version, state, history.length]),
          [[1, 0, 1, "queued", 1], [0, 1, 1, "queued", 1], [0, 0, 0, "queued", 0], [1, 0, 1, "queued", 1]]
        )
        // The place in its line is as before.
        const { jobs } = yield* store.intake(owner, everything())
        assert.deepStrictEqual(jobs.map(({ id }) => id), [crashed.id, broken.id, gone.id, noted.id])
        assert.deepStrictEqual(jobs.map(({ reruns }) => reruns), [0, 1, 0, 0])
      }))

    it.effect("runs that a living process had when it took its own partition again are no crashes, of the owner before they are", () =>
      Effect.gen(function*() {
        const { get, owner, store, stored, takeOver } = yield* fresh
        const [crashed, innocent] = [yield* stored(), yield* stored()]
        yield* store.noteRunning(owner, [note(crashed)], t0)
        const first = yield* takeOver(0, "living")
        yield* store.noteRunning(first, [note(innocent)], t0)
        const again = yield* takeOver(0, "living")
        assert.strictEqual((yield* get(innocent.id)).running, undefined)
        assert.deepStrictEqual(
          (yield* store.countCrashes(again, [], { runner: "runner", now: t0 })).counted.map(({ id }) => id),
          [crashed.id]
        )
        // Nor for whoever comes after it.
        assert.deepStrictEqual(yield* store.countCrashes(yield* takeOver(), [], { runner: "runner", now: t0 }), {
          counted: [],
          busy: []
        })
        assert.strictEqual((yield* get(innocent.id)).crashes, 0)
      }))

    it.effect("what the new owner has in hand is never counted: its version must not move", () =>
      Effect.gen(function*() {
        const { owner, settle, store, stored, takeOver } = yield* fresh
        const one = yield* stored()
        yield* store.noteRunning(owner, [note(one)], t0)
        const second = yield* takeOver()
        assert.deepStrictEqual(yield* store.countCrashes(second, [one.id], { runner: "runner", now: t0 }), {
          counted: [],
          busy: []
        })
        assert.deepStrictEqual(yield* settle(second, finish(one)), [one.id])
      }))

    it.effect("runs of this epoch and of other partitions are not counted", () =>
      Effect.gen(function*() {
        const { owner, store, stored, takeOver } = yield* fresh
        const mine = yield* stored()
        const others = yield* stored({ partition: 1 })
        const neighbour = yield* takeOver(1)
        yield* store.noteRunning(neighbour, [note(others)], t0)
        yield* takeOver(1)
        const second = yield* takeOver()
        yield* store.noteRunning(second, [note(mine)], t0)
        assert.deepStrictEqual(yield* store.countCrashes(second, [], { runner: "runner", now: t0 }), {
          counted: [],
          busy: []
        })
        assert.deepStrictEqual(yield* store.noteRunning(owner, [note(mine)], t0), [])
      }))

    it.effect("an owner that handed over notes nothing any more", () =>
      Effect.gen(function*() {
        const { get, owner, store, stored } = yield* fresh
        const one = yield* stored()
        yield* store.handOver(owner)
        assert.deepStrictEqual(yield* store.noteRunning(owner, [note(one)], t0), [])
        assert.strictEqual((yield* get(one.id)).running, undefined)
      }))

    it.effect("a heartbeat without progress keeps the progress told before, of the same attempt only", () =>
      Effect.gen(function*() {
        const { get, owner, settle, store, stored } = yield* fresh
        const one = yield* stored()
        yield* store.noteRunning(owner, [note(one, { progress: 0.5, message: "half" })], t0)
        yield* store.noteRunning(owner, [note(one)], t0 + 1)
        assert.deepStrictEqual((yield* get(one.id)).running, { startedAt: t0, progress: 0.5, message: "half" })
        yield* store.noteRunning(owner, [note(one, { progress: 0.75 })], t0 + 2)
        assert.deepStrictEqual((yield* get(one.id)).running, { startedAt: t0, progress: 0.75, message: "half" })

        yield* settle(owner, retry(one))
        yield* store.promote(owner, t0 + 1000, 10)
        assert.strictEqual((yield* get(one.id)).running, undefined)
        yield* store.noteRunning(
          owner,
          [note({ id: one.id, version: 2 }, { attempt: 2, startedAt: t0 + 2000 })],
          t0 + 2000
        )
        assert.deepStrictEqual((yield* get(one.id)).running, {
          startedAt: t0 + 2000,
          progress: undefined,
          message: undefined
        })
      }))
  })
}

/**
 * How queues are divided: programs agree through the store, and whatever they change loses nothing.
 */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { LayoutError, QueueMoving, QueueNotEmpty, TooManyGroups } from "../../../src/JobError.ts"
import { defaultLayout, type Layout } from "../../../src/JobQueue.ts"
import { JobStore, shardGroupCount } from "../../../src/JobStore.ts"
import { bury, finish, fresh, newId, newJob, noted, retry, t0, times } from "../storeFixture.ts"
import type { Suite } from "./suite.ts"

/** Of a queue of its own. */
const declared = (wanted?: Layout) =>
  Effect.gen(function*() {
    const store = yield* JobStore
    const name = `layout-${newId()}`
    const row = yield* store.declareQueue(name, wanted)
    const declare = (change: Partial<Layout>) => store.declareQueue(name, { ...defaultLayout, ...wanted, ...change })
    const submit = Effect.map(
      store.submit([newJob({ queueId: row.queueId })], { batchId: undefined, now: t0 }),
      ([one]) => one!.id
    )
    return { store, name, row, declare, submit }
  })

const byKey: Layout = { partitions: 3, partitionBy: "key", isOrdered: true, group: "default" }

export const layout = (it: Suite): void => {
  describe("queues", () => {
    it.effect("a program that has no wish takes what is stored, and finds the usual where nothing is", () =>
      Effect.gen(function*() {
        const { name, row, store } = yield* declared()
        assert.deepStrictEqual(row, {
          queueId: row.queueId,
          name,
          ...defaultLayout,
          shardGroup: 0,
          layout: 1
        })
        const four = yield* store.declareQueue(name, { ...defaultLayout, partitions: 4 })
        assert.deepStrictEqual(four, { ...row, partitions: 4, layout: 2 })
        assert.deepStrictEqual(yield* store.declareQueue(name), four)
      }))

    it.effect("programs that start at the same time with different counts agree on one, and the latest to start decides", () =>
      Effect.gen(function*() {
        const { declare, name, row, store } = yield* declared()
        const answers = yield* Effect.all(times(10, (index) => declare({ partitions: index + 1 })), {
          concurrency: "unbounded"
        })
        assert.deepStrictEqual(answers.map(({ partitions }) => partitions), times(10, (index) => index + 1))
        assert.strictEqual((yield* declare({ partitions: 7 })).partitions, 7)
        const all = yield* store.queues
        assert.deepStrictEqual(
          all.filter((queue) => queue.name === name).map(({ partitions, queueId }) => ({ partitions, queueId })),
          [{ partitions: 7, queueId: row.queueId }]
        )
      }))

    it.effect("every change has a number of its own, and asking for what is there changes nothing", () =>
      Effect.gen(function*() {
        const { declare, row } = yield* declared()
        assert.deepStrictEqual(yield* declare({}), row)
        const raised = yield* declare({ partitions: 2 })
        assert.strictEqual(raised.layout, 2)
        assert.deepStrictEqual(yield* declare({ partitions: 2 }), raised)
      }))

    it.effect("where a partition means something it does not change under the jobs that are there", () =>
      Effect.gen(function*() {
        const { declare, name, store, submit } = yield* declared(byKey)
        const id = yield* submit
        const refusals: ReadonlyArray<readonly [Partial<Layout>, QueueNotEmpty["field"], string, string]> = [
          [{ partitionBy: "job", isOrdered: false }, "partitionBy", "key", "job"],
          [{ isOrdered: false }, "ordered", "true", "false"],
          [{ group: "gpu" }, "group", "default", "gpu"]
        ]
        for (const [change, field, stored, asked] of refusals) {
          assert.deepStrictEqual(
            yield* Effect.flip(declare(change)),
            new LayoutError({ reason: new QueueNotEmpty({ queue: name, field, stored, asked }) })
          )
        }
        assert.deepStrictEqual((yield* store.declareQueue(name)).layout, 1)

        const { queueId } = yield* store.declareQueue(name)
        const { owner } = yield* store.takeOver({ queueId, partition: 0 }, { owner: "here", now: t0 })
        yield* store.settle(owner, [finish({ id, version: 0 })], t0)
        assert.strictEqual((yield* declare({ isOrdered: false })).isOrdered, false)
      }))

    it.effect("a count that jobs follow changes under them, and not again while some lie by the one before", () =>
      Effect.gen(function*() {
        const { declare, name, row: { queueId }, store } = yield* declared({ ...byKey, partitions: 2 })
        const submit = (place: number, more: { readonly dueAt?: number } = {}) =>
          Effect.map(
            store.submit([newJob({ queueId, place, key: `k${place}`, ...more })], { batchId: undefined, now: t0 }),
            ([one]) => one!
          )
        const stays = yield* submit(4)
        const moves = yield* submit(3)
        const later = yield* submit(3, { dueAt: t0 + 1000 })
        assert.deepStrictEqual([stays, moves, later].map(({ partition }) => partition), [0, 1, 1])
        assert.deepInclude(yield* declare({ partitions: 4 }), { partitions: 4, layout: 2 })
        assert.strictEqual((yield* submit(3)).partition, 3)
        const again = new LayoutError({ reason: new QueueMoving({ queue: name, stored: 4, asked: 5 }) })
        assert.deepStrictEqual(yield* Effect.flip(declare({ partitions: 5 })), again)
        const { owner } = yield* store.takeOver({ queueId, partition: 1 }, { owner: "here", now: t0 })
        // Between two attempts it is still there.
        yield* store.settle(owner, [retry({ id: moves.id, version: 0 })], t0)
        assert.deepStrictEqual(yield* Effect.flip(declare({ partitions: 5 })), again)
        yield* store.settle(owner, [finish({ id: moves.id, version: 1 })], t0)
        // What waits for its time goes by the count of then.
        assert.deepInclude(yield* declare({ partitions: 5 }), { partitions: 5, layout: 3 })
        const promoted = yield* store.promote(owner, t0 + 5000, 10)
        assert.deepStrictEqual(promoted.map(({ partition }) => partition), [3])
        assert.isAbove(promoted[0]!.seq, later.seq)
      }))

    it.effect("a queue in use does not begin to go by tenant; by job it may be divided anew at any time", () =>
      Effect.gen(function*() {
        const { declare, submit } = yield* declared()
        yield* submit
        const error = yield* Effect.flip(declare({ partitionBy: "tenant" }))
        assert(error._tag === "LayoutError")
        assert.strictEqual(error.reason._tag, "QueueNotEmpty")
        assert.deepInclude(yield* declare({ partitions: 5, group: "mail" }), { partitions: 5, group: "mail" })
      }))
  })

  describe("leftovers", () => {
    it.effect("lowering the count leaves partitions that still have jobs: each is found until it is empty", () =>
      Effect.gen(function*() {
        const { declare, row: { queueId }, store } = yield* declared({ ...defaultLayout, partitions: 8 })
        const own = Effect.map(
          store.leftovers,
          (all) => all.filter((one) => one.queueId === queueId).map(({ partition }) => partition)
        )
        const jobs = [0, 1, 1, 5, 7].map((partition) => newJob({ queueId, partition }))
        const later = newJob({ queueId, partition: 6, dueAt: t0 + 1000 })
        yield* store.submit([...jobs, later], { batchId: undefined, now: t0 })
        assert.deepStrictEqual(yield* own, [])
        yield* declare({ partitions: 6 })
        assert.deepStrictEqual(yield* own, [6, 7])
        yield* declare({ partitions: 1 })
        assert.deepStrictEqual(yield* own, [1, 5, 6, 7])

        const { owner } = yield* store.takeOver({ queueId, partition: 1 }, { owner: "here", now: t0 })
        yield* store.settle(
          owner,
          [finish({ id: jobs[1]!.id, version: 0 }), retry({ id: jobs[2]!.id, version: 0 })],
          t0
        )
        assert.deepStrictEqual(yield* own, [1, 5, 6, 7])
        yield* store.settle(owner, [finish({ id: jobs[2]!.id, version: 1 })], t0)
        assert.deepStrictEqual(yield* own, [5, 6, 7])
        yield* declare({ partitions: 8 })
        assert.deepStrictEqual(yield* own, [])
      }))

    it.effect("a dead letter of a partition that is gone is replayed into one that is there", () =>
      Effect.gen(function*() {
        const { declare, row: { queueId }, store } = yield* declared({ ...defaultLayout, partitions: 8 })
        const one = newJob({ queueId, partition: 7 })
        yield* store.submit([one], { batchId: undefined, now: t0 })
        const { owner } = yield* store.takeOver({ queueId, partition: 7 }, { owner: "here", now: t0 })
        yield* store.settle(owner, [bury({ id: one.id, version: 0 })], t0)
        yield* declare({ partitions: 2 })
        const ready = yield* store.replay(one.id, one.tenant, noted("replayed"))
        assert(ready !== "taken" && Option.isSome(ready))
        assert.strictEqual(ready.value.partition, 1)
        assert.strictEqual(Option.getOrThrow(yield* store.find(one.id)).partition, 1)
      }))
  })

  describe("groups", () => {
    it.effect("a group keeps its number, whoever asks first, until there are no more numbers", () =>
      Effect.gen(function*() {
        const { store } = yield* fresh
        const asked = yield* Effect.all(times(10, () => store.shardGroups(["gpu", "default", "mail"])), {
          concurrency: "unbounded"
        })
        const [first] = asked
        for (const other of asked) assert.deepStrictEqual(other, first)
        assert.strictEqual(first?.[1], 0)
        assert.strictEqual(new Set(first).size, 3)
        const names = times(shardGroupCount, (index) => `group-${index}`)
        const error = yield* Effect.flip(store.shardGroups(names))
        assert(error._tag === "LayoutError" && error.reason instanceof TooManyGroups)
        assert.strictEqual(error.reason.known.length, shardGroupCount)
        assert.include(names, error.reason.group)
        assert.deepStrictEqual(yield* store.shardGroups(["gpu", "default", "mail"]), first)
      }))
  })

  describe("shards", () => {
    it.effect("the number is kept, and nobody who lives is overruled by asking for the same", () =>
      Effect.gen(function*() {
        const { store } = yield* fresh
        yield* store.agreeOnShards({ shards: 16, expirationMs: 6_000 })
        yield* store.agreeOnShards({ shards: 16, expirationMs: 10_000 })
        assert.deepStrictEqual(yield* store.shards, Option.some(16))
        // Nobody has joined: the next one decides.
        yield* store.agreeOnShards({ shards: 32, expirationMs: 6_000 })
        assert.deepStrictEqual(yield* store.shards, Option.some(32))
      }))
  })
}

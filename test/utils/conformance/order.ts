/**
 * Where jobs of tenants and keys are, and who of a key comes first.
 */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { type Demand, inlinePayloadBytes, type NewJob, type Owner, tenantKey } from "../../../src/JobStore.ts"
import { bury, everything, finish, fresh, newId, newJob, noted, putBack, retry, t0, times } from "../storeFixture.ts"
import type { Suite } from "./suite.ts"

const ordered: Demand = { ...everything(), isOrdered: true }
const acme = tenantKey("acme")

/** A queue whose jobs have keys. */
const lines = Effect.gen(function*() {
  const { owner, store, stored, ...rest } = yield* fresh
  const keyed = (key: string, more: Partial<NewJob> = {}) => stored({ key, place: 0, ...more })
  const standings = (by: Owner = owner) =>
    Effect.map(
      store.intake(by, ordered),
      ({ jobs }) => new Map(jobs.map(({ id, standing }) => [id, standing === undefined ? undefined : standing.isHead]))
    )
  const heads = (by: Owner, ...keys: ReadonlyArray<string>) =>
    Effect.map(store.heads(by, keys.map((key) => ({ tenant: acme, key }))), ({ jobs }) => jobs.map(({ id }) => id))
  return { ...rest, owner, store, stored, keyed, standings, heads }
})

export const order = (it: Suite): void => {
  describe("places", () => {
    it.effect("a job is put where its tenant or key belongs, by the count that the queue has now; one without, where it asks", () =>
      Effect.gen(function*() {
        const { get, job, submit } = yield* fresh
        const jobs = times(6, (place) => job({ place, key: `k${place}`, partition: 1 }))
        const plain = job({ partition: 1 })
        const answers = yield* submit(...jobs, plain)
        assert.deepStrictEqual(answers.map(({ partition = 1 }) => partition), [0, 1, 0, 1, 0, 1, 1])
        assert.isTrue(answers.every(({ seq }, index) => index === 0 || seq > answers[index - 1]!.seq))
        for (const [index, { id }] of [...jobs, plain].entries()) {
          assert.strictEqual((yield* get(id)).partition, answers[index]!.partition ?? 1)
        }
        assert.deepStrictEqual((yield* get(jobs[3]!.id)).key, "k3")
        assert.strictEqual((yield* get(plain.id)).key, undefined)

        const deduped = yield* submit(job({ place: 3, key: "k", dedupeKey: "once" }), job({ place: 2, key: "k" }))
        assert.deepStrictEqual(deduped.map(({ partition }) => partition), [1, 0])
        assert.deepStrictEqual((yield* submit(job({ place: 3, key: "k", dedupeKey: "once" })))[0]?.isNew, false)
      }))

    it.effect("a dead letter keeps its key and place, and is replayed to the end of its line", () =>
      Effect.gen(function*() {
        const { heads, keyed, owner, settle, standings, store } = yield* lines
        const [first, second] = [yield* keyed("a"), yield* keyed("a")]
        yield* settle(owner, bury(first))
        assert.deepStrictEqual(yield* heads(owner, "a"), [second.id])
        const ready = yield* store.replay(first.id, acme, noted("replayed"))
        assert(ready !== "taken" && Option.isSome(ready))
        assert.deepInclude(ready.value, { partition: 0, key: "a" })
        assert.deepStrictEqual(yield* standings(), new Map([[second.id, true], [first.id, false]]))
      }))
  })

  describe("lines", () => {
    it.effect("of each key and tenant the first is the head, whatever its lane; a job without a key stands in no line", () =>
      Effect.gen(function*() {
        const { heads, keyed, owner, standings, stored } = yield* lines
        const a1 = yield* keyed("a", { lane: 3 })
        const b1 = yield* keyed("b")
        const a2 = yield* keyed("a", { lane: 0 })
        const other = yield* keyed("a", { tenant: tenantKey("zeta") })
        const none = yield* stored()
        assert.deepStrictEqual(
          yield* standings(),
          new Map<string, boolean | undefined>([
            [a1.id, true],
            [b1.id, true],
            [a2.id, false],
            [other.id, true],
            [none.id, undefined]
          ])
        )
        assert.deepStrictEqual((yield* heads(owner, "a", "b", "none")).toSorted(), [a1.id, b1.id].toSorted())
      }))

    it.effect("an intake of a queue without order says nothing of lines, and gives every payload", () =>
      Effect.gen(function*() {
        const { keyed, owner, store } = yield* lines
        yield* keyed("a")
        yield* keyed("a")
        const plain = yield* store.intake(owner, everything())
        assert.deepStrictEqual(plain.jobs.map(({ payload, standing }) => ({ payload, standing })), [
          { payload: { name: "Ada" }, standing: undefined },
          { payload: { name: "Ada" }, standing: undefined }
        ])
        const { jobs } = yield* store.intake(owner, ordered)
        assert.deepStrictEqual(jobs.map(({ payload, standing }) => ({ payload, standing })), [
          { payload: { name: "Ada" }, standing: { key: "a", isHead: true } },
          { payload: null, standing: { key: "a", isHead: false } }
        ])
      }))

    it.effect("one that waits for its next attempt holds back those behind it, and is the head again when it is due", () =>
      Effect.gen(function*() {
        const { heads, keyed, owner, settle, standings, store } = yield* lines
        const [first, second] = [yield* keyed("a"), yield* keyed("a")]
        yield* settle(owner, retry(first))
        assert.deepStrictEqual(yield* heads(owner, "a"), [])
        assert.deepStrictEqual(yield* standings(), new Map([[second.id, false]]))
        const promoted = yield* store.promote(owner, t0 + 2000, 10)
        assert.deepStrictEqual(promoted.map(({ key, seq }) => ({ key, seq })), [{ key: "a", seq: first.seq }])
        assert.deepStrictEqual(yield* heads(owner, "a"), [first.id])
        assert.deepStrictEqual(yield* standings(), new Map([[first.id, true], [second.id, false]]))
        yield* settle(owner, finish({ id: first.id, version: 2 }))
        assert.deepStrictEqual(yield* heads(owner, "a"), [second.id])
      }))

    it.effect("one that is put back keeps its place in its line, and holds it; without a key it goes to the end", () =>
      Effect.gen(function*() {
        const { get, heads, keyed, owner, settle, store } = yield* lines
        const [first, second] = [yield* keyed("a"), yield* keyed("a")]
        yield* settle(owner, putBack(first))
        assert.deepInclude(yield* get(first.id), { state: "retrying", attempt: 0 })
        assert.deepStrictEqual(yield* heads(owner, "a"), [])
        const [row] = yield* store.reread([first.id])
        assert.strictEqual(row?.seq, first.seq)
        yield* store.promote(owner, t0 + 2000, 10)
        assert.deepStrictEqual(yield* heads(owner, "a"), [first.id])
        yield* settle(owner, finish({ id: first.id, version: 2 }))
        assert.deepStrictEqual(yield* heads(owner, "a"), [second.id])
      }))

    it.effect("a delayed job joins its line when it is due", () =>
      Effect.gen(function*() {
        const { heads, keyed, owner, standings, store } = yield* lines
        const later = yield* keyed("a", { dueAt: t0 + 1000 })
        const now = yield* keyed("a")
        assert.deepStrictEqual(yield* standings(), new Map([[now.id, true]]))
        yield* store.promote(owner, t0 + 1000, 10)
        assert.deepStrictEqual(yield* heads(owner, "a"), [later.id])
      }))

    it.effect("a key that another count of partitions has put elsewhere goes on where it was, then where it belongs, one job at a time", () =>
      Effect.gen(function*() {
        const { get, store } = yield* lines
        const name = `moves-${newId()}`
        const wanted = { partitions: 2, partitionBy: "key", isOrdered: true, group: "default" } as const
        const { queueId } = yield* store.declareQueue(name, wanted)
        const submit = (more: Partial<NewJob> = {}) =>
          Effect.map(
            store.submit([newJob({ queueId, tenant: acme, place: 3, key: "k", ...more })], {
              batchId: undefined,
              now: t0
            }),
            ([one]) => one!
          )
        const take = (partition: number) =>
          Effect.map(store.takeOver({ queueId, partition }, { owner: `${partition}`, now: t0 }), ({ owner }) => owner)
        const heads = (by: Owner) =>
          Effect.map(store.heads(by, [{ tenant: acme, key: "k" }]), ({ elsewhere, jobs }) => ({
            jobs: jobs.map(({ id }) => id),
            elsewhere: elsewhere.map(({ partition }) => partition)
          }))
        const standings = (by: Owner) =>
          Effect.map(
            store.intake(by, ordered),
            ({ jobs }) => jobs.map(({ id, standing }) => [id, standing?.isHead, standing?.move])
          )

        const later = yield* submit({ dueAt: t0 + 1000 })
        const [first, second] = [yield* submit(), yield* submit()]
        yield* store.declareQueue(name, { ...wanted, partitions: 4 })
        const third = yield* submit()
        assert.deepStrictEqual([first, second, third].map(({ partition }) => partition), [1, 1, 3])
        const [before, after] = [yield* take(1), yield* take(3)]
        assert.deepStrictEqual(yield* standings(before), [[first.id, true, "leaves"], [second.id, false, "leaves"]])
        assert.deepStrictEqual(yield* standings(after), [[third.id, false, "waits"]])
        assert.deepStrictEqual(yield* heads(before), { jobs: [first.id], elsewhere: [] })
        assert.deepStrictEqual(yield* heads(after), { jobs: [], elsewhere: [] })

        // One that falls due comes where the key belongs now, behind those that are there.
        yield* store.promote(before, t0 + 1000, 10)
        assert.deepInclude(yield* get(later.id), { partition: 3, state: "queued" })
        assert.deepStrictEqual(yield* standings(after), [[third.id, false, "waits"], [later.id, false, "waits"]])

        yield* store.settle(before, [retry({ id: first.id, version: 0 })], t0)
        assert.deepStrictEqual(yield* heads(before), { jobs: [], elsewhere: [] })
        assert.deepStrictEqual(yield* heads(after), { jobs: [], elsewhere: [] })
        yield* store.promote(before, t0 + 5000, 10)
        assert.deepInclude(yield* get(first.id), { partition: 1 })
        yield* store.settle(before, [finish({ id: first.id, version: 2 })], t0)
        assert.deepStrictEqual(yield* heads(before), { jobs: [second.id], elsewhere: [] })
        yield* store.settle(before, [finish({ id: second.id, version: 0 })], t0)

        // It was the last one: whose turn it is now has to be told.
        assert.deepStrictEqual(yield* heads(before), { jobs: [], elsewhere: [3] })
        assert.deepStrictEqual(yield* standings(after), [[third.id, true, undefined], [later.id, false, undefined]])
        assert.deepStrictEqual(yield* heads(after), { jobs: [third.id], elsewhere: [] })
        yield* store.settle(after, [finish({ id: third.id, version: 0 })], t0)
        assert.deepStrictEqual(yield* heads(after), { jobs: [later.id], elsewhere: [] })
      }))

    it.effect("a head comes as it would by an intake; not to an owner that is superseded, nor to another partition's", () =>
      Effect.gen(function*() {
        const { keyed, owner, stored, store, takeOver } = yield* lines
        const large = JSON.stringify({ text: "x".repeat(inlinePayloadBytes) })
        yield* keyed("a", { context: "{\"userId\":\"ada\"}", expiresAt: t0 + 60_000 })
        yield* keyed("b", { payload: large })
        yield* stored({ key: "c", place: 1 })
        const asked = ["a", "b", "c"].map((key) => ({ tenant: acme, key }))
        const found = (yield* store.heads(owner, asked)).jobs
        const { jobs } = yield* store.intake(owner, ordered)
        assert.deepStrictEqual(found.toSorted((one, other) => one.seq - other.seq), jobs)
        assert.deepStrictEqual(jobs.map(({ isLarge }) => isLarge), [false, true])
        yield* takeOver()
        assert.deepStrictEqual(yield* store.heads(owner, asked), { jobs: [], elsewhere: [] })
      }))
  })
}

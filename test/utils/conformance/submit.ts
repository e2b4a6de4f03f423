/**
 * What submitters are promised: all or nothing, one live job a key, the caller's order.
 */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { tenantKey } from "../../../src/JobStore.ts"
import { bury, everything, finish, fresh, newBatch, newId, retry, t0, times } from "../storeFixture.ts"
import type { Suite } from "./suite.ts"

export const submit = (it: Suite): void => {
  describe("submit", () => {
    it.effect("what was submitted is found as it was given", () =>
      Effect.gen(function*() {
        const { get, job, queueId, store } = yield* fresh
        const batchId = newBatch()
        const one = job({
          lane: 1,
          dueAt: t0 + 5000,
          dedupeKey: "a",
          payload: "{\"deep\":[1,null,\"x\",{\"y\":1.5}]}",
          context: "{\"userId\":\"ada\"}"
        })
        yield* store.submit([one], { batchId, now: t0 })
        const found = yield* get(one.id)
        assert.deepStrictEqual({ ...found, result: undefined }, {
          id: one.id,
          state: "scheduled",
          queueId,
          partition: 0,
          lane: 1,
          tenant: one.tenant,
          type: "Greet",
          version: 0,
          attempt: 0,
          crashes: 0,
          reruns: 0,
          dedupeKey: "a",
          key: undefined,
          batchId,
          createdAt: t0,
          dueAt: t0 + 5000,
          endedAt: undefined,
          payload: { deep: [1, null, "x", { y: 1.5 }] },
          context: { userId: "ada" },
          result: undefined,
          failure: undefined,
          history: [],
          running: undefined
        })
        assert.isTrue(found.result === null || found.result === undefined)
      }))

    it.effect("an id nobody stored is not found", () =>
      Effect.gen(function*() {
        const { store } = yield* fresh
        assert.isTrue(Option.isNone(yield* store.find(newId())))
      }))

    it.effect("answers come in the caller's order, and so does the work", () =>
      Effect.gen(function*() {
        const { job, readyIds, submit } = yield* fresh
        // Keys in falling order: a store that inserts in key order must not let it show.
        const jobs = times(50, (index) => job({ dedupeKey: `k${99 - index}` }))
        const answers = yield* submit(...jobs)
        assert.deepStrictEqual(answers.map(({ id }) => id), jobs.map(({ id }) => id))
        assert.isTrue(answers.every(({ isNew }) => isNew))
        assert.deepStrictEqual(answers.map(({ seq }) => seq), answers.map(({ seq }) => seq).sort((a, b) => a - b))
        assert.deepStrictEqual(yield* readyIds(), jobs.map(({ id }) => id))
      }))

    it.effect("one bad row stores nothing of its batch", () =>
      Effect.gen(function*() {
        const { job, readyIds, store } = yield* fresh
        for (
          const bad of [{ payload: "{not json" }, { context: "nor this" }, { dedupeKey: "a\u0000b" }, {
            type: "\u0000"
          }]
        ) {
          const good = [job(), job({ dedupeKey: "free" })]
          const error = yield* Effect.flip(
            store.submit([good[0]!, job(bad), good[1]!], { batchId: newBatch(), now: t0 })
          )
          assert.strictEqual(error.reason, "Refused")
          assert.isFalse(error.isRetryable)
          for (const { id } of good) assert.isTrue(Option.isNone(yield* store.find(id)))
        }
        assert.deepStrictEqual(yield* readyIds(), [])
      }))

    it.effect("a payload with a NUL character, lone surrogates or emoji survives", () =>
      Effect.gen(function*() {
        const { get, readyIds, stored, store, owner } = yield* fresh
        const value = { nul: "a\u0000b", half: "\ud83d", whole: "😀", "ключ\u2028": "\\u0000 \" \\" }
        const { id } = yield* stored({ payload: JSON.stringify(value), context: JSON.stringify(value) })
        const record = yield* get(id)
        assert.deepStrictEqual(record.payload, value)
        assert.deepStrictEqual(record.context, value)
        assert.deepStrictEqual(yield* readyIds(), [id])
        const { jobs: [job] } = yield* store.intake(owner, everything())
        assert.deepStrictEqual([job?.payload, job?.context], [value, value])
      }))

    it.effect("payloads that are no objects are JSON all the same", () =>
      Effect.gen(function*() {
        const { get, stored } = yield* fresh
        for (const payload of [null, 0, "", false, [], {}]) {
          const { id } = yield* stored({ payload: JSON.stringify(payload) })
          assert.deepStrictEqual((yield* get(id)).payload, payload)
        }
      }))

    it.effect("an id that is stored already overwrites nothing", () =>
      Effect.gen(function*() {
        const { get, job, readyIds, store, submit } = yield* fresh
        const one = job()
        yield* submit(one)
        const other = job()
        const error = yield* Effect.flip(
          submit(other, { ...one, payload: "{\"name\":\"Eve\"}", tenant: tenantKey("eve") })
        )
        assert.strictEqual(error.reason, "Refused")
        assert.deepStrictEqual((yield* get(one.id)).payload, { name: "Ada" })
        assert.isTrue(Option.isNone(yield* store.find(other.id)))
        assert.deepStrictEqual(yield* readyIds(), [one.id])
      }))

    it.effect("a job due already is ready at once, one due in a millisecond is not", () =>
      Effect.gen(function*() {
        const { readyIds, stateOf, stored } = yield* fresh
        const now = yield* stored({ dueAt: t0 })
        const later = yield* stored({ dueAt: t0 + 1 })
        assert.deepStrictEqual(yield* readyIds(), [now.id])
        assert.strictEqual(yield* stateOf(now.id), "queued")
        assert.strictEqual(yield* stateOf(later.id), "scheduled")
      }))
  })

  describe("dedupe", () => {
    it.effect("fifty submissions of one key at the same time store one job, and all are told its id", () =>
      Effect.gen(function*() {
        const { job, readyIds, submit } = yield* fresh
        const answers = yield* Effect.all(times(50, () => submit(job({ dedupeKey: "one" }))), {
          concurrency: "unbounded"
        })
        const all = answers.flat()
        assert.strictEqual(new Set(all.map(({ id }) => id)).size, 1)
        assert.strictEqual(all.filter(({ isNew }) => isNew).length, 1)
        assert.deepStrictEqual(yield* readyIds(), [all[0]!.id])
      }))

    it.effect("batches with the same keys in opposite orders do not deadlock", () =>
      Effect.gen(function*() {
        const { job, readyIds, submit } = yield* fresh
        const keys = times(20, (index) => `k${index}`)
        const batches = times(20, (index) => index % 2 === 0 ? keys : keys.toReversed())
        const answers = yield* Effect.all(
          batches.map((batch) => submit(...batch.map((dedupeKey) => job({ dedupeKey })))),
          { concurrency: "unbounded" }
        )
        assert.strictEqual(new Set(answers.flat().map(({ id }) => id)).size, 20)
        assert.strictEqual(answers.flat().filter(({ isNew }) => isNew).length, 20)
        assert.strictEqual((yield* readyIds()).length, 20)
      }))

    it.effect("a duplicate inside a batch collapses into the first", () =>
      Effect.gen(function*() {
        const { job, readyIds, store, submit } = yield* fresh
        const [first, other, second] = [job({ dedupeKey: "a" }), job(), job({ dedupeKey: "a" })]
        const answers = yield* submit(first, other, second)
        assert.deepStrictEqual(answers.map(({ id, isNew }) => ({ id, isNew })), [
          { id: first.id, isNew: true },
          { id: other.id, isNew: true },
          { id: first.id, isNew: false }
        ])
        assert.strictEqual(answers[2]?.seq, 0)
        assert.isTrue(Option.isNone(yield* store.find(second.id)))
        assert.deepStrictEqual(yield* readyIds(), [first.id, other.id])
      }))

    it.effect("a batch whose key is held stores the rest and answers the holder", () =>
      Effect.gen(function*() {
        const { job, stored, submit } = yield* fresh
        const holder = yield* stored({ dedupeKey: "a" })
        const other = job()
        const answers = yield* submit(job({ dedupeKey: "a" }), other, job({ dedupeKey: "a" }))
        assert.deepStrictEqual(answers.map(({ id, isNew }) => ({ id, isNew })), [
          { id: holder.id, isNew: false },
          { id: other.id, isNew: true },
          { id: holder.id, isNew: false }
        ])
      }))

    it.effect("a key is held while the job waits for its retry, and free once it has ended", () =>
      Effect.gen(function*() {
        const { job, owner, settle, stored, submit } = yield* fresh
        const one = yield* stored({ dedupeKey: "a" })
        yield* settle(owner, retry(one))
        assert.deepStrictEqual(yield* submit(job({ dedupeKey: "a" })), [{ id: one.id, isNew: false, seq: 0 }])
        yield* settle(owner, finish({ id: one.id, version: 1 }))
        const [two] = yield* submit(job({ dedupeKey: "a" }))
        assert.isTrue(two!.isNew)
        yield* settle(owner, bury({ id: two!.id, version: 0 }))
        assert.isTrue((yield* submit(job({ dedupeKey: "a" })))[0]!.isNew)
      }))

    it.effect("the same key of another tenant, of the system or in another queue is another key", () =>
      Effect.gen(function*() {
        const { job, submit } = yield* fresh
        const other = yield* fresh
        const answers = yield* submit(
          job({ dedupeKey: "a", tenant: tenantKey("acme") }),
          job({ dedupeKey: "a", tenant: tenantKey("zeta") }),
          job({ dedupeKey: "a", tenant: tenantKey("") }),
          job({ dedupeKey: "a", tenant: tenantKey(undefined) }),
          other.job({ dedupeKey: "a" })
        )
        assert.deepStrictEqual(answers.map(({ isNew }) => isNew), [true, true, true, true, true])
      }))

    it.effect("a key is one key across the partitions of its queue", () =>
      Effect.gen(function*() {
        const { job, submit } = yield* fresh
        const answers = yield* submit(job({ dedupeKey: "a" }), job({ dedupeKey: "a", partition: 1 }))
        assert.deepStrictEqual(answers.map(({ isNew }) => isNew), [true, false])
      }))
  })
}

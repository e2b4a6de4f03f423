/**
 * How attempts end and jobs become due: one outcome each, fenced by the version read.
 */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { tenantKey } from "../../../src/JobStore.ts"
import {
  attempted,
  bury,
  everything,
  failure,
  finish,
  fresh,
  newId,
  noted,
  putBack,
  retry,
  sorted,
  t0,
  times
} from "../storeFixture.ts"
import type { Suite } from "./suite.ts"

export const settle = (it: Suite): void => {
  describe("settle", () => {
    it.effect("ids that were settled come back, others do not", () =>
      Effect.gen(function*() {
        const { owner, settle, stateOf, stored } = yield* fresh
        const [done, again, waits, dead, stale] = [
          yield* stored(),
          yield* stored(),
          yield* stored(),
          yield* stored(),
          yield* stored()
        ]
        const settled = yield* settle(
          owner,
          finish(done),
          retry(again),
          putBack(waits),
          bury(dead),
          finish({ id: stale.id, version: 7 }),
          finish({ id: newId(), version: 0 })
        )
        assert.deepStrictEqual(sorted(settled), sorted([done.id, again.id, waits.id, dead.id]))
        assert.deepStrictEqual(
          yield* Effect.all([done, again, waits, dead, stale].map(({ id }) => stateOf(id))),
          ["completed", "retrying", "scheduled", "failed", "queued"]
        )
        assert.deepStrictEqual(yield* settle(owner), [])
      }))

    it.effect("a job that is put back goes behind the others; one that is retried keeps its place", () =>
      Effect.gen(function*() {
        const { owner, settle, store, stored } = yield* fresh
        const back = yield* stored()
        const again = yield* stored()
        const other = yield* stored()
        yield* settle(owner, putBack(back), retry(again))
        yield* store.promote(owner, t0 + 3_600_000, 10)
        const { jobs } = yield* store.intake(owner, everything())
        assert.deepStrictEqual(jobs.map(({ id }) => id), [again.id, other.id, back.id])
      }))

    it.effect("a stale version settles nothing, in no way", () =>
      Effect.gen(function*() {
        const { get, owner, settle, store, stored } = yield* fresh
        const one = yield* stored()
        yield* settle(owner, putBack(one))
        const before = yield* get(one.id)
        for (const late of [finish(one), retry(one), putBack(one), bury(one)]) {
          assert.deepStrictEqual(yield* settle(owner, late), [])
        }
        assert.isTrue(Option.isNone(yield* store.refence(owner, one.id, one.version)))
        assert.deepStrictEqual(yield* get(one.id), before)
      }))

    it.effect("two settlements of one attempt at the same time have one outcome", () =>
      Effect.gen(function*() {
        const { get, owner, settle, stored } = yield* fresh
        for (const _ of times(10, (index) => index)) {
          const one = yield* stored()
          const outcomes = yield* Effect.all(
            [
              settle(owner, finish(one)),
              settle(owner, retry(one)),
              settle(owner, bury(one)),
              settle(owner, putBack(one))
            ],
            { concurrency: "unbounded" }
          )
          assert.deepStrictEqual(outcomes.flat(), [one.id])
          assert.strictEqual((yield* get(one.id)).history.length, 1)
        }
      }))

    it.effect("a completed job keeps its result, its attempt, its history and its payload", () =>
      Effect.gen(function*() {
        const { get, owner, settle, store, stored } = yield* fresh
        const one = yield* stored({ dedupeKey: "a" })
        yield* settle(owner, finish(one, { result: "{\"lines\":3,\"nul\":\"\\u0000\"}" }))
        const record = yield* get(one.id)
        assert.strictEqual(record.state, "completed")
        assert.deepStrictEqual(record.result, { lines: 3, nul: "\u0000" })
        assert.deepStrictEqual(record.payload, { name: "Ada" })
        assert.strictEqual(record.attempt, 1)
        assert.strictEqual(record.endedAt, t0)
        assert.deepStrictEqual(record.history, [attempted(1, "completed")])
        assert.strictEqual(record.failure, undefined)
        assert.deepStrictEqual(yield* store.reread([one.id]), [])
      }))

    it.effect("a job that expired or was discarded has used no attempt", () =>
      Effect.gen(function*() {
        const { get, owner, settle, stored } = yield* fresh
        for (const outcome of ["expired", "cancelled"] as const) {
          const one = yield* stored()
          yield* settle(owner, finish(one, { outcome, result: undefined, entry: noted(outcome) }))
          const record = yield* get(one.id)
          assert.strictEqual(record.state, outcome)
          assert.strictEqual(record.attempt, 0)
          assert.deepStrictEqual(record.history, [noted(outcome)])
        }
      }))

    it.effect("a retry raises the version, counts the attempt and waits for its time", () =>
      Effect.gen(function*() {
        const { get, owner, readyIds, settle, store, stored } = yield* fresh
        const one = yield* stored()
        yield* settle(owner, retry(one, { dueAt: t0 + 1000 }))
        const record = yield* get(one.id)
        assert.strictEqual(record.state, "retrying")
        assert.deepStrictEqual([record.version, record.attempt, record.dueAt], [1, 1, t0 + 1000])
        assert.deepStrictEqual(record.history, [attempted(1, "retried")])
        assert.deepStrictEqual(yield* readyIds(), [])
        assert.deepStrictEqual(yield* store.promote(owner, t0 + 999, 10), [])
        yield* store.promote(owner, t0 + 1000, 10)
        const { jobs: [again] } = yield* store.intake(owner, everything())
        assert.deepStrictEqual([again?.id, again?.version, again?.attempt, again?.seq], [one.id, 2, 1, one.seq])
      }))

    it.effect("putting back burns no attempt, but the old version is dead", () =>
      Effect.gen(function*() {
        const { get, owner, settle, stored } = yield* fresh
        const one = yield* stored()
        yield* settle(owner, putBack(one, { dueAt: t0 + 10 }))
        const record = yield* get(one.id)
        assert.deepStrictEqual([record.state, record.version, record.attempt, record.dueAt], [
          "scheduled",
          1,
          0,
          t0 + 10
        ])
        assert.deepStrictEqual(record.history, [attempted(1, "put back")])
      }))

    it.effect("one bad row of many is refused, and nothing is settled half", () =>
      Effect.gen(function*() {
        const { owner, settle, stateOf, store, stored } = yield* fresh
        const [good, bad] = [yield* stored(), yield* stored()]
        const error = yield* Effect.flip(store.settle(owner, [finish(good), finish(bad, { result: "{no" })], t0))
        assert.strictEqual(error.reason, "Refused")
        assert.deepStrictEqual([yield* stateOf(good.id), yield* stateOf(bad.id)], ["queued", "queued"])
        assert.deepStrictEqual(yield* settle(owner, finish(good)), [good.id])
      }))

    it.effect("a failure whose text no jsonb takes (NUL, half an emoji) cannot wedge its job", () =>
      Effect.gen(function*() {
        const { get, owner, settle, stored } = yield* fresh
        for (const message of ["a\u0000b", "cut off \ud83d", "\udc00 begins"]) {
          const nasty = { ...failure, tag: message, message, stack: message, error: { message } }
          const one = yield* stored()
          const entry = { ...attempted(1, "retried"), failure: nasty }
          assert.deepStrictEqual(yield* settle(owner, retry(one, { entry })), [one.id])
          const last = { ...attempted(2, "dead-lettered"), failure: nasty }
          assert.deepStrictEqual(
            yield* settle(owner, bury({ id: one.id, version: 1 }, { entry: last, failure: nasty })),
            [one.id]
          )
          const record = yield* get(one.id)
          assert.strictEqual(record.state, "failed")
          assert.strictEqual(record.history.length, 2)
        }
      }))

    it.effect("history keeps the first and the last twenty entries, also of a job that ends or is replayed", () =>
      Effect.gen(function*() {
        const { get, owner, settle, store, stored } = yield* fresh
        const one = yield* stored()
        for (const n of times(45, (index) => index + 1)) {
          yield* settle(owner, retry({ id: one.id, version: n - 1 }, { entry: attempted(n, "retried") }))
        }
        const numbers = Effect.map(
          get(one.id),
          ({ history }) => history.map((entry) => entry.kind === "attempt" ? entry.attempt : 0)
        )
        const first = times(20, (index) => index + 1)
        assert.deepStrictEqual(yield* numbers, [...first, ...times(20, (index) => index + 26)])
        yield* settle(owner, bury({ id: one.id, version: 45 }, { entry: attempted(46, "dead-lettered") }))
        assert.deepStrictEqual(yield* numbers, [...first, ...times(20, (index) => index + 27)])
        yield* store.replay(one.id, tenantKey("acme"), noted("replayed"))
        assert.deepStrictEqual(yield* numbers, [...first, ...times(19, (index) => index + 28), 0])
        assert.isTrue(Option.isSome(yield* store.find(one.id)))
      }))
  })

  describe("transact and refence", () => {
    it.effect("a handler that sends no statement has committed nothing: the settlement is pending", () =>
      Effect.gen(function*() {
        const { owner, stateOf, store, stored } = yield* fresh
        const one = yield* stored()
        const settlement = finish(one)
        const ended = yield* store.transact(owner, Effect.succeed(42), (value) => {
          assert.strictEqual(value, 42)
          return Effect.succeed({ settlement, now: t0 })
        })
        assert.deepStrictEqual(ended, { _tag: "Pending", settlement })
        assert.strictEqual(yield* stateOf(one.id), "queued")
      }))

    it.effect("a handler's failure is the caller's, and the job stays as it was", () =>
      Effect.gen(function*() {
        const { owner, stateOf, store, stored } = yield* fresh
        const one = yield* stored()
        const failed = yield* Effect.flip(
          store.transact(
            owner,
            Effect.fail("boom" as const),
            () => Effect.succeed({ settlement: finish(one), now: t0 })
          )
        )
        assert.strictEqual(failed, "boom")
        assert.strictEqual(yield* stateOf(one.id), "queued")
      }))

    it.effect("after a refence the old attempt can never settle", () =>
      Effect.gen(function*() {
        const { owner, settle, store, stored } = yield* fresh
        const one = yield* stored()
        assert.deepStrictEqual(yield* store.refence(owner, one.id, 0), Option.some(1))
        assert.deepStrictEqual(yield* settle(owner, finish(one)), [])
        assert.isTrue(Option.isNone(yield* store.refence(owner, one.id, 0)))
        assert.deepStrictEqual(yield* settle(owner, finish({ id: one.id, version: 1 })), [one.id])
        assert.isTrue(Option.isNone(yield* store.refence(owner, one.id, 1)))
      }))

    it.effect("reread tells what became of a row, and keeps silent on those that are gone", () =>
      Effect.gen(function*() {
        const { owner, settle, store, stored } = yield* fresh
        const [ready, retrying, later, gone] = [
          yield* stored({ lane: 0 }),
          yield* stored(),
          yield* stored({ dueAt: t0 + 1 }),
          yield* stored()
        ]
        yield* settle(owner, retry(retrying), finish(gone))
        const rows = yield* store.reread([ready, retrying, later, gone].map(({ id }) => id))
        const tenant = tenantKey("acme")
        assert.deepStrictEqual(
          [...rows].sort((a, b) => a.seq - b.seq),
          [
            { ...ready, state: "queued", lane: 0, tenant },
            { ...retrying, version: 1, state: "retrying", lane: 2, tenant },
            { ...later, state: "scheduled", lane: 2, tenant }
          ] as const
        )
      }))
  })

  describe("promote", () => {
    it.effect("what is due first becomes ready first, and no more than asked for", () =>
      Effect.gen(function*() {
        const { owner, queueId, readyIds, store, stored } = yield* fresh
        const [third, first, second] = [
          yield* stored({ dueAt: t0 + 30 }),
          yield* stored({ dueAt: t0 + 10, lane: 0 }),
          yield* stored({ dueAt: t0 + 20, tenant: tenantKey("zeta") })
        ]
        assert.deepStrictEqual(yield* store.nextDue(owner), Option.some(t0 + 10))
        const ready = yield* store.promote(owner, t0 + 25, 1)
        assert.deepStrictEqual(ready, [{ queueId, partition: 0, lane: 0, tenant: tenantKey("acme"), seq: first.seq }])
        assert.deepStrictEqual((yield* store.promote(owner, t0 + 25, 10)).map(({ seq }) => seq), [second.seq])
        assert.deepStrictEqual(yield* store.promote(owner, t0 + 25, 10), [])
        assert.deepStrictEqual(yield* store.nextDue(owner), Option.some(t0 + 30))
        yield* store.promote(owner, t0 + 30, 10)
        assert.isTrue(Option.isNone(yield* store.nextDue(owner)))
        assert.deepStrictEqual(sorted(yield* readyIds()), sorted([first.id, second.id, third.id]))
      }))

    it.effect("a job that became due has a new version and no due time", () =>
      Effect.gen(function*() {
        const { get, owner, store, stored } = yield* fresh
        const one = yield* stored({ dueAt: t0 + 10 })
        yield* store.promote(owner, t0 + 10, 10)
        const record = yield* get(one.id)
        assert.deepStrictEqual([record.state, record.version, record.dueAt], ["queued", 1, undefined])
      }))

    it.effect("one partition's timer does not wake the other's jobs", () =>
      Effect.gen(function*() {
        const { owner, store, stored } = yield* fresh
        yield* stored({ dueAt: t0 + 10, partition: 1 })
        assert.isTrue(Option.isNone(yield* store.nextDue(owner)))
        assert.deepStrictEqual(yield* store.promote(owner, t0 + 10, 10), [])
      }))
  })
}

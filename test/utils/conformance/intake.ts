/**
 * What an owner reads: each tenant in its turn, nothing twice, nothing kept out for ever.
 */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { inlinePayloadBytes, tenantKey } from "../../../src/JobStore.ts"
import { bury, everything, finish, fresh, oneLane, retry, sorted, t0, times } from "../storeFixture.ts"
import type { Suite } from "./suite.ts"

export const intake = (it: Suite): void => {
  describe("tenants", () => {
    it.effect("the tenant called \"\" is not the system", () =>
      Effect.gen(function*() {
        const { owner, store, stored } = yield* fresh
        const empty = yield* stored({ tenant: tenantKey("") })
        const system = yield* stored({ tenant: tenantKey(undefined) })
        const { jobs, visited } = yield* store.intake(owner, oneLane())
        assert.strictEqual(new Set(jobs.map(({ tenant }) => tenant)).size, 2)
        assert.strictEqual(visited.length, 2)
        assert.deepStrictEqual(sorted(jobs.map(({ id }) => id)), sorted([empty.id, system.id]))
      }))

    it.effect("tenants take turns in the order of code points, which is neither a language's nor UTF-16's", () =>
      Effect.gen(function*() {
        const { owner, store, stored } = yield* fresh
        const inOrder = ["", "A", "Z", "_", "a", "z", "~", "Ä", "é", "ж", "\ue000", "\uffee", "😀", "😀a", "😁"]
        for (const tenantId of inOrder.toReversed()) yield* stored({ tenant: tenantKey(tenantId) })
        const all = yield* store.intake(owner, oneLane())
        assert.deepStrictEqual(all.visited.map(({ tenant }) => tenant), inOrder.map(tenantKey))
        // The cursor means the same order.
        const rest = yield* store.intake(owner, oneLane({ after: tenantKey("\uffee") }))
        assert.deepStrictEqual(rest.visited.map(({ tenant }) => tenant), ["😀", "😀a", "😁"].map(tenantKey))
      }))
  })

  describe("intake", () => {
    it.effect("a large payload stays in the store until its job starts, and then comes only to the version that was read", () =>
      Effect.gen(function*() {
        const { owner, store, stored } = yield* fresh
        const text = "x".repeat(inlinePayloadBytes)
        const large = yield* stored({ payload: JSON.stringify({ text }) })
        const small = yield* stored({ payload: JSON.stringify({ text: "x" }) })
        const { jobs } = yield* store.intake(owner, oneLane())
        assert.deepStrictEqual(
          jobs.map(({ id, isLarge, payload }) => ({ id, isLarge, payload })),
          [{ id: large.id, isLarge: true, payload: null }, { id: small.id, isLarge: false, payload: { text: "x" } }]
        )
        assert.deepStrictEqual(yield* store.payload(large.id, 0), Option.some({ text }))
        assert.deepStrictEqual(yield* store.payload(large.id, 1), Option.none())
      }))

    it.effect("gives all that a run needs", () =>
      Effect.gen(function*() {
        const { job, owner, store, submit } = yield* fresh
        const one = job({ lane: 1, expiresAt: t0 + 60_000, context: "{\"userId\":\"ada\"}" })
        const [{ seq } = { seq: 0 }] = yield* submit(one)
        const { jobs, visited } = yield* store.intake(owner, everything())
        assert.deepStrictEqual(jobs, [{
          id: one.id,
          lane: 1,
          tenant: one.tenant,
          seq,
          version: 0,
          type: "Greet",
          attempt: 0,
          crashes: 0,
          reruns: 0,
          createdAt: t0,
          expiresAt: t0 + 60_000,
          isLarge: false,
          payload: { name: "Ada" },
          context: { userId: "ada" }
        }])
        assert.deepStrictEqual(visited, [{ lane: 1, tenant: one.tenant }])
      }))

    it.effect("writes nothing: what was read can be read again at the same version", () =>
      Effect.gen(function*() {
        const { owner, store, stored } = yield* fresh
        yield* stored()
        assert.deepStrictEqual(yield* store.intake(owner, everything()), yield* store.intake(owner, everything()))
      }))

    it.effect("a tenant with a million jobs does not keep the others out", () =>
      Effect.gen(function*() {
        const { job, owner, store, submit } = yield* fresh
        yield* submit(...times(100, () => job({ tenant: tenantKey("big") })))
        const small = times(3, () => job({ tenant: tenantKey("small") }))
        yield* submit(...small)
        const { jobs } = yield* store.intake(owner, oneLane({ perTenant: 2, room: 10 }))
        assert.deepStrictEqual(jobs.map(({ tenant }) => tenant), ["big", "big", "small", "small"].map(tenantKey))
        assert.deepStrictEqual(jobs.slice(2).map(({ id }) => id), small.slice(0, 2).map(({ id }) => id))
      }))

    it.effect("a lane full of work takes none of another lane's room", () =>
      Effect.gen(function*() {
        const { job, owner, store, submit } = yield* fresh
        yield* submit(...times(20, (index) => job({ lane: 3 - index % 4 })))
        const asked = [0, 1, 2, 3].map((lane) => ({ lane, after: "", tenants: 10, perTenant: 10, room: lane + 1 }))
        const { jobs } = yield* store.intake(owner, { lanes: asked, marks: [], held: [] })
        assert.deepStrictEqual(jobs.map(({ lane }) => lane), [0, 1, 1, 2, 2, 2, 3, 3, 3, 3])
        const low = yield* store.intake(owner, oneLane({ lane: 3 }))
        assert.deepStrictEqual([...new Set(low.jobs.map(({ lane }) => lane))], [3])
      }))

    it.effect("what the owner holds is not read twice: marks for what is below, held for what is above", () =>
      Effect.gen(function*() {
        const { job, owner, store, submit } = yield* fresh
        const tenant = tenantKey("acme")
        const rows = yield* submit(...times(5, () => job()))
        const seq = (index: number) => rows[index]!.seq
        const read = (marks: ReadonlyArray<number>, held: ReadonlyArray<number>) =>
          Effect.map(
            store.intake(owner, oneLane({}, { marks: marks.map((mark) => ({ lane: 2, tenant, seq: mark })), held })),
            ({ jobs }) => jobs.map((one) => rows.findIndex(({ id }) => id === one.id))
          )
        assert.deepStrictEqual(yield* read([seq(1)], []), [2, 3, 4])
        assert.deepStrictEqual(yield* read([seq(1)], [seq(3)]), [2, 4])
        assert.deepStrictEqual(yield* read([], [seq(0), seq(4)]), [1, 2, 3])
        // A mark is of one lane and one tenant.
        const elsewhere = [
          { lane: 1, tenant, seq: seq(4) },
          { lane: 2, tenant: tenantKey("zeta"), seq: seq(4) }
        ]
        assert.strictEqual((yield* store.intake(owner, oneLane({}, { marks: elsewhere }))).jobs.length, 5)
      }))

    it.effect("a job that became visible late, below the mark, is found once the mark is lowered", () =>
      Effect.gen(function*() {
        const { job, owner, settle, store, submit } = yield* fresh
        const rows = yield* submit(...times(3, () => job()))
        const [late, ...held] = rows
        // The first one goes away and comes back under its old seq, as a retried job does.
        yield* settle(owner, retry({ id: late!.id, version: 0 }))
        const mark = { lane: 2, tenant: tenantKey("acme"), seq: rows[2]!.seq }
        const [ready] = yield* store.promote(owner, t0 + 1000, 10)
        assert.strictEqual(ready?.seq, late!.seq)
        assert.deepStrictEqual((yield* store.intake(owner, oneLane({}, { marks: [mark] }))).jobs, [])
        const lowered = { ...mark, seq: ready!.seq - 1 }
        const found = yield* store.intake(owner, oneLane({}, { marks: [lowered], held: held.map(({ seq }) => seq) }))
        assert.deepStrictEqual(found.jobs.map(({ id }) => id), [late!.id])
      }))

    it.effect("a cursor goes on after its tenant", () =>
      Effect.gen(function*() {
        const { job, owner, store, submit } = yield* fresh
        yield* submit(...["a", "b", "c", "d"].map((tenant) => job({ tenant: tenantKey(tenant) })))
        const visit = (after: string) =>
          Effect.map(store.intake(owner, oneLane({ after, tenants: 3 })), ({ visited }) =>
            visited.map(({ tenant }) => tenant))
        assert.deepStrictEqual(yield* visit(""), ["a", "b", "c"].map(tenantKey))
        assert.deepStrictEqual(yield* visit(tenantKey("c")), [tenantKey("d")])
        assert.deepStrictEqual(yield* visit(tenantKey("bb")), ["c", "d"].map(tenantKey))
        assert.deepStrictEqual(yield* visit(tenantKey("d")), [])
      }))

    it.effect("tenants whose ready rows are all held do not pin the cursor", () =>
      Effect.gen(function*() {
        const { job, owner, store, submit } = yield* fresh
        const rows = yield* submit(...["a", "b", "c", "d"].map((tenant) => job({ tenant: tenantKey(tenant) })))
        const held = rows.slice(0, 3).map(({ seq }) => seq)
        const first = yield* store.intake(owner, oneLane({ tenants: 2 }, { held }))
        assert.deepStrictEqual(first.jobs, [])
        assert.deepStrictEqual(first.visited.map(({ tenant }) => tenant), ["a", "b"].map(tenantKey))
        const second = yield* store.intake(owner, oneLane({ tenants: 2, after: tenantKey("b") }, { held }))
        assert.deepStrictEqual(second.jobs.map(({ id }) => id), [rows[3]!.id])
      }))

    it.effect("a tenant with nothing new takes one row of the room", () =>
      Effect.gen(function*() {
        const { job, owner, store, submit } = yield* fresh
        const rows = yield* submit(...["a", "b", "c"].map((tenant) => job({ tenant: tenantKey(tenant) })))
        const { jobs, visited } = yield* store.intake(owner, oneLane({ room: 2 }, { held: [rows[0]!.seq] }))
        assert.deepStrictEqual(jobs.map(({ id }) => id), [rows[1]!.id])
        assert.deepStrictEqual(visited.map(({ tenant }) => tenant), ["a", "b"].map(tenantKey))
      }))

    it.effect("scheduled, retrying and ended jobs and those of other partitions are not read", () =>
      Effect.gen(function*() {
        const { job, owner, readyIds, settle, stored, submit, takeOver } = yield* fresh
        yield* stored({ dueAt: t0 + 1 })
        yield* settle(owner, retry(yield* stored()))
        yield* settle(owner, finish(yield* stored()))
        yield* settle(owner, bury(yield* stored()))
        const [other] = yield* submit(job({ partition: 1 }))
        assert.deepStrictEqual(yield* readyIds(), [])
        assert.deepStrictEqual(yield* readyIds(yield* takeOver(1)), [other!.id])
      }))
  })
}

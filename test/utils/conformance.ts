/**
 * What every job store promises, as hazards. One suite, run on each implementation of the port: see JobStore.test.ts.
 */
import { assert, describe, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import { type JobStore, type Ready, tenantKey } from "../../src/JobStore.ts"
import {
  attempted,
  bury,
  day,
  everything,
  failure,
  finish,
  fresh,
  newBatch,
  newId,
  note,
  noted,
  oneLane,
  putBack,
  retry,
  t0
} from "./storeFixture.ts"

const times = <A>(count: number, make: (index: number) => A): Array<A> =>
  Array.from({ length: count }, (_, index) => make(index))
const sorted = (ids: Iterable<string>) => [...ids].sort()

/** Runs the suite against a store. Tests share the layer, never a queue. */
export const conformance = (name: string, store: Layer.Layer<JobStore, unknown>): void =>
  layer(store, { excludeTestServices: true, timeout: "60 seconds" })(`JobStore: ${name}`, (it) => {
    describe("queues", () => {
      it.effect("two versions of the code cannot disagree on the partitions of a queue: the first count wins", () =>
        Effect.gen(function*() {
          const { store } = yield* fresh
          const called = `test-${newId()}`
          const [first, ...others] = yield* Effect.all(times(10, (index) => store.declareQueue(called, index + 1)))
          for (const other of others) assert.deepStrictEqual(other, first)
          assert.strictEqual(first?.partitions, 1)
          const all = yield* store.queues
          assert.deepStrictEqual(all.filter((queue) => queue.name === called), [first])
        }))
    })

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
            dedupeKey: "a",
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
            createdAt: t0,
            expiresAt: t0 + 60_000,
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

      it.effect("a superseded owner reads nothing, settles nothing, promotes nothing, notes nothing, hands over nothing", () =>
        Effect.gen(function*() {
          const { get, owner, readyIds, settle, store, stored, takeOver } = yield* fresh
          const one = yield* stored()
          const two = yield* stored()
          const later = yield* stored({ dueAt: t0 + 1 })
          const before = yield* Effect.all([one, two, later].map(({ id }) => get(id)))
          const successor = yield* takeOver()

          assert.deepStrictEqual(yield* store.intake(owner, everything()), { jobs: [], visited: [] })
          assert.deepStrictEqual(yield* settle(owner, finish(one)), [])
          assert.deepStrictEqual(yield* settle(owner, retry(one)), [])
          assert.deepStrictEqual(yield* settle(owner, putBack(one)), [])
          assert.deepStrictEqual(yield* settle(owner, bury(one)), [])
          assert.deepStrictEqual(yield* store.promote(owner, t0 + 10, 10), [])
          assert.deepStrictEqual(yield* store.noteRunning(owner, [note(one)], t0), [])
          assert.isTrue(Option.isNone(yield* store.refence(owner, one.id, 0)))
          assert.isFalse(yield* store.handOver(owner))
          assert.deepStrictEqual(yield* store.countCrashes(owner, []), { counted: [], busy: [] })
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
            store.transact(owner, Effect.fail("boom" as const), () =>
              Effect.succeed({ settlement: finish(one), now: t0 }))
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

    describe("crashes", () => {
      it.effect("a run that died with its owner is counted once", () =>
        Effect.gen(function*() {
          const { get, owner, settle, store, stored, takeOver } = yield* fresh
          const one = yield* stored()
          const idle = yield* stored()
          assert.deepStrictEqual(yield* store.noteRunning(owner, [note(one)], t0), [one.id])
          const second = yield* takeOver()
          assert.deepStrictEqual(yield* store.countCrashes(second, []), {
            counted: [{ id: one.id, version: 1, crashes: 1, attempt: 0 }],
            busy: []
          })
          assert.deepStrictEqual(yield* store.countCrashes(second, []), { counted: [], busy: [] })
          const third = yield* takeOver()
          assert.deepStrictEqual(yield* store.countCrashes(third, []), { counted: [], busy: [] })
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
          assert.deepStrictEqual(yield* store.countCrashes(second, []), { counted: [], busy: [] })

          yield* store.noteRunning(second, [note(forgotten)], t0)
          assert.isTrue(yield* store.handOver(second))
          assert.deepStrictEqual(yield* store.countCrashes(yield* takeOver(), []), { counted: [], busy: [] })
        }))

      it.effect("what the new owner has in hand is never counted: its version must not move", () =>
        Effect.gen(function*() {
          const { owner, settle, store, stored, takeOver } = yield* fresh
          const one = yield* stored()
          yield* store.noteRunning(owner, [note(one)], t0)
          const second = yield* takeOver()
          assert.deepStrictEqual(yield* store.countCrashes(second, [one.id]), { counted: [], busy: [] })
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
          assert.deepStrictEqual(yield* store.countCrashes(second, []), { counted: [], busy: [] })
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

    describe("cancel", () => {
      const cancelled = { entry: noted("cancelled"), now: t0 + 5, purgeAt: t0 + day }

      it.effect("a waiting job can be cancelled by anyone, once", () =>
        Effect.gen(function*() {
          const { get, owner, settle, store, stored } = yield* fresh
          const later = yield* stored({ dueAt: t0 + 10 })
          const retrying = yield* stored()
          yield* settle(owner, retry(retrying))
          for (const one of [later, { ...retrying, version: 1 }]) {
            const options = { ...cancelled, id: one.id, version: one.version, owner: undefined }
            const answers = yield* Effect.all(times(5, () => store.cancel(options)), { concurrency: "unbounded" })
            assert.strictEqual(answers.filter((answer) => answer).length, 1)
            const record = yield* get(one.id)
            assert.strictEqual(record.state, "cancelled")
            assert.strictEqual(record.endedAt, t0 + 5)
            assert.deepStrictEqual(record.history.at(-1), noted("cancelled"))
          }
          assert.strictEqual((yield* get(retrying.id)).attempt, 1)
          assert.deepStrictEqual(yield* store.promote(owner, t0 + 10_000, 10), [])
        }))

      it.effect("a ready job may be running: only its owner can cancel it", () =>
        Effect.gen(function*() {
          const { owner, readyIds, stateOf, store, stored } = yield* fresh
          const one = yield* stored()
          const by = { ...cancelled, id: one.id, version: 0 }
          assert.isFalse(yield* store.cancel({ ...by, owner: undefined }))
          assert.strictEqual(yield* stateOf(one.id), "queued")
          assert.isTrue(yield* store.cancel({ ...by, owner }))
          assert.strictEqual(yield* stateOf(one.id), "cancelled")
          assert.deepStrictEqual(yield* readyIds(), [])
        }))

      it.effect("a job that has moved since it was read is not cancelled", () =>
        Effect.gen(function*() {
          const { owner, stateOf, store, stored } = yield* fresh
          const one = yield* stored({ dueAt: t0 + 10 })
          yield* store.promote(owner, t0 + 10, 10)
          assert.isFalse(yield* store.cancel({ ...cancelled, id: one.id, version: 0, owner }))
          assert.strictEqual(yield* stateOf(one.id), "queued")
          assert.isFalse(yield* store.cancel({ ...cancelled, id: newId(), version: 0, owner }))
        }))

      it.effect("a cancelled job's dedupe key is free", () =>
        Effect.gen(function*() {
          const { job, store, stored, submit } = yield* fresh
          const one = yield* stored({ dueAt: t0 + 10, dedupeKey: "a" })
          yield* store.cancel({ ...cancelled, id: one.id, version: 0, owner: undefined })
          assert.isTrue((yield* submit(job({ dedupeKey: "a" })))[0]!.isNew)
        }))
    })

    describe("dead letters", () => {
      const acme = tenantKey("acme")
      const again = noted("replayed")

      it.effect("a dead letter keeps everything needed to understand and to replay it", () =>
        Effect.gen(function*() {
          const { get, owner, settle, store, stored } = yield* fresh
          const one = yield* stored({ lane: 1, dedupeKey: "a", context: "{\"userId\":\"ada\"}" })
          yield* settle(owner, retry(one))
          yield* settle(owner, bury({ id: one.id, version: 1 }, { entry: attempted(2, "dead-lettered") }))
          const record = yield* get(one.id)
          assert.strictEqual(record.state, "failed")
          assert.deepStrictEqual(record.failure, failure)
          assert.deepStrictEqual(record.payload, { name: "Ada" })
          assert.deepStrictEqual(record.context, { userId: "ada" })
          assert.deepStrictEqual(
            [record.lane, record.attempt, record.dedupeKey, record.endedAt, record.dueAt],
            [1, 2, "a", t0, undefined]
          )
          assert.deepStrictEqual(record.history, [attempted(1, "retried"), attempted(2, "dead-lettered")])
          assert.deepStrictEqual(yield* store.reread([one.id]), [])
        }))

      it.effect("a job that never found a handler has used no attempt", () =>
        Effect.gen(function*() {
          const { get, owner, settle, stored } = yield* fresh
          const one = yield* stored()
          yield* settle(owner, bury(one, { isAttempt: false, entry: noted("dead-lettered") }))
          assert.strictEqual((yield* get(one.id)).attempt, 0)
        }))

      it.effect("replay keeps id and history, starts attempts afresh, and no old attempt can touch the job", () =>
        Effect.gen(function*() {
          const { get, job, owner, queueId, settle, store, stored, submit } = yield* fresh
          const one = yield* stored({ lane: 1, expiresAt: t0 + 1, dedupeKey: "a" })
          yield* settle(owner, retry(one))
          yield* settle(owner, bury({ id: one.id, version: 1 }))
          const [later] = yield* submit(job({ lane: 1 }))

          const answer = yield* store.replay(one.id, acme, again)
          assert.isTrue(answer !== "taken" && Option.isSome(answer))
          const ready: Ready = answer === "taken" ? assert.fail("taken") : Option.getOrThrow(answer)
          assert.deepStrictEqual({ ...ready, seq: 0 }, { queueId, partition: 0, lane: 1, tenant: acme, seq: 0 })
          assert.isAbove(ready.seq, later!.seq)

          const record = yield* get(one.id)
          assert.strictEqual(record.state, "queued")
          assert.strictEqual(record.createdAt, t0)
          assert.deepStrictEqual([record.attempt, record.crashes, record.failure, record.endedAt], [
            0,
            0,
            undefined,
            undefined
          ])
          assert.deepStrictEqual(record.history, [attempted(1, "retried"), attempted(1, "dead-lettered"), again])
          assert.isAbove(record.version, 1)
          for (const version of [0, 1]) {
            assert.deepStrictEqual(yield* settle(owner, finish({ id: one.id, version })), [])
          }
          const { jobs } = yield* store.intake(owner, everything())
          assert.deepStrictEqual(jobs.map(({ id }) => id), [later!.id, one.id])
          // It has been waiting past its time already: it would expire at once.
          assert.strictEqual(jobs[1]?.expiresAt, undefined)
        }))

      it.effect("two replays at the same time put it back once", () =>
        Effect.gen(function*() {
          const { owner, readyIds, settle, store, stored } = yield* fresh
          const one = yield* stored()
          yield* settle(owner, bury(one))
          const answers = yield* Effect.all(times(10, () => store.replay(one.id, acme, again)), {
            concurrency: "unbounded"
          })
          assert.strictEqual(answers.filter((answer) => answer !== "taken" && Option.isSome(answer)).length, 1)
          assert.deepStrictEqual(yield* readyIds(), [one.id])
        }))

      it.effect("a live job that holds the key keeps the dead letter where it is", () =>
        Effect.gen(function*() {
          const { get, owner, settle, store, stored } = yield* fresh
          const one = yield* stored({ dedupeKey: "a" })
          yield* settle(owner, bury(one))
          const holder = yield* stored({ dedupeKey: "a" })
          assert.strictEqual(yield* store.replay(one.id, acme, again), "taken")
          const record = yield* get(one.id)
          assert.deepStrictEqual([record.state, record.history.length], ["failed", 1])
          yield* settle(owner, finish(holder))
          const answer = yield* store.replay(one.id, acme, again)
          assert.isTrue(answer !== "taken" && Option.isSome(answer))
        }))

      it.effect("another tenant cannot replay it, nor learn that its key is taken", () =>
        Effect.gen(function*() {
          const { owner, settle, stateOf, store, stored } = yield* fresh
          const one = yield* stored({ dedupeKey: "a" })
          yield* settle(owner, bury(one))
          yield* stored({ dedupeKey: "a" })
          for (const tenant of [tenantKey("zeta"), tenantKey(undefined), tenantKey("")]) {
            assert.deepStrictEqual(yield* store.replay(one.id, tenant, again), Option.none())
          }
          assert.strictEqual(yield* stateOf(one.id), "failed")
        }))

      it.effect("a job that is live, finished or unknown is no dead letter", () =>
        Effect.gen(function*() {
          const { owner, settle, store, stored } = yield* fresh
          const [live, done] = [yield* stored(), yield* stored()]
          yield* settle(owner, finish(done))
          for (const id of [live.id, done.id, newId()]) {
            assert.deepStrictEqual(yield* store.replay(id, acme, again), Option.none())
          }
        }))
    })

    describe("announcements", () => {
      it.effect("every listener hears of ready rows, also of more than fit into one message", () =>
        Effect.gen(function*() {
          const { queueId, store } = yield* fresh
          const ready = times(300, (index): Ready => ({
            queueId,
            partition: 0,
            lane: index % 4,
            tenant: tenantKey(`tenant-${index}-${"x".repeat(40)}`),
            seq: index + 1
          }))
          const listeners = yield* Effect.all([store.announcements, store.announcements])
          const hears = yield* Effect.forkChild(Effect.all(
            listeners.map((listener) =>
              Effect.gen(function*() {
                const heard = new Map<string, Ready>()
                while (heard.size < ready.length) {
                  for (const one of yield* Queue.take(listener)) if (one.queueId === queueId) heard.set(one.tenant, one)
                }
                return ready.map(({ tenant }) => heard.get(tenant))
              })
            ),
            { concurrency: "unbounded" }
          ))
          yield* store.announce([])
          yield* store.announce(ready)
          const heard = yield* Effect.timeout(Fiber.join(hears), "10 seconds")
          assert.deepStrictEqual(heard, [ready, ready])
        }).pipe(Effect.scoped))

      it.effect("what is to be done after the commit is done at once where there is no transaction", () =>
        Effect.gen(function*() {
          const { store } = yield* fresh
          let isDone = false
          yield* store.afterCommit(Effect.sync(() => {
            isDone = true
          }))
          assert.isTrue(isDone)
        }))
    })

    describe("depth and purge", () => {
      it.effect("depth counts ready rows by lane, and no further than asked", () =>
        Effect.gen(function*() {
          const { job, owner, queueId, settle, store, stored, submit } = yield* fresh
          yield* submit(...times(5, () => job()), job({ lane: 0 }), job({ lane: 3, partition: 1 }))
          yield* stored({ dueAt: t0 + 1 })
          yield* settle(owner, retry(yield* stored()))
          assert.deepStrictEqual(yield* store.depth({ queueId, partition: 0 }, 100), [1, 0, 5, 0])
          assert.deepStrictEqual(yield* store.depth({ queueId, partition: 0 }, 3), [1, 0, 3, 0])
          assert.deepStrictEqual(yield* store.depth({ queueId, partition: 1 }, 3), [0, 0, 0, 1])
        }))

      it.effect("purge drops what may go and nothing else", () =>
        Effect.gen(function*() {
          const { owner, settle, stateOf, store, stored } = yield* fresh
          // Long before every other test's rows, which must survive.
          const today = Date.UTC(2020, 5, 15, 23, 59)
          const purgeAll = Effect.gen(function*() {
            while ((yield* store.purge(today)) > 0) { /* bounded steps */ }
          })
          const [due, dueToday, tomorrow, dead, live] = [
            yield* stored(),
            yield* stored(),
            yield* stored(),
            yield* stored(),
            yield* stored()
          ]
          yield* settle(
            owner,
            finish(due, { purgeAt: today - 10 * day }),
            finish(dueToday, { purgeAt: Date.UTC(2020, 5, 15) }),
            finish(tomorrow, { purgeAt: Date.UTC(2020, 5, 16) }),
            bury(dead)
          )
          yield* purgeAll
          assert.deepStrictEqual(
            yield* Effect.all([due, dueToday, tomorrow, dead, live].map(({ id }) => stateOf(id))),
            [undefined, undefined, "completed", "failed", "queued"]
          )
          yield* purgeAll
          // The days that were dropped can come back: a slow clock or a short retention.
          const late = yield* stored()
          assert.deepStrictEqual(yield* settle(owner, finish(late, { purgeAt: today - 10 * day })), [late.id])
        }))
    })
  })

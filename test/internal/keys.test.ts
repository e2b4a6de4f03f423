/**
 * The lines of an ordered queue, on the model of the store: whatever happens, one job of a key is in hand at a time, and the next is found
 * without any sweep.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Held from "../../src/internal/held.ts"
import * as Keys from "../../src/internal/keys.ts"
import { type ReadyJob, type Settlement, tenantKey } from "../../src/JobStore.ts"
import * as MemoryJobStore from "../../src/MemoryJobStore.ts"
import { lanes } from "../../src/Priority.ts"
import { bury, finish, fresh, newId, noted, putBack, retry, t0 } from "../utils/storeFixture.ts"

const Small = Schema.Literals([0, 1, 2, 3])

const Command = Schema.Union([
  Schema.TaggedStruct("Submit", { key: Small, lane: Small, isLater: Schema.Boolean }),
  Schema.TaggedStruct("Intake", {}),
  Schema.TaggedStruct("Heads", {}),
  Schema.TaggedStruct("End", { which: Small, how: Schema.Literals(["finish", "retry", "bury", "putBack", "release"]) }),
  Schema.TaggedStruct("Promote", {}),
  Schema.TaggedStruct("Replay", {})
])

const Commands = Schema.Array(Command).check(Schema.isMinLength(40), Schema.isMaxLength(60))

/** An owner with little room, whose every step is the test's. */
const makeOwner = Effect.gen(function*() {
  const { owner, settle, store, stored } = yield* fresh
  const held = Held.make(lanes.length)
  const keys = Keys.make(() => {})
  const inHand = new Map<string, ReadyJob>()
  const dead: Array<ReadyJob["id"]> = []
  let now = t0

  const take = (job: ReadyJob) => {
    const sameKey = [...inHand.values()].filter((other) => other.standing?.key === job.standing?.key)
    assert.deepStrictEqual(sameKey, [], "two jobs of one key in hand")
    inHand.set(job.id, job)
  }

  const intake = Effect.gen(function*() {
    while (true) {
      const demand = held.demand(lanes.map(() => 3))
      if (demand === undefined) return
      const answer = yield* store.intake(owner, { ...demand, isOrdered: true })
      held.took(demand, answer, (job) => keys.admit(job)).forEach(take)
    }
  })

  const heads = Effect.gen(function*() {
    while (true) {
      const lines = keys.due()
      if (lines.length === 0) return
      const { jobs } = yield* store.heads(owner, lines)
      for (const job of jobs) {
        if (held.has(job.id) || !keys.admit(job, true)) continue
        held.admit(job)
        take(job)
      }
    }
  })

  const release = (job: ReadyJob, isReady: boolean) => {
    inHand.delete(job.id)
    held.release(job, isReady)
    keys.leave(job, isReady)
  }

  const end = (job: ReadyJob, settlement: Settlement) =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* settle(owner, settlement), [job.id])
      if (settlement._tag === "DeadLetter") dead.push(job.id)
      release(job, false)
    })

  const promote = Effect.gen(function*() {
    now += 60_000
    for (const ready of yield* store.promote(owner, now, 100)) {
      if (ready.key === undefined) held.told(ready)
      else keys.look({ tenant: ready.tenant, key: ready.key })
    }
  })

  return { dead, end, heads, inHand, intake, held, keys, now: () => now, owner, promote, release, store, stored }
})

const head: ReadyJob = {
  id: newId(),
  lane: 0,
  tenant: "@acme",
  seq: 1,
  version: 0,
  type: "T",
  attempt: 0,
  crashes: 0,
  reruns: 0,
  createdAt: t0,
  expiresAt: undefined,
  isLarge: false,
  payload: null,
  context: null,
  standing: { key: "k", isHead: true }
}

describe("lines", () => {
  it("that are told of while nothing can be read take no more room than is good, however many they are", () => {
    const keys = Keys.make(() => {})
    for (let n = 0; n < 2 * Keys.mostDue; n++) keys.look({ tenant: tenantKey("acme"), key: `k${n}` })
    const found = new Set<string>()
    for (let lines = keys.due(); lines.length > 0; lines = keys.due()) for (const { key } of lines) found.add(key)
    assert.strictEqual(found.size, Keys.mostDue)
  })

  it.effect.prop(
    "one job of a key is in hand at a time, and everything runs in the end, though nothing is ever read twice to make sure",
    [Commands],
    ([commands]) =>
      Effect.gen(function*() {
        const { dead, end, heads, held, inHand, intake, keys, now, owner, promote, release, store, stored } =
          yield* makeOwner
        const pick = (which: number) => [...inHand.values()][which % Math.max(inHand.size, 1)]
        // Those join their line when they are due.
        const delayed = new Set<number>()
        for (const command of commands) {
          switch (command._tag) {
            case "Submit": {
              const { seq } = yield* stored({
                key: `k${command.key}`,
                place: 0,
                lane: command.lane,
                ...(command.isLater ? { dueAt: now() + 1000 } : {})
              })
              if (command.isLater) delayed.add(seq)
              else held.told({ queueId: 0, partition: 0, lane: command.lane, tenant: "@acme", seq })
              break
            }
            case "Intake":
              yield* intake
              break
            case "Heads":
              yield* heads
              break
            case "Promote":
              yield* promote
              break
            case "End": {
              const job = pick(command.which)
              if (job === undefined) break
              if (command.how === "release") release(job, true)
              else yield* end(job, { finish, retry, bury, putBack }[command.how](job))
              break
            }
            case "Replay": {
              const id = dead.pop()
              if (id === undefined) break
              const ready = yield* store.replay(id, "@acme", noted("replayed"))
              if (ready !== "taken" && ready._tag === "Some") {
                keys.look({ tenant: ready.value.tenant, key: ready.value.key ?? "" })
              }
              break
            }
          }
        }
        // No sweep from here on either: each end leads to the next job.
        const started: Array<ReadyJob> = []
        for (let turn = 0; turn < 500; turn++) {
          yield* promote
          yield* intake
          yield* heads
          const job = pick(0)
          if (job === undefined) break
          started.push(job)
          yield* end(job, finish(job))
        }
        for (const key of new Set(started.map(({ standing }) => standing?.key))) {
          const seqs = started.filter(({ seq, standing }) => standing?.key === key && !delayed.has(seq)).map((
            { seq }
          ) => seq)
          assert.deepStrictEqual(seqs, seqs.toSorted((one, other) => one - other), key)
        }
        assert.deepStrictEqual(yield* store.depth({ queueId: owner.queueId, partition: 0 }, 100), [0, 0, 0, 0])
        assert.strictEqual(held.size, 0)
      }).pipe(Effect.provide(MemoryJobStore.layer)),
    { arbitrary: { runs: 300 } }
  )

  it("a row that the database takes no outcome for is not started over and over: only a sweep brings it back", () => {
    let dues = 0
    const keys = Keys.make(() => dues++)
    const job: ReadyJob = { ...head, version: 1, attempt: 1 }
    assert.isTrue(keys.admit(job))
    keys.leave(job, false)
    assert.strictEqual(dues, 1)
    assert.deepInclude(keys.due()[0], { tenant: "@acme", key: "k" })
    assert.isFalse(keys.admit(job, true))
    assert.isTrue(keys.admit({ ...job, version: 2 }, true))
    keys.leave({ ...job, version: 2 }, true)
    keys.sweep()
    assert.isTrue(keys.admit(job))
  })

  it("that leave are looked for once the last job here has ended; those that wait for them are not, until somebody says so", () => {
    const keys = Keys.make(() => {})
    const job = head
    assert.isTrue(keys.admit(job))
    keys.leave(job, false)
    assert.deepStrictEqual(keys.due(), [])
    assert.isTrue(keys.admit({ ...job, standing: { key: "k", isHead: true, move: "leaves" } }))
    keys.leave(job, false)
    assert.deepStrictEqual(keys.due().map(({ key }) => key), ["k"])
    assert.isFalse(keys.admit({ ...job, standing: { key: "k", isHead: false, move: "waits" } }))
    assert.deepStrictEqual(keys.due(), [])
  })
})

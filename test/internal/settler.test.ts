import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { Scope } from "effect/Scope"
import * as Outage from "../../src/internal/outage.ts"
import * as Settler from "../../src/internal/settler.ts"
import { type JobStore, type Settlement, StoreError } from "../../src/JobStore.ts"
import * as MemoryJobStore from "../../src/MemoryJobStore.ts"
import { bury, finish, fresh, putBack, retry } from "../utils/storeFixture.ts"

type Settle = JobStore["Service"]["settle"]

const error = (reason: StoreError["reason"]) =>
  new StoreError({ reason, operation: "settle", cause: new Error("the test's") })

/** A settler over memory, whose `settle` the test may wrap; `batches` are the ids of each statement. */
const setUp = Effect.fnUntraced(function*(wrap: (settle: Settle) => Settle = (settle) => settle) {
  const fixture = yield* fresh
  const batches: Array<ReadonlyArray<string>> = []
  const wrapped = wrap(fixture.store.settle)
  const store: JobStore["Service"] = {
    ...fixture.store,
    settle: (owner, settlements, now) => {
      batches.push(settlements.map(({ id }) => id))
      return wrapped(owner, settlements, now)
    }
  }
  const control = { isStopped: false }
  const { settle } = yield* Settler.make({
    store,
    owner: fixture.owner,
    isStopped: () => control.isStopped,
    outage: Outage.make()
  })
  return { ...fixture, batches, control, settler: settle }
})

const memory = <A, E>(effect: Effect.Effect<A, E, JobStore | Scope>) =>
  Effect.provide(Effect.scoped(effect), MemoryJobStore.layer)

describe("the settler", () => {
  it.live("writes each kind of settlement and answers with what was written", () =>
    memory(Effect.gen(function*() {
      const { settler, stateOf, stored } = yield* setUp()
      const jobs = yield* Effect.forEach(Array.from({ length: 4 }), () => stored())
      const settlements = [finish(jobs[0]!), retry(jobs[1]!), putBack(jobs[2]!), bury(jobs[3]!)]
      const answers = yield* Effect.forEach(settlements, settler, { concurrency: "unbounded" })
      assert.deepStrictEqual(answers, settlements)
      const states = yield* Effect.forEach(jobs, ({ id }) => stateOf(id))
      assert.deepStrictEqual(states, ["completed", "retrying", "scheduled", "failed"])
    })))

  it.live("sends what ends while a statement is under way in the next one", () =>
    memory(Effect.gen(function*() {
      const go = yield* Deferred.make<void>()
      const begun = yield* Deferred.make<void>()
      const { batches, settler, stored } = yield* setUp((settle) => (...args) =>
        Deferred.succeed(begun, undefined).pipe(Effect.andThen(Deferred.await(go)), Effect.andThen(settle(...args)))
      )
      const jobs = yield* Effect.forEach(Array.from({ length: 20 }), () => stored())
      const [first, ...others] = jobs
      const send = (job: typeof first) => Effect.forkScoped(settler(finish(job!)), { startImmediately: true })
      const sent = yield* send(first)
      yield* Deferred.await(begun)
      const fibers = [sent, ...yield* Effect.forEach(others, send)]
      yield* Deferred.succeed(go, undefined)
      yield* Effect.forEach(fibers, Fiber.join)
      const ids = jobs.map(({ id }) => id)
      assert.deepStrictEqual(batches, [[ids[0]!], ids.slice(1)])
    })))

  it.live("one row that the database refuses becomes a dead letter and does not hold up the others", () =>
    memory(Effect.gen(function*() {
      const { get, settler, stateOf, stored } = yield* setUp()
      const jobs = yield* Effect.forEach(Array.from({ length: 33 }), () => stored())
      const answers = yield* Effect.forEach(
        jobs,
        (job, index) => settler(finish(job, index === 17 ? { result: "this is no JSON" } : {})),
        { concurrency: "unbounded" }
      )
      const states = yield* Effect.forEach(jobs, ({ id }) => stateOf(id))
      assert.deepStrictEqual(states, jobs.map((_, index) => index === 17 ? "failed" : "completed"))
      // What is told of it is what was written, not what was asked for.
      const [refused, ...others] = [answers[17]!, ...answers.toSpliced(17, 1)]
      assert.isTrue(typeof refused === "object" && refused._tag === "DeadLetter")
      assert.isTrue(others.every((answer) => typeof answer === "object" && answer._tag === "Finish"))
      const { failure, history } = yield* get(jobs[17]!.id)
      assert.deepInclude(failure, { class: "System", tag: "SettlementRefused" })
      assert.strictEqual(history.length, 1)
    })))

  it.live("a job that is refused as a dead letter too is put back for a minute instead of being lost", () =>
    memory(Effect.gen(function*() {
      const refuses = (settlement: Settlement) => settlement._tag === "DeadLetter" || settlement._tag === "Finish"
      const { get, settler, stored } = yield* setUp((settle) => (owner, settlements, now) =>
        settlements.some(refuses) ? Effect.fail(error("Refused")) : settle(owner, settlements, now)
      )
      const job = yield* stored()
      const answer = yield* settler(finish(job))
      assert.isTrue(typeof answer === "object" && answer._tag === "PutBack")
      assert.strictEqual((yield* get(job.id)).state, "scheduled")
    })))

  it.live("a database that is not available is asked again until it answers", () =>
    memory(Effect.gen(function*() {
      let outages = 2
      const { batches, settler, stateOf, stored } = yield* setUp((settle) => (...args) =>
        outages-- > 0 ? Effect.fail(error("Unavailable")) : settle(...args)
      )
      const job = yield* stored()
      const settlement = finish(job)
      assert.strictEqual(yield* settler(settlement), settlement)
      assert.strictEqual(batches.length, 3)
      assert.strictEqual(yield* stateOf(job.id), "completed")
    })))

  it.live("a conflict with another transaction is tried again and counts as nothing", () =>
    memory(Effect.gen(function*() {
      let conflicts = 5
      const { settler, stateOf, stored } = yield* setUp((settle) => (...args) =>
        conflicts-- > 0 ? Effect.fail(error("Conflict")) : settle(...args)
      )
      const job = yield* stored()
      yield* settler(retry(job))
      assert.strictEqual(yield* stateOf(job.id), "retrying")
    })))

  it.live("a settlement that had arrived when the connection was lost counts as settled when it is sent again", () =>
    memory(Effect.gen(function*() {
      let isLost = true
      const { batches, get, settler, stored } = yield* setUp((settle) => (...args) =>
        Effect.flatMap(settle(...args), (settled) => {
          if (!isLost) return Effect.succeed(settled)
          isLost = false
          return Effect.fail(error("Unavailable"))
        })
      )
      const jobs = yield* Effect.forEach(Array.from({ length: 2 }), () => stored())
      for (const settlement of [finish(jobs[0]!), retry(jobs[1]!)]) {
        isLost = true
        assert.strictEqual(yield* settler(settlement), settlement)
        assert.strictEqual((yield* get(settlement.id)).history.length, 1)
      }
      assert.strictEqual(batches.length, 4)
    })))

  it.live("a settlement that had not arrived, and whose job somebody else has ended meanwhile, is superseded", () =>
    memory(Effect.gen(function*() {
      let isLost = true
      const { get, settler, stored } = yield* setUp((settle) => (by, settlements, now) => {
        if (!isLost) return settle(by, settlements, now)
        isLost = false
        const [only] = settlements
        return Effect.andThen(settle(by, [bury(only!)], now), Effect.fail(error("Unavailable")))
      })
      const job = yield* stored()
      assert.strictEqual(yield* settler(finish(job)), "superseded")
      assert.strictEqual((yield* get(job.id)).state, "failed")
    })))

  it.live("a row that has moved on, or an owner that was taken over from, is superseded", () =>
    memory(Effect.gen(function*() {
      const { settler, stateOf, stored, takeOver } = yield* setUp()
      const [moved, kept] = yield* Effect.forEach(Array.from({ length: 2 }), () => stored())
      assert.strictEqual(yield* settler(finish({ ...moved!, version: 7 })), "superseded")
      yield* takeOver()
      assert.strictEqual(yield* settler(finish(kept!)), "superseded")
      assert.strictEqual(yield* stateOf(kept!.id), "queued")
    })))

  it.live("an owner that ends while the database is away waits no longer", () =>
    memory(Effect.gen(function*() {
      const { control, settler, stored } = yield* setUp(() => () =>
        Effect.suspend(() => {
          control.isStopped = true
          return Effect.fail(error("Unavailable"))
        })
      )
      assert.strictEqual(yield* settler(finish(yield* stored())), "stopped")
    })))
})

/**
 * What is known of a shard lock: once it is not surely held it is lost for good, whatever the database says later.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import { PersistenceError } from "effect/cluster/ClusterError"
import * as RunnerAddress from "effect/cluster/RunnerAddress"
import { RunnerStorage } from "effect/cluster/RunnerStorage"
import * as ShardId from "effect/cluster/ShardId"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Supervisor from "../../src/internal/supervisor.ts"
import type * as Standstill from "../../src/internal/time/standstill.ts"
import { recordLog } from "../utils/logged.ts"
import { until } from "../utils/runtime.ts"

const address = RunnerAddress.make("a", 1)
const one = ShardId.make("a00", 1)
const two = ShardId.make("a00", 2)

/** Grants everything; what a refresh answers is the test's. */
const supervised = Effect.fnUntraced(function*(
  expiration: Duration.Input,
  refresh: RunnerStorage["Service"]["refresh"],
  isAgreed?: Effect.Effect<boolean, string>,
  standstill?: Standstill.Standstill
) {
  const released: Array<ShardId.ShardId> = []
  const storage = RunnerStorage.of({
    register: () => Effect.die("unused"),
    unregister: () => Effect.void,
    getRunners: Effect.succeed([]),
    setRunnerHealth: () => Effect.void,
    acquire: (_, shards) => Effect.succeed([...shards]),
    refresh,
    release: (_, shardId) => Effect.sync(() => void released.push(shardId)),
    releaseAll: () => Effect.void
  })
  const context = yield* Layer.build(
    Supervisor.layer(Duration.fromInputUnsafe(expiration), isAgreed, standstill).pipe(
      Layer.provide(Layer.succeed(RunnerStorage, storage))
    )
  )
  const [storageOf, locks] = [Context.get(context, RunnerStorage), Context.get(context, Supervisor.ShardLocks)]
  return { storage: storageOf, locks, released }
})

describe("a shard lock", () => {
  it.live("whose refresh is overdue is lost, and stays so when the answer comes after all: it has to be acquired anew", () =>
    Effect.gen(function*() {
      const answer = Deferred.makeUnsafe<void>()
      const { locks, storage } = yield* supervised(
        "200 millis",
        (_, shards) => Effect.as(Deferred.await(answer), [...shards])
      )
      yield* storage.acquire(address, [one])
      const lock = locks.of(one)
      assert.isTrue(lock.isHeld())
      const refreshed = yield* Effect.forkChild(storage.refresh(address, [one]))
      yield* lock.lost
      assert.isFalse(lock.isHeld())
      yield* Deferred.succeed(answer, undefined)
      assert.deepStrictEqual(yield* Fiber.join(refreshed), [])

      yield* storage.acquire(address, [one])
      assert.isTrue(locks.of(one).isHeld())
      assert.isFalse(lock.isHeld())
    }).pipe(Effect.scoped))

  it.live("is lost when a refresh comes back without it; the others are not", () =>
    Effect.gen(function*() {
      const { locks, storage } = yield* supervised("1 hour", () => Effect.succeed([two]))
      yield* storage.acquire(address, [one, two])
      const [first, second] = [locks.of(one), locks.of(two)]
      yield* storage.refresh(address, [one, two])
      yield* first.lost
      assert.isTrue(second.isHeld())
    }).pipe(Effect.scoped))

  it.live("is lost when a refresh fails: the session that held it is replaced", () =>
    Effect.gen(function*() {
      const { locks, storage } = yield* supervised(
        "1 hour",
        () => Effect.fail(new PersistenceError({ cause: new Error("gone") }))
      )
      yield* storage.acquire(address, [one])
      const lock = locks.of(one)
      yield* Effect.ignore(storage.refresh(address, [one]))
      yield* lock.lost
      assert.isFalse(lock.isHeld())
    }).pipe(Effect.scoped))

  it.live("is held from the moment it was asked for, not from the answer on", () =>
    Effect.gen(function*() {
      const answer = Deferred.makeUnsafe<void>()
      let isHeldUp = false
      const { locks, storage } = yield* supervised(
        "300 millis",
        (_, shards) => Effect.as(isHeldUp ? Deferred.await(answer) : Effect.void, [...shards])
      )
      yield* storage.acquire(address, [one, two])
      isHeldUp = true
      const slow = yield* Effect.forkChild(storage.refresh(address, [one]), { startImmediately: true })
      // The other lock was confirmed at the same time: when it is overdue, so is this one.
      yield* locks.of(two).lost
      yield* Deferred.succeed(answer, undefined)
      yield* Fiber.join(slow)
      assert.isFalse(locks.of(one).isHeld())
    }).pipe(Effect.scoped))
})

/** A watch that sees one standstill, when the test says so. */
const makeWatch = () => {
  let stoodMs = 0
  const watch: Standstill.Standstill = {
    tick: () => {
      const stood = stoodMs
      stoodMs = 0
      return stood
    },
    isRecent: () => true,
    stoodSince: () => 0
  }
  return {
    watch,
    stand: (millis: number) => {
      stoodMs = millis
    }
  }
}

describe("a process that stood still", () => {
  it.live("says for how long, and that its locks are gone, before anybody hears that they are; what it was doing is no outage", () => {
    const { layer, lines } = recordLog()
    const { stand, watch } = makeWatch()
    return Effect.gen(function*() {
      const { locks, storage } = yield* supervised(
        "600 millis",
        () => Effect.fail(new PersistenceError({ cause: new Cause.TimeoutError() })),
        undefined,
        watch
      )
      yield* storage.acquire(address, [one])
      const { lost } = locks.of(one)
      const told = yield* Effect.forkChild(Effect.andThen(lost, Effect.sync(() => lines.map(({ text }) => text))))
      stand(20_000)
      yield* until(Effect.sync(() => lines.length > 0))
      yield* Effect.ignore(storage.refresh(address, [one]))
      const before = yield* Fiber.join(told)
      assert.strictEqual(before.length, 1)
      assert.match(before[0] ?? "", /^This process stood still for 20s.*Its shard locks ran out meanwhile/)
      assert.deepStrictEqual(lines.length, 1)
    }).pipe(Effect.scoped, Effect.provide(layer))
  })

  it.live("for less says what it may lose; for a moment nothing", () => {
    const { layer, lines } = recordLog()
    const { stand, watch } = makeWatch()
    return Effect.gen(function*() {
      yield* supervised("6 seconds", () => Effect.succeed([]), undefined, watch)
      stand(1_000)
      yield* until(Effect.sync(() => watch.tick() === 0))
      stand(4_000)
      yield* until(Effect.sync(() => lines.length > 0))
      assert.deepStrictEqual(lines.map(({ text }) => text), [
        "This process stood still for 4s: it was suspended, or something kept its event loop. From 5.4 s on it may lose its " +
        "partitions: what computes for long belongs in a thread"
      ])
    }).pipe(Effect.scoped, Effect.provide(layer))
  })
})

describe("of a process whose locks last for long", () => {
  it.live("a standstill of 3 seconds is told of, too, and from when on it may cost the locks", () => {
    const { layer, lines } = recordLog()
    const { stand, watch } = makeWatch()
    return Effect.gen(function*() {
      yield* supervised("30 seconds", () => Effect.succeed([]), undefined, watch)
      stand(9_000)
      yield* until(Effect.sync(() => lines.length > 0))
      assert.match(lines[0]?.text ?? "", /^This process stood still for 9s: .* From 27 s on it may lose its partitions/)
    }).pipe(Effect.scoped, Effect.provide(layer))
  })
})

describe("a runner that has left", () => {
  it.live("no longer counts itself among the runners, and hears of nobody where there is nobody else", () =>
    Effect.gen(function*() {
      const { storage } = yield* supervised("1 hour", () => Effect.succeed([]))
      assert.deepStrictEqual(yield* storage.getRunners, [])
      yield* storage.unregister(address)
      assert.isTrue((yield* Effect.timeoutOption(storage.getRunners, "10 millis"))._tag === "None")
    }).pipe(Effect.scoped))

  it.live("is let go of where another runner, which joined at the same moment, numbers the locks otherwise", () =>
    Effect.gen(function*() {
      let agreed: Effect.Effect<boolean, string> = Effect.succeed(true)
      const { locks, released, storage } = yield* supervised(
        "1 hour",
        (_, shards) => Effect.succeed([...shards]),
        Effect.suspend(() => agreed)
      )
      yield* storage.acquire(address, [one])
      const lock = locks.of(one)
      // The database does not answer: what was agreed on before counts.
      agreed = Effect.fail("away")
      assert.deepStrictEqual(yield* storage.acquire(address, [one]), [one])
      agreed = Effect.succeed(false)
      assert.deepStrictEqual(yield* storage.acquire(address, [one, two]), [])
      yield* lock.lost
      assert.deepStrictEqual(released, [one, two])
      assert.isFalse(locks.of(two).isHeld())
    }).pipe(Effect.scoped))
})

/**
 * What is known of a shard lock: once it is not surely held it is lost for good, whatever the database says later.
 */
import { assert, describe, it } from "@effect/vitest"
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

const address = RunnerAddress.make("a", 1)
const one = ShardId.make("a00", 1)
const two = ShardId.make("a00", 2)

/** Grants everything; what a refresh answers is the test's. */
const supervised = Effect.fnUntraced(function*(
  expiration: Duration.Input,
  refresh: RunnerStorage["Service"]["refresh"],
  isAgreed?: Effect.Effect<boolean, string>
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
    Supervisor.layer(Duration.fromInputUnsafe(expiration), isAgreed).pipe(
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

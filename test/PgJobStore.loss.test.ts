/**
 * Connections lost at the worst moment: while COMMIT is under way, with each of its two outcomes.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Schedule from "effect/Schedule"
import { JobStore, type StoreError } from "../src/JobStore.ts"
import * as PgJobStore from "../src/PgJobStore.ts"
import * as Postgres from "../src/Postgres.ts"
import { TestDatabase, TestServer } from "./utils/database.ts"
import { holdLock, makeBusinessTable, terminate, untilWaiting } from "./utils/holds.ts"
import { finish, fresh, t0 } from "./utils/storeFixture.ts"
import { tcpProxy } from "./utils/tcpProxy.ts"

/** The network between the process under test and the database; the test itself has a way of its own. */
class Network extends Context.Service<Network, { readonly cut: Effect.Effect<void>; readonly direct: PgClient }>()(
  "millrace/test/Network"
) {}

const setup = Layer.unwrap(Effect.gen(function*() {
  const { url } = yield* TestDatabase
  const direct = yield* PgClient
  yield* makeBusinessTable(direct)
  const { cut, url: through } = yield* tcpProxy(url)
  const network = Layer.succeed(Network, { cut, direct })
  const store = PgJobStore.layer({ lockTimeout: "2 seconds" }).pipe(
    Layer.provideMerge(Postgres.layer({ url: through }))
  )
  return Layer.merge(network, store)
})).pipe(Layer.provide(TestDatabase.layer))

const inNetwork = <A, E>(test: Effect.Effect<A, E, JobStore | PgClient | Network>) =>
  Effect.scoped(Effect.provide(test, setup))

const committing = Effect.gen(function*() {
  const { cut, direct } = yield* Network
  const sql = yield* PgClient
  const kit = yield* fresh
  const one = yield* kit.stored()
  const { release } = yield* holdLock(direct, 1)
  const run = yield* Effect.forkChild(kit.store.transact(
    kit.owner,
    sql`insert into public.business (id, hold) values ('mine', 1)`,
    () => Effect.succeed({ settlement: finish(one), now: t0 })
  ))
  const [session] = yield* untilWaiting(direct)
  yield* cut
  assert.strictEqual((yield* Fiber.join(run))._tag, "Unknown")
  const refence = yield* Effect.forkChild(kit.store.refence(kit.owner, one.id, one.version))
  yield* untilWaiting(direct, 2)
  const written = Effect.map(direct<{ readonly id: string }>`select id from public.business`, (rows) => rows.length)
  return { direct, kit, one, pid: session!.pid, refence, release, written }
})

describe("PgJobStore, connections lost", () => {
  it.live("during COMMIT, which succeeds: refence waits for it and finds the job gone, its writes are there", () =>
    inNetwork(Effect.scoped(Effect.gen(function*() {
      const { kit, one, refence, release, written } = yield* committing
      yield* release
      assert.deepStrictEqual(yield* Fiber.join(refence), Option.none())
      assert.strictEqual(yield* kit.stateOf(one.id), "completed")
      assert.strictEqual(yield* written, 1)
    }))))

  it.live("during COMMIT, which fails: refence gives the job back under a new version, nothing is written", () =>
    inNetwork(Effect.scoped(Effect.gen(function*() {
      const { direct, kit, one, pid, refence, written } = yield* committing
      yield* terminate(direct, pid)
      assert.deepStrictEqual(yield* Fiber.join(refence), Option.some(1))
      assert.strictEqual(yield* kit.stateOf(one.id), "queued")
      assert.strictEqual(yield* written, 0)
    }))))

  for (const outcome of ["succeeds", "fails"] as const) {
    for (const keyed of [false, true]) {
      it.live(`during a submit ${keyed ? "of keys" : ""} whose commit ${outcome}: the jobs are stored once`, () =>
        inNetwork(Effect.scoped(Effect.gen(function*() {
          const { cut, direct } = yield* Network
          const { job, queueId, store, submit } = yield* fresh
          yield* direct`create function public.hold_job() returns trigger language plpgsql as
            $$ begin perform pg_advisory_xact_lock_shared(2); return null; end $$`
          yield* direct`create constraint trigger hold after insert on millrace.jobs deferrable initially deferred
            for each row execute function public.hold_job()`
          const { release } = yield* holdLock(direct, 2)
          const jobs = [1, 2, 3].map((n) => job(keyed ? { dedupeKey: `key-${n}` } : {}))
          const sent = yield* Effect.forkChild(submit(...jobs))
          const [session] = yield* untilWaiting(direct, 1, "advisory")
          yield* cut
          // Sent again, it waits for the first: its ids, or its keys, are in the way.
          yield* untilWaiting(direct, 1, "transactionid")
          if (outcome === "fails") yield* terminate(direct, session!.pid)
          yield* release
          const answers = yield* Fiber.join(sent)
          assert.deepStrictEqual(
            answers.map(({ id, isNew }) => ({ id, isNew })),
            jobs.map(({ id }) => ({ id, isNew: true }))
          )
          for (const { seq } of answers) assert.isAbove(seq, 0)
          const [row] = yield* direct<
            { readonly n: number }
          >`select count(*)::int as n from millrace.jobs where queue_id = ${queueId}`
          assert.strictEqual(row?.n, 3)
          assert.strictEqual((yield* store.depth({ queueId, partition: 0 }, 10))[2], 3)
        }))))
    }
  }

  it.live("while listening: the listener hears of it, so that it can listen again", () =>
    inNetwork(Effect.scoped(Effect.gen(function*() {
      const { cut } = yield* Network
      const store = yield* JobStore
      const heard = yield* store.announcements
      const ready = { queueId: 1, partition: 0, lane: 2, tenant: "=", seq: 7 }
      yield* store.announce([{ ...ready, seq: 9 }, ready])
      assert.deepStrictEqual(yield* Queue.take(heard), [ready])
      yield* cut
      const end = yield* Effect.exit(Queue.take(heard))
      assert.isTrue(Exit.isFailure(end))
      const again = yield* store.announcements
      yield* store.announce([ready]).pipe(Effect.retry({ times: 5 }))
      assert.deepStrictEqual(yield* Queue.take(again), [ready])
    }))))

  it.live(
    "because the server is down: every verb says Unavailable, and the store goes on when it is back",
    () =>
      Effect.scoped(
        Effect.gen(function*() {
          const server = yield* TestServer
          yield* Effect.gen(function*() {
            const { get, job, owner, readyIds, settle, store, stored, submit } = yield* fresh
            const one = yield* stored()
            yield* server.stop("fast")
            const failing: ReadonlyArray<Effect.Effect<unknown, StoreError>> = [
              readyIds(),
              settle(owner, finish(one)),
              store.find(one.id),
              store.takeOver(owner, { owner: "other", now: t0 })
            ]
            for (const verb of failing) assert.strictEqual((yield* Effect.flip(verb)).reason, "Unavailable")
            // A submission is worth waiting for, within bounds.
            const two = job()
            const submitting = yield* Effect.forkChild(submit(two))
            yield* server.start
            assert.deepStrictEqual((yield* Fiber.join(submitting)).map(({ id }) => id), [two.id])
            yield* settle(owner, finish(one)).pipe(Effect.retry({ times: 10, schedule: Schedule.spaced("50 millis") }))
            assert.strictEqual((yield* get(one.id)).state, "completed")
          }).pipe(Effect.provide(PgJobStore.layer().pipe(Layer.provide(Postgres.layer({ url: server.url })))))
        }).pipe(Effect.provide(TestServer.layer))
      ),
    60_000
  )
})

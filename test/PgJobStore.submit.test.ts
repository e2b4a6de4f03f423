/**
 * Submissions that meet each other on PostgreSQL: dedupe keys, callers' transactions.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Database from "../src/internal/sql/database.ts"
import * as Submit from "../src/internal/sql/submit.ts"
import { makeStatements } from "../src/internal/sql/submitStatements.ts"
import { type NewJob, StoreError, tenantKey } from "../src/JobStore.ts"
import * as PgJobStore from "../src/PgJobStore.ts"
import * as Postgres from "../src/Postgres.ts"
import { TestDatabase } from "./utils/database.ts"
import { untilWaiting } from "./utils/holds.ts"
import { finish, fresh, newBatch, newId, t0 } from "./utils/storeFixture.ts"

const store = PgJobStore.layer({ lockTimeout: "300 millis" }).pipe(
  Layer.provideMerge(TestDatabase.layerWith({ maxConnections: 20 }))
)

/** A deadlock shows as a lock timeout here: the server does not look for deadlocks within it. */
const withoutDetector = PgJobStore.layer({ lockTimeout: "3 seconds" }).pipe(
  Layer.provideMerge(Layer.effectDiscard(Effect.gen(function*() {
    const sql = yield* PgClient
    const { name } = yield* TestDatabase
    yield* sql.unsafe(`alter database ${name} set deadlock_timeout = '1 min'`)
  }))),
  Layer.provideMerge(TestDatabase.layer)
)

const countOf = (queueId: number) =>
  Effect.flatMap(PgClient, (sql) =>
    Effect.map(
      sql<{ readonly n: number }>`select count(*)::int as n from millrace.jobs where queue_id = ${queueId}`,
      ([row]) => row?.n
    ))

/** Some order of the items, another one for each seed. */
const shuffled = <A>(items: ReadonlyArray<A>, seed: number): ReadonlyArray<A> => {
  let state = seed + 1
  const draw = () => (state = (state * 48_271) % 2_147_483_647)
  return items.map((item) => [draw(), item] as const).sort(([left], [right]) => left - right).map(([, item]) => item)
}

/** Runs an effect as a fiber would that is in no transaction. */
const outside = <A, E>(effect: Effect.Effect<A, E>) =>
  Effect.flatMap(
    PgClient,
    (sql) =>
      Effect.updateContext(effect, (context: Context.Context<never>) => Context.omit(sql.transactionService)(context))
  )

layer(store, { excludeTestServices: true, timeout: "60 seconds" })("PgJobStore.submit", (it) => {
  describe("dedupe keys", () => {
    it.effect("50 submitters of one key at once make one live job, and each gets its id", () =>
      Effect.gen(function*() {
        const { job, queueId, submit } = yield* fresh
        const answers = yield* Effect.all(
          Array.from({ length: 50 }, () => submit(job({ dedupeKey: "one" }))),
          { concurrency: "unbounded" }
        )
        const all = answers.flat()
        assert.strictEqual(new Set(all.map(({ id }) => id)).size, 1)
        assert.strictEqual(all.filter(({ isNew }) => isNew).length, 1)
        assert.strictEqual(yield* countOf(queueId), 1)
      }))

    it.effect("a batch that cannot wait for one of its keys stores none of its jobs", () =>
      Effect.scoped(Effect.gen(function*() {
        const sql = yield* PgClient
        const { job, queueId, stateOf, submit } = yield* fresh
        const [free, busy, last] = [job({ dedupeKey: "a" }), job({ dedupeKey: "b" }), job({ dedupeKey: "c" })]
        const error = yield* sql.withTransaction(Effect.gen(function*() {
          yield* submit(job({ dedupeKey: "b" }))
          return yield* outside(Effect.flip(submit(free, busy, last)))
        }))
        assert.strictEqual(error.reason, "LockTimeout")
        assert.isUndefined(yield* stateOf(free.id))
        assert.isUndefined(yield* stateOf(last.id))
        assert.strictEqual(yield* countOf(queueId), 1)
      })))

    it.effect("a batch whose keys' holders cannot be named stores none of its jobs", () =>
      Effect.scoped(Effect.gen(function*() {
        const client = yield* PgClient
        const { job, queueId, submit } = yield* fresh
        yield* submit(job({ dedupeKey: "held" }))
        const db = Database.make(yield* Postgres.makePool(client), "millrace")
        const lost = new StoreError({ reason: "Refused", operation: "submit", cause: new Error("lost") })
        const { existing } = makeStatements("millrace")
        const run: Database.Run = (operation, sql, parameters) =>
          sql === existing ? Effect.fail(lost) : db.run(operation, sql, parameters)
        const failing = Submit.make({ ...db, run }, client, 100)
        const batch = [job({ dedupeKey: "held" }), job({ dedupeKey: "free" }), job()]
        assert.strictEqual(yield* Effect.flip(failing(batch, { batchId: undefined, now: t0 })), lost)
        assert.strictEqual(yield* countOf(queueId), 1)
      })))

    it.effect("a key held by another transaction costs the caller that submission, not its transaction", () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const { job, stateOf, submit } = yield* fresh
        const [before, blocked] = [job(), job({ dedupeKey: "k" })]
        yield* sql.withTransaction(Effect.gen(function*() {
          yield* submit(job({ dedupeKey: "k" }))
          const other = sql.withTransaction(Effect.gen(function*() {
            yield* sql`set local lock_timeout = '7s'`
            yield* submit(before)
            const error = yield* Effect.flip(submit(blocked))
            assert.strictEqual(error.reason, "LockTimeout")
            const [row] = yield* sql<{ readonly lock_timeout: string }>`show lock_timeout`
            assert.strictEqual(row?.lock_timeout, "7s")
          }))
          yield* outside(other)
        }))
        assert.strictEqual(yield* stateOf(before.id), "queued")
        assert.isUndefined(yield* stateOf(blocked.id))
      }))

    it.effect("a submitter that waits for a key gets it when its holder rolls back, and its holder's id when that commits", () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const { job, submit } = yield* fresh
        for (const outcome of ["commit", "rollback"] as const) {
          const [holder, waiter] = [job({ dedupeKey: outcome }), job({ dedupeKey: outcome })]
          const stored = yield* Latch.make()
          const end = yield* Latch.make()
          const transaction = yield* Effect.forkChild(Effect.exit(sql.withTransaction(
            submit(holder).pipe(
              Effect.andThen(stored.open),
              Effect.andThen(end.await),
              Effect.andThen(outcome === "commit" ? Effect.void : Effect.fail("no"))
            )
          )))
          yield* stored.await
          const waiting = yield* Effect.forkChild(submit(waiter))
          yield* untilWaiting(sql)
          yield* end.open
          yield* Fiber.join(transaction)
          const [answer] = yield* Fiber.join(waiting)
          assert.strictEqual(answer?.id, outcome === "commit" ? holder.id : waiter.id)
          assert.strictEqual(answer?.isNew, outcome === "rollback")
        }
      }))
  })

  describe("a caller's transaction", () => {
    it.effect("what is submitted in it exists for others exactly from its commit on", () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const { job, readyIds, store, submit } = yield* fresh
        const [one, keyed] = [job(), job({ dedupeKey: "k" })]
        let told = 0
        yield* sql.withTransaction(Effect.gen(function*() {
          yield* submit(one)
          yield* submit(keyed)
          yield* store.afterCommit(Effect.sync(() => told++))
          assert.deepStrictEqual(yield* readyIds(), [])
          assert.strictEqual(told, 0)
        }))
        assert.sameMembers(yield* readyIds(), [one.id, keyed.id])
        assert.strictEqual(told, 1)
      }))

    it.effect("a savepoint that rolls back takes its submissions along and nothing else", () =>
      Effect.gen(function*() {
        const sql = yield* PgClient
        const { job, readyIds, submit } = yield* fresh
        const [kept, lost] = [job(), job({ dedupeKey: "lost" })]
        yield* sql.withTransaction(Effect.gen(function*() {
          yield* submit(kept)
          yield* Effect.ignore(sql.withTransaction(Effect.andThen(submit(lost), Effect.fail("no"))))
        }))
        assert.deepStrictEqual(yield* readyIds(), [kept.id])
      }))
  })

  it.effect("jobs that are alike are stored as they were given, and so is a batch where a single one differs in one thing", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const { get, job, store } = yield* fresh
      const other = yield* fresh
      const plain = { lane: 3, tenant: tenantKey("a"), type: "Alike", context: "{\"userId\":\"ada\"}" }
      const changes: ReadonlyArray<Partial<NewJob>> = [
        {},
        { queueId: other.queueId },
        { lane: 1 },
        { tenant: tenantKey("b") },
        { type: "Other" },
        { context: undefined },
        { dueAt: t0 + 1 },
        { expiresAt: t0 + 1 }
      ]
      for (const change of changes) {
        for (const place of [0, 2]) {
          const batch = [0, 1, 2].map((n) =>
            job({ ...plain, partition: n % 2, payload: `${n}`, ...(n === place ? change : {}) })
          )
          const batchId = newBatch()
          yield* store.submit(batch, { batchId, now: t0 })
          const expiring = yield* sql<{ readonly id: string }>`select id from millrace.jobs
            where batch_id = ${batchId}::uuid and expires_at is not null`
          assert.deepStrictEqual(
            expiring.map(({ id }) => id),
            batch.filter(({ expiresAt }) => expiresAt !== undefined).map(({ id }) => id)
          )
          for (const [n, { context, dueAt, id, lane, partition, queueId, tenant, type }] of batch.entries()) {
            assert.deepInclude(yield* get(id), {
              queueId,
              partition,
              lane,
              tenant,
              type,
              dueAt,
              batchId,
              createdAt: t0,
              payload: n,
              context: context === undefined ? null : { userId: "ada" },
              state: dueAt === undefined ? "queued" : "scheduled"
            })
          }
        }
      }
    }))

  it.effect("the seq that is answered is the one that is stored, and follows the caller's order", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const { job, queueId, store } = yield* fresh
      const alike = Array.from({ length: 300 }, () => job())
      const mixed = alike.map((one, index) => index % 3 === 0 ? { ...one, lane: 1 } : one)
      for (const [jobs, batchId] of [[alike, undefined], [mixed, newBatch()], [alike, newBatch()]] as const) {
        const batch = jobs.map((one) => ({ ...one, id: newId() }))
        const answers = yield* store.submit(batch, { batchId, now: t0 })
        const rows = yield* sql<{ readonly id: string; readonly seq: number }>`select id, seq::float8 as seq
          from millrace.jobs where queue_id = ${queueId} and batch_id is not distinct from ${
          batchId ?? null
        }::uuid order by seq`
        assert.deepStrictEqual(rows.map(({ id }) => id), batch.map(({ id }) => id))
        assert.deepStrictEqual(answers.map(({ id, seq }) => ({ id, seq })), [...rows])
      }
    }))

  it.effect("seq follows the caller's order, also where rows are inserted in the order of their keys", () =>
    Effect.scoped(Effect.gen(function*() {
      const { job, submit } = yield* fresh
      const answers = yield* submit(...["z", "a", "m", "b"].map((dedupeKey) => job({ dedupeKey, dueAt: t0 })))
      const seqs = answers.map(({ seq }) => seq)
      assert.deepStrictEqual(seqs, seqs.toSorted((left, right) => left - right))
    })))
})

layer(withoutDetector, { excludeTestServices: true, timeout: "60 seconds" })(
  "PgJobStore.submit, without a deadlock detector",
  (it) => {
    it.effect("batches with keys in common, in different orders, do not deadlock, and each is stored as a whole", () =>
      Effect.gen(function*() {
        const { job, owner, readyIds, settle, store, submit } = yield* fresh
        const keys = Array.from({ length: 40 }, (_, index) => `key-${index}`)
        const settler = yield* Effect.forkChild(Effect.forever(Effect.gen(function*() {
          const ids = yield* readyIds()
          yield* settle(owner, ...ids.map((id) => finish({ id, version: 0 })))
          yield* Effect.yieldNow
        })))
        const submitter = (seed: number) =>
          Effect.forEach(Array.from({ length: 25 }, (_, round) => round), (round) =>
            Effect.gen(function*() {
              const batch = shuffled(keys, seed + round).slice(0, 20).map((dedupeKey) => job({ dedupeKey }))
              const answers = yield* submit(...batch)
              for (const { id } of answers) {
                assert.isTrue((yield* store.find(id))._tag === "Some", "an answer names a stored job")
              }
            }))
        yield* Effect.all(Array.from({ length: 8 }, (_, seed) => submitter(seed * 1000)), { concurrency: "unbounded" })
        yield* Fiber.interrupt(settler)
      }))
  }
)

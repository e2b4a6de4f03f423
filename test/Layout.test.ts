/**
 * Programs that change how a queue is divided while others do, or while somebody's transaction is open: nobody works by an answer of before.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, it, layer } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { LayoutError, QueueMoving } from "../src/JobError.ts"
import * as JobQueue from "../src/JobQueue.ts"
import { defaultLayout, type Layout } from "../src/JobQueue.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import { JobStore } from "../src/JobStore.ts"
import * as PgJobStore from "../src/PgJobStore.ts"
import { TestDatabase } from "./utils/database.ts"
import { untilWaiting } from "./utils/holds.ts"
import { recordLog } from "./utils/logged.ts"
import { startProgram } from "./utils/programs.ts"
import { newId, newJob, t0 } from "./utils/storeFixture.ts"

const byKey: Layout = { ...defaultLayout, partitions: 2, partitionBy: "key" }

/** A queue of its own, and a transaction of the caller's that stays open until the test closes it. */
const open = <A>(work: (queueId: number) => Effect.Effect<A, unknown, JobStore | PgClient>, wanted?: Layout) =>
  Effect.gen(function*() {
    const store = yield* JobStore
    const sql = yield* PgClient
    const name = `layout-${newId()}`
    const { queueId } = yield* store.declareQueue(name, wanted)
    const done = yield* Deferred.make<void>()
    const close = yield* Deferred.make<"commit" | "roll back">()
    const transaction = yield* Effect.forkChild(
      Effect.ignore(sql.withTransaction(Effect.gen(function*() {
        yield* work(queueId)
        yield* Deferred.succeed(done, undefined)
        if ((yield* Deferred.await(close)) === "roll back") return yield* Effect.fail("rolled back")
      })))
    )
    yield* Deferred.await(done)
    const end = (how: "commit" | "roll back") => Effect.andThen(Deferred.succeed(close, how), Fiber.join(transaction))
    return { store, sql, name, queueId, end }
  })

const submit = (queueId: number) =>
  Effect.flatMap(
    JobStore,
    (store) => store.submit([newJob({ queueId, key: "k", place: 3 })], { batchId: undefined, now: t0 })
  )

layer(Layer.provideMerge(PgJobStore.layer(), TestDatabase.layer), { excludeTestServices: true, timeout: "60 seconds" })(
  "the layout of a queue",
  (it) => {
    it.effect("that was read before somebody else changed it is read again: the change counts", () =>
      Effect.gen(function*() {
        const { end, name, sql, store } = yield* open((queueId) =>
          Effect.flatMap(PgClient, (sql) =>
            Effect.andThen(
              sql`update millrace.queues set partitions = 2, partition_by = 2, layout = layout + 1 where id = ${queueId}`,
              submit(queueId)
            ))
        )
        // By what it has read the queue goes by job, and may be divided anew.
        const declared = yield* Effect.forkChild(store.declareQueue(name, { ...defaultLayout, partitions: 5 }))
        yield* untilWaiting(sql)
        yield* end("commit")
        const error = yield* Effect.flip(Fiber.join(declared))
        assert(error._tag === "LayoutError")
        assert.deepInclude(error.reason, { _tag: "QueueNotEmpty", field: "partitionBy" })
        assert.deepInclude(yield* store.declareQueue(name), { partitions: 2, partitionBy: "key" })
      }))

    it.effect("does not change under a submission that is not committed yet: who wants to change it waits, and that job is one of before", () =>
      Effect.gen(function*() {
        const { end, name, sql, store } = yield* open(submit, byKey)
        const declared = yield* Effect.forkChild(store.declareQueue(name, { ...byKey, partitions: 3 }))
        yield* untilWaiting(sql)
        yield* end("commit")
        assert.deepInclude(yield* Fiber.join(declared), { partitions: 3, layout: 2 })
        // It lies in partition 1 and belongs into 0 now: the count stays until it has run.
        const error = yield* Effect.flip(store.declareQueue(name, { ...byKey, partitions: 2 }))
        assert.deepStrictEqual(
          error,
          new LayoutError({ reason: new QueueMoving({ queue: name, stored: 3, asked: 2 }) })
        )
      }))

    it.effect("changes once such a submission is rolled back, and the next one goes by the new count", () =>
      Effect.gen(function*() {
        const { end, name, queueId, sql, store } = yield* open(submit, byKey)
        const declared = yield* Effect.forkChild(store.declareQueue(name, { ...byKey, partitions: 3 }))
        yield* untilWaiting(sql)
        yield* end("roll back")
        assert.deepInclude(yield* Fiber.join(declared), { partitions: 3, layout: 2 })
        assert.deepStrictEqual((yield* submit(queueId))[0]?.partition, 0)
      }))

    it.effect("who wants to change it and has to wait does not hold up those who submit", () =>
      Effect.gen(function*() {
        const { end, name, sql, store } = yield* open(submit, byKey)
        const other = yield* store.declareQueue(`layout-${newId()}`)
        const declared = yield* Effect.forkChild(store.declareQueue(name, { ...byKey, partitions: 3 }))
        yield* untilWaiting(sql)
        yield* submit(other.queueId)
        yield* end("roll back")
        yield* Fiber.join(declared)
      }))

    it.effect("is told of by the program that has changed it, in one line, however it has to be changed", () => {
      const { layer, lines } = recordLog()
      return Effect.gen(function*() {
        const store = yield* JobStore
        const name = `layout-${newId()}`
        const declare = (wanted: Layout) => store.declareQueue(name, wanted)
        yield* declare(defaultLayout)
        yield* declare({ ...defaultLayout, partitions: 2 })
        yield* declare(byKey)
        yield* declare(byKey)
        const both = { ...byKey, partitions: 4, isOrdered: true }
        yield* declare(both)
        yield* Effect.all(Array.from({ length: 5 }, () => declare({ ...both, partitions: 8 })), {
          concurrency: "unbounded"
        })
        assert.deepStrictEqual(
          lines.map(({ level, text }) => `${level}: ${text}`),
          [
            "partitions from 1 to 2",
            "partitionBy from job to key",
            "partitions from 2 to 4, ordered from false to true",
            "partitions from 4 to 8"
          ].map((changes) => `Info: Queue "${name}": this program has changed ${changes}`)
        )
      }).pipe(Effect.provide(layer))
    })
  }
)

it.live("a program that only submits says what it has changed, too", () => {
  const { layer, lines } = recordLog()
  const client = (partitions: number) =>
    startProgram(JobRuntime.layerClient({ queues: [JobQueue.make("mails", { partitions })] }))
  return Effect.gen(function*() {
    yield* client(2)
    assert.deepStrictEqual(lines, [])
    yield* client(3)
    assert.deepStrictEqual(lines.map(({ level, text }) => `${level}: ${text}`), [
      "Info: Queue \"mails\": this program has changed partitions from 2 to 3"
    ])
  }).pipe(Effect.scoped, Effect.provide(Layer.merge(TestDatabase.layer, layer)))
})

/**
 * Cancelling a job that is put back again and again: at any moment it is between two attempts, or at the end of one.
 */
import { assert, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as JobError from "../src/JobError.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Jobs from "../src/Jobs.ts"
import * as Postgres from "../src/Postgres.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { databaseUrl } from "./utils/database.ts"
import { layerMemory, Partitions } from "./utils/partitions.ts"
import { layerRuntime, until, untilState } from "./utils/runtime.ts"

const Ten = JobQueue.make("ten", { concurrency: 10 })
const forever = RetryPolicy.fixed(0, { maxAttempts: 30_000 })

layer(layerRuntime({ queues: [Ten] }), { excludeTestServices: true })("a job that is put back at once", (it) => {
  const hot = Effect.fnUntraced(function*(type: string, error: unknown, retry: RetryPolicy.RetryPolicy) {
    const jobs = yield* Jobs.Jobs
    const runs = new Map<unknown, number>()
    yield* JobHandlers.register(type, (payload) =>
      Effect.suspend(() => {
        runs.set(payload, (runs.get(payload) ?? 0) + 1)
        return Effect.fail(error)
      }), { retry, transaction: "none" })
    const { jobIds } = yield* jobs.submit(
      Array.from({ length: 20 }, (_, payload) => ({ type, queue: Ten, payload }))
    )
    yield* until(Effect.sync(() => runs.size === 20 && [...runs.values()].every((count) => count > 1)))
    return { jobIds, runs }
  })

  const cases = [
    ["snoozes for 0 ms", new JobError.Snooze({ delay: 0 }), RetryPolicy.none],
    ["is retried without a pause", "again", forever]
  ] as const
  for (const [what, error, retry] of cases) {
    it.effect(`is cancelled by the first who asks, when it ${what}`, () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const { jobIds, runs } = yield* hot(what, error, retry)
        yield* Effect.forEach(jobIds, (id) => jobs.cancel(id), { concurrency: "unbounded" })
        const counts = [...runs.values()]
        for (const id of jobIds) assert.strictEqual((yield* jobs.status(id)).state, "cancelled")
        assert.deepStrictEqual([...runs.values()], counts)
      }))

    it.effect(`is cancelled from a process that only submits, when it ${what}`, () =>
      Effect.gen(function*() {
        const { jobIds } = yield* hot(`client, ${what}`, error, retry)
        const url = yield* databaseUrl
        const client = yield* Layer.build(
          Layer.fresh(JobRuntime.layerClient({ queues: [Ten] }).pipe(Layer.provide(Postgres.layer({ url }))))
        )
        const jobs = Context.get(client, Jobs.Jobs)
        yield* Effect.forEach(jobIds, (id) => jobs.cancel(id), { concurrency: "unbounded" })
        for (const id of jobIds) assert.strictEqual((yield* jobs.status(id)).state, "cancelled")
      }).pipe(Effect.scoped))
  }
})

layer(layerMemory({ queues: [Ten] }), { excludeTestServices: true })("a dead letter", (it) => {
  it.effect("runs again when it is replayed right after its owner was asked to cancel it", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const { of } = yield* Partitions
      let runs = 0
      yield* JobHandlers.register("fails", () => ++runs === 1 ? Effect.fail("once") : Effect.void, {
        retry: RetryPolicy.none
      })
      const id = yield* jobs.submit({ type: "fails", queue: Ten })
      yield* untilState(id, "failed")
      assert.isFalse(yield* of(Ten).cancel(id, undefined))
      yield* jobs.replayJob(id)
      yield* untilState(id, "completed")
    }))
})

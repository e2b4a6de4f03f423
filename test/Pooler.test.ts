/**
 * Behind a pooler in transaction mode (PgBouncer): a worker says that it cannot own anything there, a program that only submits works.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import type * as Scope from "effect/Scope"
import * as JobHandlers from "../src/JobHandlers.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Jobs from "../src/Jobs.ts"
import * as Postgres from "../src/Postgres.ts"
import { databaseUrl, TestDatabase } from "./utils/database.ts"
import { makeStops } from "./utils/runtime.ts"
import { transactionPooler } from "./utils/transactionPooler.ts"

const quiet = Effect.provideService(References.MinimumLogLevel, "None")

const over = <A, E>(runtime: Layer.Layer<A, E, Postgres.Client>, options: Postgres.Options) =>
  Layer.build(Layer.fresh(runtime.pipe(Layer.provide(Postgres.layer(options)))))

describe("behind a pooler in transaction mode", () => {
  const workers = {
    "a worker": (options: Postgres.Options) => over(JobRuntime.layer(), options),
    "a runner of a cluster": (options: Postgres.Options) =>
      over(JobRuntime.layerCluster({ host: "127.0.0.1", port: 0 }), options)
  }
  for (const [name, start] of Object.entries(workers)) {
    for (const size of [1, 3]) {
      it.live(`with ${size} of its sessions ${name} does not start, and says where to connect to`, () =>
        Effect.gen(function*() {
          const url = yield* transactionPooler(yield* databaseUrl, size)
          const error = yield* Effect.flip<unknown, JobRuntime.StartError | JobRuntime.ClusterError, Scope.Scope>(
            start({ url, prepare: false })
          )
          assert(error instanceof Postgres.PostgresError, String(error))
          assert.strictEqual(error.reason, "TransactionPooler")
          assert.isFalse(error.isRetryable)
          assert.include(error.message, "the address of PostgreSQL itself")
        }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)))
    }
  }

  it.live("a program that only submits works: submit, status, await and cancel, with a worker that is connected directly", () =>
    Effect.gen(function*() {
      const direct = yield* databaseUrl
      const url = yield* transactionPooler(direct, 3)
      const worker = yield* over(JobRuntime.layer({ gracePeriod: 0 }), { url: direct })
      const stops = yield* makeStops
      yield* Effect.provide(JobHandlers.register("Ends", Effect.succeed), worker)
      yield* Effect.provide(JobHandlers.register("Stays", () => stops.stop("running")), worker)
      const jobs = Context.get(yield* over(JobRuntime.layerClient(), { url, prepare: false }), Jobs.Jobs)

      const { jobIds } = yield* jobs.submit(Array.from({ length: 20 }, (_, payload) => ({ type: "Ends", payload })))
      const results = yield* Effect.forEach(jobIds, (id) => jobs.await(id), { concurrency: "unbounded" })
      assert.deepStrictEqual(results, Array.from({ length: 20 }, (_, payload) => payload))
      const staying = yield* jobs.submit({ type: "Stays" })
      yield* stops.arrived("running")
      yield* jobs.cancel(staying)
      assert.strictEqual((yield* jobs.status(staying)).state, "cancelled")
    }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)))
})

/**
 * How does a program submit to several databases? One client each, and something of the job that says which: here its tenant.
 *
 * What is no longer one transaction: ../docs/beyond-one-postgres.md. In a program of yours import from "millrace".
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { type JobQueue, JobRuntime, Jobs, Postgres } from "../src/index.ts"

/** The client of a tenant's database. */
export class Databases extends Context.Service<Databases, {
  readonly of: (tenantId: string) => Jobs.Jobs["Service"]
}>()("app/Databases") {
  static readonly layer = (
    queues: ReadonlyArray<JobQueue.JobQueue>,
    urls: readonly [string, ...ReadonlyArray<string>],
    /** A number from 0 for each tenant. Moving one is a change of this and of nothing else. */
    placeOf: (tenantId: string) => number
  ) =>
    Layer.effect(
      Databases,
      Effect.gen(function*() {
        // Fresh: no part of one is taken for the other's.
        const open = (url: string) =>
          Layer.build(
            Layer.fresh(JobRuntime.layerClient({ queues }).pipe(Layer.provide(Postgres.layer({ url }))))
          ).pipe(Effect.map((services) => Context.get(services, Jobs.Jobs)))
        const first = yield* open(urls[0])
        const all = [first, ...yield* Effect.forEach(urls.slice(1), open)]
        return Databases.of({ of: (tenantId) => all[placeOf(tenantId) % all.length] ?? first })
      })
    )
}

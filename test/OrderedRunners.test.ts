/**
 * The order of each key, while its partition moves between runners: what one of them has begun ends before another goes on.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { SqlClient } from "effect/sql/SqlClient"
import * as Job from "../src/Job.ts"
import type { JobId } from "../src/JobId.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Jobs from "../src/Jobs.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { untilFinal } from "./utils/child.ts"
import { TestDatabase } from "./utils/database.ts"
import { startProgram } from "./utils/programs.ts"
import { until } from "./utils/runtime.ts"

const Lines = JobQueue.make("lines", { concurrency: 12, partitions: 4, partitionBy: "key", ordered: true })

/** Writes its number, in the order of commits; every seventh fails at first. */
class Next extends Job.make("Next", {
  payload: Schema.Struct({ line: Schema.String, n: Schema.Int }),
  queue: Lines,
  key: ({ line }) => line,
  retry: RetryPolicy.fixed("20 millis", { maxAttempts: 2 })
}) {}

const failed = new Set<string>()

const NextLive = Next.toLayer(({ line, n }) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient
    yield* sql`insert into public.steps (line, n) values (${line}, ${n})`
    const name = `${line} ${n}`
    if (n % 7 !== 0 || failed.has(name)) return
    failed.add(name)
    return yield* Effect.die("at first it fails, after it has written")
  }).pipe(Effect.catchTag("SqlError", Effect.fail))
)

const runner = startProgram(
  Layer.provideMerge(
    NextLive,
    JobRuntime.layerCluster({ queues: [Lines], host: "127.0.0.1", port: 0, gracePeriod: "5 seconds" })
  )
)

describe("the order of keys", () => {
  it.live("is kept while runners join and leave, and attempts fail", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      yield* sql`create table public.steps (at bigint generated always as identity, line text not null, n int not null)`
      const client = yield* Layer.build(JobRuntime.layerClient({ queues: [Lines] }))
      const { submit } = Context.get(client, Jobs.Jobs)
      const lines = Array.from({ length: 10 }, (_, index) => `line ${index}`)
      const batches: Array<ReadonlyArray<JobId>> = []
      let n = 0
      // A few jobs of each line are always on their way: how many come goes by how many end.
      const load = Effect.gen(function*() {
        n++
        const { jobIds } = yield* submit(lines.map((line) => Next.request({ line, n })))
        batches.push(jobIds)
        yield* untilFinal(sql, batches.at(-4) ?? [])
      }).pipe(Effect.forever)
      const loading = yield* Effect.forkScoped(load)
      const untilMore = Effect.suspend(() => {
        const enough = n + 40
        return Effect.raceFirst(until(Effect.sync(() => n >= enough)), Fiber.join(loading))
      })
      const first = yield* runner
      yield* untilMore
      const second = yield* runner
      yield* untilMore
      yield* first.stop
      yield* untilMore
      const third = yield* runner
      yield* untilMore
      yield* Fiber.interrupt(loading)
      const ids = batches.flat()
      yield* untilFinal(sql, ids)
      yield* second.stop
      yield* third.stop

      const steps = yield* sql<
        { readonly line: string; readonly n: number }
      >`select line, n from public.steps order by at`
      assert.isAtLeast(steps.length, ids.length)
      for (const line of lines) {
        const seen = steps.filter((step) => step.line === line).map((step) => step.n)
        assert.deepStrictEqual(seen, seen.map((_, index) => index + 1), line)
      }
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)), 90_000)
})

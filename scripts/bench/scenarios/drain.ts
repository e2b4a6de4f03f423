/**
 * How fast waiting jobs are run by one fresh process, until the last one's end is durable.
 */
import * as Effect from "effect/Effect"
import { BenchError } from "../BenchError.ts"
import { jobsFor } from "../Registry.ts"
import { Scale } from "../Scale.ts"
import { drain as runAll, preload, rate, type Scenario } from "../Scenario.ts"
import * as Server from "../Server.ts"
import type { Work } from "../System.ts"

const scenario = (name: string, what: string, work: Work, share: number): Scenario => ({
  name,
  what,
  work,
  measure: (turn) =>
    Effect.gen(function*() {
      const scale = yield* Scale
      const jobs = jobsFor(turn.system, name, scale.jobs * share)
      const connect = yield* preload(turn, work, jobs)
      const { drained, extra } = yield* runAll(turn.system, connect, jobs, "settled")
      const rows = yield* Server.number(connect.url, "select count(*)::int from public.bench_rows")
      const expected = work === "noop" ? 0 : jobs
      if (rows !== expected) {
        return yield* new BenchError({
          message: `${turn.system.name}, ${name}: ${rows} rows were written by ${expected} jobs`
        })
      }
      return [
        { metric: "rate", value: rate(jobs, drained.millis), unit: "jobs/s", isMoreBetter: true, jobs, extra }
      ]
    })
})

export const drain = scenario("drain", "waiting jobs whose handlers do nothing", "noop", 1)

export const drainTx = scenario(
  "drainTx",
  "each handler writes a row, and the job's completion is in its transaction where the system can",
  "write",
  0.5
)

export const drainGrouped = scenario(
  "drainGrouped",
  "the same with many jobs a transaction, in the system's best way",
  "grouped",
  1
)

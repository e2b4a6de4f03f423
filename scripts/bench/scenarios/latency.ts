/**
 * How soon a job starts on an idle queue: from before `submit` to the handler's first line, in one process.
 */
import * as Effect from "effect/Effect"
import { BenchError } from "../BenchError.ts"
import { percentile } from "../measure.ts"
import type { Latencies } from "../protocol.ts"
import { Scale } from "../Scale.ts"
import { fresh, prepared, type Scenario, withCost } from "../Scenario.ts"

/** Fails where a job never started. */
export const checked = (whose: string, { at, took }: Latencies): Effect.Effect<Latencies, BenchError> => {
  const lost = took.filter(Number.isNaN).length
  return lost === 0
    ? Effect.succeed({ at, took })
    : Effect.fail(new BenchError({ message: `${whose}: ${lost} of ${took.length} jobs did not start within a minute` }))
}

export const distribution = (took: Float64Array): Readonly<Record<string, number>> =>
  Object.fromEntries([0.1, 0.5, 0.9, 0.99].map((part) => [`p${part * 100}`, percentile(took, part)]))

export const latency: Scenario = {
  name: "latency",
  what: "one submit every 20 ms on an idle queue, from before it to the handler's first line",
  work: "noop",
  decidedBy: "p50",
  measure: (turn) =>
    Effect.gen(function*() {
      const { samples, warmUp } = yield* Scale
      const connect = yield* fresh(turn, "noop")
      const { extra, result } = yield* prepared(turn.system, connect, (worker) =>
        Effect.gen(function*() {
          const pace = (jobs: number) => worker.call("pace", { jobs, everyMillis: 20, isUrgent: false })
          yield* worker.call("run", undefined)
          yield* pace(warmUp)
          return yield* withCost(worker, connect.url, samples, pace(samples))
        }))
      const { took } = yield* checked(`${turn.system.name}, latency`, result)
      const parts = distribution(took)
      return ["p50", "p90", "p99"].map((metric) => ({
        metric,
        value: parts[metric] ?? Number.NaN,
        unit: "ms",
        isMoreBetter: false,
        jobs: samples,
        ...(metric === "p50" ? { extra } : {})
      }))
    })
}

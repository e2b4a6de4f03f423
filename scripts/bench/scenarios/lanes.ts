/**
 * Whether an urgent job waits behind many that are not: its start latency while a long queue of low ones is being run, against an idle
 * queue's.
 */
import * as Effect from "effect/Effect"
import { percentile } from "../measure.ts"
import { Scale } from "../Scale.ts"
import { connected, preload, type Scenario } from "../Scenario.ts"
import { checked } from "./latency.ts"

export const lanes: Scenario = {
  name: "lanes",
  what: "critical jobs at 50/s while a queue of low ones is run, against an idle queue",
  work: "noop",
  isOwn: true,
  measure: (turn) =>
    Effect.gen(function*() {
      const { jobs, samples, warmUp } = yield* Scale
      const connect = yield* preload(turn, "noop", jobs)
      const { busy, idle } = yield* connected(turn.system, connect, ({ call }) =>
        Effect.gen(function*() {
          const busy = yield* Effect.flatMap(
            call("lanes", { jobs, everyMillis: 20 }),
            (latencies) => checked("lanes, busy", latencies)
          )
          yield* call("pace", { jobs: warmUp, everyMillis: 20, isUrgent: true })
          const idle = yield* call("pace", { jobs: samples, everyMillis: 20, isUrgent: true })
          return { busy: busy.took, idle: (yield* checked("lanes, idle", idle)).took }
        }))
      const sample = (metric: string, part: number) => ({
        metric,
        value: percentile(busy, part),
        reference: percentile(idle, part),
        unit: "ms",
        isMoreBetter: false,
        jobs: busy.length,
        extra: { "idle ms": percentile(idle, part) }
      })
      return [sample("p50", 0.5), sample("p99", 0.99)]
    })
}

/**
 * Whether another program's long transaction on the same database is felt: it keeps vacuum from removing what jobs leave behind.
 */
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Cost from "../Cost.ts"
import { percentile } from "../measure.ts"
import type { Latencies } from "../protocol.ts"
import { Scale } from "../Scale.ts"
import { fresh, prepared, type Scenario } from "../Scenario.ts"
import * as Server from "../Server.ts"
import { checked } from "./latency.ts"

/** A snapshot that is held open. */
const hold = (url: string, millis: number) =>
  Effect.scoped(Effect.gen(function*() {
    const { query } = yield* Server.connect(url)
    yield* query("begin isolation level repeatable read")
    yield* query("select count(*) from public.bench_rows")
    yield* Effect.sleep(millis)
    yield* query("commit")
  }))

/** The p99 of the jobs submitted from one time to another. */
const p99 = ({ at, took }: Latencies, from: number, to: number) =>
  percentile(took.filter((_, index) => (at[index] ?? 0) >= from && (at[index] ?? 0) < to), 0.99)

export const neighbour: Scenario = {
  name: "neighbour",
  what: "1,000 jobs/s while a transaction of somebody else's stays open for a part of the time",
  work: "noop",
  isOwn: true,
  isOnce: true,
  measure: (turn) =>
    Effect.gen(function*() {
      const { heldMillis, loadMillis } = yield* Scale
      const jobs = loadMillis
      const warmUp = Math.ceil(loadMillis / 10)
      const quietMillis = (loadMillis - heldMillis) / 3
      const connect = yield* fresh(turn, "noop")
      const { latencies, left } = yield* prepared(turn.system, connect, ({ call }) =>
        Effect.gen(function*() {
          yield* call("run", undefined)
          // A process that has just begun is slow by itself.
          yield* call("pace", { jobs: warmUp, everyMillis: 1, isUrgent: false })
          const disturbance = yield* Effect.forkChild(Effect.delay(hold(connect.url, heldMillis), quietMillis))
          const measured = yield* call("pace", { jobs, everyMillis: 1, isUrgent: false })
          yield* Effect.sleep("500 millis")
          const left = yield* call("remaining", undefined)
          yield* Fiber.join(disturbance)
          return { latencies: yield* checked("neighbour", measured), left }
        }))
      const dead = yield* Cost.deadTuples(connect.url)
      const quiet = p99(latencies, 0, quietMillis)
      const disturbed = p99(latencies, quietMillis, quietMillis + heldMillis)
      const own = { isMoreBetter: false, jobs }
      return [
        {
          ...own,
          metric: "p99",
          value: disturbed,
          reference: quiet,
          unit: "ms",
          extra: { "quiet p99 ms": quiet, "held ms": heldMillis }
        },
        { ...own, metric: "backlog left", value: left, unit: "jobs" },
        { ...own, metric: "dead tuples", value: dead / (warmUp + jobs), unit: "a job" }
      ]
    })
}

/**
 * What a worker holds in memory while it runs a long queue, and whether that grows.
 */
import * as Effect from "effect/Effect"
import * as Built from "../built.ts"
import { Scale } from "../Scale.ts"
import { drain, preload, type Scenario } from "../Scenario.ts"

export const memory: Scenario = {
  name: "memory",
  what: "resident memory of the worker over a drain ten times as long",
  work: "noop",
  isOwn: true,
  isOnce: true,
  measure: (turn) =>
    Effect.gen(function*() {
      const scale = yield* Scale
      const jobs = scale.jobs * 10
      const connect = yield* preload(turn, "noop", jobs)
      const { drained } = yield* drain(yield* Built.millrace, connect, jobs, "settled")
      const { peakRssMb, rss } = drained
      /** The most, while the jobs from one part of them to another began. */
      const most = (from: number, to: number) =>
        Math.max(...rss.filter(({ starts }) => starts >= from * jobs && starts <= to * jobs).map(({ mb }) => mb))
      const early = most(0.1, 0.4)
      const late = most(0.7, 1)
      // Too short to have samples in both parts: nothing is known of growth.
      const isKnown = Number.isFinite(early) && Number.isFinite(late)
      const start = rss[0]?.mb ?? peakRssMb
      const end = rss.at(-1)?.mb ?? peakRssMb
      const own = { isMoreBetter: false, jobs }
      return [
        { ...own, metric: "peak", value: peakRssMb, unit: "MB", extra: { start, end } },
        {
          ...own,
          metric: "growth",
          value: isKnown ? late / early : 1,
          unit: "times",
          extra: isKnown ? { early, late } : {}
        }
      ]
    })
}

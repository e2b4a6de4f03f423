/**
 * How fast several processes run one queue: the same jobs with more runners and more partitions. The jobs are stored by one transaction when
 * the partitions have found their runners: what joining takes is not measured, and placement is as it falls.
 */
import * as Effect from "effect/Effect"
import { BenchError } from "../BenchError.ts"
import * as Cost from "../Cost.ts"
import { Scale } from "../Scale.ts"
import { fresh, inProcess, rate, type Scenario, type Turn } from "../Scenario.ts"
import * as Server from "../Server.ts"
import * as WorkerProcess from "../WorkerProcess.ts"

const owners = `
select string_agg(partition || ' ' || epoch || ' ' || owner, ',' order by partition)
from millrace.partitions join millrace.queues on id = queue_id where name = 'bench' and owner is not null`

/** How long nothing may move until it counts as placed. Runners look who is there once a second. */
const calm = { looks: 12, every: "250 millis" } as const

/** Waits until each partition has its owner and keeps it. */
const placed = Effect.fnUntraced(function*(url: string, partitions: number) {
  const { query } = yield* Server.connect(url)
  let before = ""
  let same = 0
  for (let looks = 0; looks < 240 && same < calm.looks; looks++) {
    const [row] = yield* query(owners)
    const now = typeof row?.[0] === "string" ? row[0] : ""
    same = now === before && now.split(",").length === partitions && now !== "" ? same + 1 : 0
    before = now
    yield* Effect.sleep(calm.every)
  }
  if (same < calm.looks) return yield* new BenchError({ message: `scale: the partitions found no owners: ${before}` })
}, Effect.scoped)

/** One case. Its processes are gone afterwards. */
const measure = Effect.fnUntraced(function*(turn: Turn, jobs: number, runners: number, partitions: number) {
  const { adapter, worker } = turn.system
  const connect = { ...yield* fresh(turn, "noop"), partitions }
  yield* inProcess(turn.system, ({ call }) => call("prepare", connect))
  const start = Effect.tap(WorkerProcess.start(adapter, worker), ({ call }) => call("open", connect))
  const client = yield* start
  const all = yield* Effect.all(Array.from({ length: runners }, () => start))
  yield* Effect.forEach(all, ({ call }) => call("join", undefined), { concurrency: "unbounded", discard: true })
  yield* placed(connect.url, partitions)

  const progress = Effect.forEach(all, ({ call }) => call("progress", undefined), { concurrency: "unbounded" })
  const before = yield* progress
  yield* client.call("submitBatch", { jobs, batch: jobs, callers: 1 })
  const costBefore = yield* Cost.now(connect.url)
  let now = yield* progress
  while (now.reduce((sum, { starts }) => sum + starts, 0) < jobs) {
    yield* Effect.sleep("5 millis")
    now = yield* progress
  }
  while ((yield* client.call("remaining", undefined)) > 0) yield* Effect.sleep("2 millis")
  const end = performance.timeOrigin + performance.now()
  const after = yield* progress
  const cost = yield* Cost.now(connect.url)

  const millis = end - Math.min(...after.map(({ firstAt }) => firstAt).filter(Number.isFinite))
  const node = after.reduce((sum, { cpuMicros }, index) => sum + cpuMicros - (before[index]?.cpuMicros ?? 0), 0)
  const shares = after.map(({ starts }) => starts / jobs)
  return {
    value: rate(jobs, millis),
    extra: {
      ...Cost.perJob(costBefore, cost, node, jobs),
      "fullest runner, share of the jobs": Math.max(...shares),
      "idle runners": shares.filter((share) => share === 0).length
    }
  }
}, Effect.scoped)

export const scale: Scenario = {
  name: "scale",
  what: "waiting jobs whose handlers do nothing, run by several processes: runners x partitions, against 1 x 1",
  work: "noop",
  isOwn: true,
  measure: (turn) =>
    Effect.gen(function*() {
      const { jobs, partitions, runners } = yield* Scale
      const cases = runners.flatMap((runners) => partitions.map((partitions) => ({ runners, partitions })))
      const measured = yield* Effect.forEach(cases, (one) =>
        Effect.map(measure(turn, jobs, one.runners, one.partitions), (figures) => ({ ...one, ...figures })))
      const [{ value: reference } = { value: Number.NaN }] = measured
      return measured.map(({ extra, partitions, runners, value }) => ({
        metric: `${runners} x ${partitions}`,
        value,
        reference,
        unit: "jobs/s",
        isMoreBetter: true,
        jobs,
        extra
      }))
    })
}

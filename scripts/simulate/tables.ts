/**
 * What is asked of the simulation, and the answers as tables.
 */
import { dice } from "../chaos/Seed.ts"
import { type Fault, type Options, type Outcome, simulate } from "./Cluster.ts"
import * as Inputs from "./inputs.ts"
import { spread } from "./placement.ts"

export interface Table {
  readonly title: string
  /** What holds for this table alone. */
  readonly assumed: string
  readonly heads: ReadonlyArray<string>
  readonly lines: ReadonlyArray<ReadonlyArray<string>>
}

const figure = (value: number): string =>
  value.toLocaleString("en-US", { maximumFractionDigits: value >= 100 ? 0 : value >= 10 ? 1 : 2 })

const percentile = (sorted: Float64Array, part: number) =>
  sorted[Math.min(Math.floor(sorted.length * part), sorted.length - 1)] ?? 0

const range = (length: number, from = 0) => Array.from({ length }, (_, index) => index + from)

// ------------------------------------------------------------------------------------------------ placement

const placement = (seed: number): Table => ({
  title: "Where partitions go",
  assumed: "100 draws of addresses and queue names for each line.",
  heads: ["runners", "partitions", "shards", "even", "fullest: mean", "fullest: worst", "runners without any, mean"],
  lines: [[2, 4], [2, 8], [4, 8], [4, 16], [8, 16], [8, 32], [16, 64]].flatMap(([runners = 0, partitions = 0]) =>
    [16, 64, 300].map((shards) => {
      const random = dice(seed, `placement/${runners}/${partitions}/${shards}`)
      const draws = range(100).map(() =>
        spread(range(runners, random.between(0, 60_000)), `queue-${random.between(0, 1e6)}`, partitions, shards)
      )
      const mean = (of: (draw: (typeof draws)[number]) => number) =>
        draws.reduce((sum, draw) => sum + of(draw), 0) / draws.length
      return [
        figure(runners),
        figure(partitions),
        figure(shards),
        figure(partitions / runners),
        figure(mean(({ fullest }) => fullest)),
        figure(Math.max(...draws.map(({ fullest }) => fullest))),
        figure(mean(({ idle }) => idle))
      ]
    })
  )
})

// ------------------------------------------------------------------------------------------------ what runners live through

const usual = {
  runners: 4,
  partitions: 16,
  concurrency: 160,
  rate: 1_000,
  handlerMs: 50,
  nodeMicros: Inputs.costs["own transaction"].nodeMicros,
  forMs: 30_000
} satisfies Partial<Options>

const latencyHeads = ["start latency p50, ms", "p99", "longest", "delayed by > 1 s, %"]

/** Of all jobs that started. */
const latencies = (outcomes: ReadonlyArray<Outcome>): ReadonlyArray<string> => {
  const waited = Float64Array.from(outcomes.flatMap(({ starts }) => starts.map((start) => start.waited))).sort()
  const late = waited.filter((millis) => millis > 1_000).length / Math.max(waited.length, 1) * 100
  return [percentile(waited, 0.5), percentile(waited, 0.99), waited.at(-1) ?? 0, late].map(figure)
}

const stallHeads = ["stalls of a shard", "stall p50, ms", "stall p99", "longest stall"]

const stallsOf = (outcomes: ReadonlyArray<Outcome>): ReadonlyArray<string> => {
  const stalls = Float64Array.from(outcomes.flatMap(({ stalls }) => stalls)).sort()
  return [
    stalls.length / outcomes.length,
    percentile(stalls, 0.5),
    percentile(stalls, 0.99),
    stalls.at(-1) ?? 0
  ].map(figure)
}

type Faults = ReadonlyArray<{ readonly at: number; readonly fault: Fault; readonly runner: number }>

/** The same story, told often, with other dice. */
const often = (seed: number, name: string, options: Partial<Options>, faults: Faults, times = 20) =>
  range(times).map((time) => simulate({ ...usual, dice: dice(seed, `${name}/${time}`), ...options }, faults))

const describe = ({ concurrency, handlerMs, partitions, rate, runners }: typeof usual) =>
  `${runners} runners, ${partitions} partitions, ${
    figure(rate)
  } jobs/s, handlers of ${handlerMs} ms, ${concurrency} at once`

const failover = (seed: number): Table => ({
  title: "One of the runners goes",
  assumed: `${describe(usual)}; 30 seconds, 20 times; the fault after 10 seconds.`,
  heads: ["what happens", ...stallHeads, ...latencyHeads, "jobs that crashed"],
  lines: ([["nothing", undefined], ["kill -9", "kill"], ["frozen (SIGSTOP)", "freeze"], ["SIGTERM", "stop"]] as const)
    .map(([name, fault]) => {
      const outcomes = often(seed, name, {}, fault === undefined ? [] : [{ at: 10_000, fault, runner: 1 }])
      const crashed = outcomes.reduce((sum, outcome) => sum + outcome.crashed, 0) / outcomes.length
      return [name, ...stallsOf(outcomes), ...latencies(outcomes), figure(crashed)]
    })
})

const deploy = (seed: number): Table => {
  const { runners } = usual
  const apart = range(runners).flatMap((index): Faults => [
    { at: 5_000 + index * 10_000, fault: "join", runner: runners + index },
    { at: 10_000 + index * 10_000, fault: "stop", runner: index }
  ])
  /** Seconds apart, as processes start; then all old ones stop. */
  const together = range(runners).flatMap((index): Faults => [
    { at: 5_000 + index * 700, fault: "join", runner: runners + index },
    { at: 20_000, fault: "stop", runner: index }
  ])
  const ways = [
    ["one new, one old, in turn", apart, 0],
    ["the same, joinDebounce 3 s", apart, 3_000],
    ["all new, then no old", together, 0],
    ["the same, joinDebounce 3 s", together, 3_000]
  ] as const
  return {
    title: "A rolling deploy",
    assumed: `${describe(usual)}; all runners are replaced; 60 seconds, 10 times.`,
    heads: ["how", ...stallHeads, ...latencyHeads],
    lines: ways.map(([name, faults, joinDebounce], index) => {
      const outcomes = often(seed, `deploy/${index}`, { forMs: 60_000, joinDebounce }, faults, 10)
      return [name, ...stallsOf(outcomes), ...latencies(outcomes)]
    })
  }
}

const hot = (seed: number): Table => {
  const cases = [
    ["even", {}],
    ["70 % in one partition", { hot: 0.7 }],
    ["70 % in one of 4 partitions", { hot: 0.7, partitions: 4 }],
    ["70 % in one of 64 partitions", { hot: 0.7, partitions: 64 }],
    ["70 % in one, 640 at once", { hot: 0.7, concurrency: 640 }]
  ] as const
  return {
    title: "A hot partition",
    assumed: `${
      describe(usual)
    }; what is hot has one key or tenant, so more partitions do not divide it; 30 seconds, 5 times.`,
    heads: ["load", "a partition's handlers at once", ...latencyHeads, "backlog after 30 s"],
    lines: cases.map(([name, options]) => {
      const outcomes = often(seed, name, options, [], 5)
      const { concurrency, partitions } = { ...usual, ...options }
      const backlog = outcomes.reduce((sum, outcome) => sum + outcome.backlog, 0) / outcomes.length
      return [name, figure(Math.floor(concurrency / partitions)), ...latencies(outcomes), figure(backlog)]
    })
  }
}

// ------------------------------------------------------------------------------------------------ a large load

/** What a load costs, for jobs of a kind. */
export const load = (aDay: number, kind: keyof typeof Inputs.costs, peak: number) => {
  const mean = aDay / 86_400
  const { databaseMicros, nodeMicros, walBytes } = Inputs.costs[kind]
  const perJob = {
    node: nodeMicros + Inputs.storing.nodeMicros,
    database: databaseMicros + Inputs.storing.databaseMicros
  }
  const cores = (micros: number) => mean * peak * micros / 1e6 / Inputs.fullness
  const runners = Math.ceil(mean * peak * nodeMicros / 1e6 / Inputs.fullness)
  const clients = Math.max(2, Math.ceil(mean * peak * Inputs.storing.nodeMicros / 1e6 / Inputs.fullness))
  return {
    peakRate: mean * peak,
    nodeCores: cores(perJob.node),
    databaseCores: cores(perJob.database),
    runners,
    connections: runners * Inputs.connections.worker + clients * Inputs.connections.client,
    walGbADay: aDay * (walBytes + Inputs.storing.walBytes) / 1e9,
    walMbASecond: mean * peak * (walBytes + Inputs.storing.walBytes) / 1e6,
    deadAMinute: mean * peak * 60 * Inputs.deadTuples,
    finishedGb: aDay * 7 * Inputs.finishedBytes / 1e9
  }
}

const large = (aDay: number, peak: number): Table => ({
  title: `${figure(aDay)} jobs a day`,
  assumed: `by the costs alone, a peak of ${peak} times the mean; cores ${
    Inputs.fullness * 100
  } % full at the peak; the defaults' connections; a history of 7 days.`,
  heads: [
    "jobs",
    "peak, jobs/s",
    "cores for Node",
    "cores for PostgreSQL",
    "runners",
    "connections",
    "WAL, GB a day",
    "WAL at the peak, MB/s",
    "dead tuples a minute",
    "finished_jobs, GB"
  ],
  lines: (["no SQL", "grouped", "own transaction"] as const).map((kind) => [
    kind,
    ...Object.values(load(aDay, kind, peak)).map(figure)
  ])
})

/** All tables. The same seed gives the same ones. */
export const tables = (seed: number): ReadonlyArray<Table> => [
  placement(seed),
  failover(seed),
  deploy(seed),
  hot(seed),
  large(1e8, 3),
  large(1e9, 3)
]

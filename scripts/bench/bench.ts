/**
 * A run: every scenario, round by round, the systems of a round in turn. A measurement that fails leaves a gap and is told at the end; the
 * others go on.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { BenchError } from "./BenchError.ts"
import * as Commit from "./Commit.ts"
import * as Compare from "./compare.ts"
import * as Cost from "./Cost.ts"
import * as Environment from "./environment.ts"
import { ratiosOf, type Sample, summarize } from "./measure.ts"
import type { Description } from "./protocol.ts"
import * as Redis from "./Redis.ts"
import * as Registry from "./Registry.ts"
import * as Results from "./results.ts"
import { Scale } from "./Scale.ts"
import { inProcess, type Scenario, type Turn } from "./Scenario.ts"
import * as Server from "./Server.ts"
import { show } from "./table.ts"
import { withTargets } from "./targets.ts"

/** What the command line says. */
export interface Options {
  readonly scenarios: ReadonlyArray<Scenario>
  readonly others: ReadonlyArray<Registry.Entry>
  /** The commit to compare the working tree with. */
  readonly against: Commit.Commit | undefined
  readonly isJson: boolean
  readonly out: string
}

/** A system that is ready to be measured. */
interface Ready {
  readonly system: Registry.Entry
  readonly redis: Redis.Redis | undefined
  readonly description: Description
}

/** Those that can be measured here; of the others, why not. */
const makeReady = Effect.fnUntraced(function*(systems: ReadonlyArray<Registry.Entry>) {
  const redis = systems.some(({ needsRedis }) => needsRedis) ? yield* Effect.result(Redis.start) : undefined
  const results = yield* Effect.forEach(systems, (system) =>
    Effect.gen(function*() {
      const own = system.needsRedis === true && redis !== undefined ? yield* Effect.fromResult(redis) : undefined
      yield* Registry.install(system)
      const description = yield* inProcess(system, ({ call }) => call("describe", undefined))
      return { system, redis: own, description } satisfies Ready
    }).pipe(Effect.result, Effect.map((result) => ({ system, result }))))
  return {
    ready: results.flatMap(({ result }) => Result.isSuccess(result) ? [result.success] : []),
    leftOut: results.flatMap(({ result, system }) =>
      Result.isFailure(result) ? [{ system: system.name, because: result.failure.message }] : []
    )
  }
})

/** Begins with another one each round, so that none is always first. */
const rotated = <A>(all: ReadonlyArray<A>, by: number): ReadonlyArray<A> => {
  const from = by % Math.max(all.length, 1)
  return [...all.slice(from), ...all.slice(0, from)]
}

/** The order of a round. Of two commits each goes first in every other round, also with peers around them. */
const inTurn = <A>(all: ReadonlyArray<A>, round: number, isComparison: boolean): ReadonlyArray<A> =>
  isComparison ? (round % 2 === 1 ? all : all.toReversed()) : rotated(all, round - 1)

/** The samples of a scenario by metric, then system, then round; and what failed. */
const measureAll = Effect.fnUntraced(function*(
  scenario: Scenario,
  systems: ReadonlyArray<Ready>,
  isComparison: boolean
) {
  const { rounds: asked } = yield* Scale
  const rounds = scenario.isOnce === true ? 1 : asked
  const samples: Array<Sample & { readonly system: string; readonly round: number }> = []
  const failures: Array<Results.Run["failures"][number]> = []
  for (let round = 1; round <= rounds; round++) {
    for (const { redis, system } of inTurn(systems, round, isComparison)) {
      if (failures.some((failure) => failure.system === system.name)) continue
      const turn: Turn = { system, round, redis }
      const measured = yield* Effect.result(Effect.scoped(scenario.measure(turn)))
      const head = `${scenario.name}, round ${round} of ${rounds}, ${system.name}:`
      if (Result.isFailure(measured)) {
        const { message } = measured.failure
        failures.push({ scenario: scenario.name, system: system.name, message })
        yield* Console.error(`${head} failed: ${message}`)
      } else {
        const found = isComparison
          ? [...measured.success, ...measured.success.flatMap((sample) => Compare.costOf(sample) ?? [])]
          : measured.success
        samples.push(...found.map((sample) => ({ ...sample, system: system.name, round })))
        const figures = found.map(({ metric, unit, value }) => `${metric} ${Number(value.toPrecision(4))} ${unit}`)
        yield* Console.error(`${head} ${figures.join(", ")}`)
      }
    }
  }
  return { samples, failures }
})

const rowsOf = (
  scenario: Scenario,
  systems: ReadonlyArray<Ready>,
  samples: Effect.Success<ReturnType<typeof measureAll>>["samples"],
  against: Commit.Commit | undefined
): ReadonlyArray<Results.Row> => {
  const metrics = [...new Set(samples.map(({ metric }) => metric))]
  const rows = metrics.flatMap((metric) => {
    const roundsOf = (name: string) =>
      new Map(
        samples.filter((sample) => sample.metric === metric && sample.system === name).map((sample) => [
          sample.round,
          sample
        ])
      )
    const own = roundsOf(Registry.millrace.name)
    return systems.flatMap(({ system: { name } }) => {
      const rounds = roundsOf(name)
      const row = summarize(scenario.name, name, rounds, own)
      if (row === undefined) return []
      return row.system === against?.name
        ? Compare.compared(row, ratiosOf(rounds, own), scenario.decidedBy ?? "cost")
        : row
    })
  })
  // The targets are of the full benchmark beside its peers.
  return against === undefined ? withTargets(rows) : rows
}

/** The earlier commit as a system. Fails where a cost would not be known. */
const earlier = Effect.fnUntraced(function*(commit: Commit.Commit) {
  const { url } = yield* Server.Server
  if ((yield* Cost.now(url)).cpuMicros === undefined) {
    return yield* new BenchError({
      message:
        "--against compares processor time, and the database's is not known here. It needs Linux, and DATABASE_URL unset"
    })
  }
  return yield* Commit.system(commit)
})

export const run = Effect.fnUntraced(function*({ against, isJson, others, out, scenarios }: Options) {
  const scale = yield* Scale
  const environment = yield* Environment.describe
  const compared = against === undefined ? [] : [yield* earlier(against)]
  const { leftOut, ready } = yield* makeReady([Registry.millrace, ...compared, ...others])
  for (const { because, system } of leftOut) yield* Console.error(`Without ${system}: ${because}`)
  const missing = against === undefined
    ? undefined
    : leftOut.find(({ system }) => system === against.name || system === Registry.millrace.name)
  if (missing !== undefined) {
    return yield* new BenchError({ message: `${missing.system} does not start: ${missing.because}` })
  }
  const rows: Array<Results.Row> = []
  const failures: Array<Results.Run["failures"][number]> = []
  const fewer: Array<string> = []

  for (const scenario of scenarios) {
    const systems = ready.filter(({ description, system }) =>
      scenario.isOwn === true ? system.name === Registry.millrace.name : description.works.includes(scenario.work)
    )
    const slow = Registry.slowIn(scenario.name, systems.map(({ system }) => system))
    const measured = yield* measureAll(scenario, systems, against !== undefined)
    const found = rowsOf(scenario, systems, measured.samples, against)
    rows.push(...found)
    failures.push(...measured.failures)
    fewer.push(...slow.map((words) => `${scenario.name}: ${words}`))
    const words = slow.length === 0 ? scenario.what : `${scenario.what} (${slow.join(", ")})`
    yield* isJson
      ? Effect.forEach(found, (row) => Console.log(JSON.stringify(row)), { discard: true })
      : Console.log(show(scenario.name, words, found))
    yield* Results.write(out, {
      ...environment,
      ...(against === undefined ? {} : { against: against.hash }),
      jobs: scale.jobs,
      rounds: scale.rounds,
      isQuick: scale.isQuick,
      systems: ready.map(({ description: { description }, system: { name } }) => ({ name, description })),
      leftOut,
      failures,
      fewer
    }, rows)
  }
  if (!isJson) { for (const { because, system } of leftOut) yield* Console.log(`\nWithout ${system}: ${because}`) }
  const next = against === undefined ? `; "npx node scripts/bench/report.ts ${out}" makes the page and the picture` : ""
  yield* Console.error(`\nResults are in ${out}${next}.`)
  if (failures.length > 0) {
    const lines = failures.map(({ message, scenario, system }) => `  ${scenario}, ${system}: ${message.split("\n")[0]}`)
    return yield* new BenchError({ message: ["Not all could be measured:", ...lines].join("\n") })
  }
  const unproven = against === undefined ? [] : Compare.unproven(scenarios.map(({ name }) => name), rows)
  if (unproven.length > 0) {
    const lines = unproven.map((words) => `  ${words}`)
    return yield* new BenchError({ message: [`Not shown to be no worse than ${against?.name}:`, ...lines].join("\n") })
  }
})

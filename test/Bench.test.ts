/**
 * The benchmark, as a process with tiny counts: every scenario still runs and says something. Nothing here is about speed.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { fileURLToPath } from "node:url"

const script = (name: string) => fileURLToPath(new URL(`../scripts/bench/${name}.ts`, import.meta.url))

/** Runs it to its end, on a database of its own. */
const run = Effect.fnUntraced(function*(name: string, ...args: ReadonlyArray<string>) {
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  const handle = yield* spawner.spawn(
    ChildProcess.make(process.execPath, [script(name), ...args], { env: { DATABASE_URL: "" }, extendEnv: true })
  )
  const text = (output: Stream.Stream<Uint8Array, unknown>) => Stream.mkString(Stream.decodeText(output))
  const [stdout, stderr] = yield* Effect.all([text(handle.stdout), text(handle.stderr)], { concurrency: 2 })
  return { code: Number(yield* handle.exitCode), stdout, stderr }
}, Effect.scoped)

const Line = Schema.fromJsonString(Schema.Struct({
  scenario: Schema.String,
  metric: Schema.String,
  system: Schema.String,
  median: Schema.Finite,
  min: Schema.Finite,
  max: Schema.Finite,
  unit: Schema.String,
  rounds: Schema.Int,
  jobs: Schema.Int,
  ratio: Schema.Finite
}))

/** Every figure, and whether plain SQL has it too. */
const expected = [
  ["submit", "rate", true],
  ["submitBatch", "rate", true],
  ["drain", "rate", true],
  ["drainTx", "rate", true],
  ["drainGrouped", "rate", true],
  ["latency", "p50", true],
  ["latency", "p90", true],
  ["latency", "p99", true],
  ["backlog", "rate", false],
  ["neighbour", "p99", false],
  ["neighbour", "backlog left", false],
  ["neighbour", "dead tuples", false],
  ["lanes", "p50", false],
  ["lanes", "p99", false],
  ["startup", "running server", false],
  ["startup", "embedded server", false],
  ["memory", "peak", false],
  ["memory", "growth", false]
] as const

/** The same for several processes on one queue, which take longer to find each other than to run so few jobs. */
const expectedOfScale = [
  ["scale", "1 x 1", false],
  ["scale", "1 x 2", false],
  ["scale", "2 x 1", false],
  ["scale", "2 x 2", false]
] as const

const tiny = ["--peers", "bare", "--jobs", "50", "--rounds", "1", "--seconds", "1", "--quick"]

/** Runs the scenarios of these figures, and compares what they say. */
const measure = Effect.fnUntraced(function*(
  figures: ReadonlyArray<readonly [scenario: string, metric: string, hasBare: boolean]>,
  out: string
) {
  const scenarios = new Set(figures.map(([scenario]) => scenario))
  const { code, stderr, stdout } = yield* run("main", ...scenarios, "--json", ...tiny, "--out", out)
  expect(code === 0 ? "" : stderr).toBe("")
  const rows = yield* Schema.decodeUnknownEffect(Schema.Array(Line))(stdout.trim().split("\n"))
  expect(rows.map(({ metric, scenario, system }) => [scenario, metric, system])).toEqual(
    figures.flatMap(([scenario, metric, hasBare]) =>
      ["millrace", ...hasBare ? ["bare"] : []].map((system) => [scenario, metric, system])
    )
  )
  for (const { jobs, max, median, metric, min, ratio, rounds } of rows) {
    expect(rounds).toBe(1)
    expect([median, min, max, ratio, jobs].every((value) => value > 0) || metric === "backlog left").toBe(true)
  }
})

describe("the benchmark", () => {
  it.live("has a figure for every scenario and system, which the report can show", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const { join } = yield* Path.Path
      const folder = yield* fs.makeTempDirectoryScoped({ prefix: "millrace-bench-test-" })
      const out = join(folder, "results.jsonl")
      yield* measure(expected, out)

      const page = join(folder, "page.md")
      const svg = join(folder, "results.svg")
      yield* fs.writeFileString(page, "before\n\n<!-- bench:begin -->\nold\n<!-- bench:end -->\n\nafter\n")
      expect(yield* run("report", out, "--into", page, "--svg", svg)).toMatchObject({ code: 0 })
      const text = yield* fs.readFileString(page)
      expect(text).toMatch(
        /^before\n\n<!-- bench:begin -->\n\nMeasured on [^]*\| `drain`, jobs\/s [^]*<!-- bench:end -->\n\nafter\n$/
      )
      expect(text).not.toMatch(/old|undefined|NaN/)
      expect(yield* fs.readFileString(svg)).toMatch(/^<svg [^]*bare[^]*<\/svg>\n$/)
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)), 240_000)

  it.live(
    "has a figure for every number of runners and partitions, which the report can show",
    () =>
      Effect.gen(function*() {
        const fs = yield* FileSystem.FileSystem
        const { join } = yield* Path.Path
        const folder = yield* fs.makeTempDirectoryScoped({ prefix: "millrace-bench-test-" })
        const out = join(folder, "results.jsonl")
        yield* measure(expectedOfScale, out)
        const page = join(folder, "page.md")
        yield* fs.writeFileString(page, "<!-- bench:begin -->\n<!-- bench:end -->\n")
        expect(yield* run("report", out, "--into", page, "--svg", join(folder, "results.svg"))).toMatchObject({
          code: 0
        })
        const text = yield* fs.readFileString(page)
        expect(text).toMatch(/fullest runner[^]*\| 2 x 2 /)
        expect(text).not.toMatch(/undefined|NaN/)
      }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
    240_000
  )

  it.live("says which scenarios and peers there are when it is asked for another", () =>
    Effect.gen(function*() {
      const scenario = yield* run("main", "drian")
      expect(scenario.code).toBe(1)
      expect(scenario.stdout + scenario.stderr).toContain(
        "There is no scenario \"drian\". There are: submit, submitBatch, drain, drainTx, drainGrouped, latency, backlog, neighbour, lanes, startup, memory, scale"
      )
      const peer = yield* run("main", "drain", "--peers", "bare,sidekiq")
      expect(peer.code).toBe(1)
      expect(peer.stdout + peer.stderr).toContain(
        "There is no peer \"sidekiq\". There are: bare, graphile-worker, pg-boss, pg-boss-by-hand, bullmq, effect-mq"
      )
      for (const { stderr, stdout } of [scenario, peer]) expect(stdout + stderr).not.toMatch(/BenchError|^ +at /m)
    }).pipe(Effect.provide(NodeServices.layer)), 60_000)

  it.live("says that there are no results to report", () =>
    Effect.gen(function*() {
      const { code, stderr, stdout } = yield* run("report", "/nowhere/results.jsonl")
      expect(code).toBe(1)
      expect(stdout + stderr).toContain("The results cannot be read: ")
    }).pipe(Effect.provide(NodeServices.layer)), 60_000)
})

/**
 * The benchmark, as a process with tiny counts: every scenario still runs and says something. Nothing here is about speed.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { fileURLToPath } from "node:url"

const script = (name: string) => fileURLToPath(new URL(`../scripts/bench/${name}.ts`, import.meta.url))

/** A program with no database given. */
const spawn = Effect.fnUntraced(function*(program: string, args: ReadonlyArray<string>, cwd = process.cwd()) {
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  return yield* spawner.spawn(ChildProcess.make(program, args, { cwd, env: { DATABASE_URL: "" }, extendEnv: true }))
})

/** Runs a program to its end. */
const runToEnd = Effect.fnUntraced(function*(program: string, args: ReadonlyArray<string>, cwd?: string) {
  const handle = yield* spawn(program, args, cwd)
  const text = (output: Stream.Stream<Uint8Array, unknown>) => Stream.mkString(Stream.decodeText(output))
  const [stdout, stderr] = yield* Effect.all([text(handle.stdout), text(handle.stderr)], { concurrency: 2 })
  return { code: Number(yield* handle.exitCode), stdout, stderr }
}, Effect.scoped)

/** Runs it to its end, on a database of its own. */
const run = (name: string, ...args: ReadonlyArray<string>) => runToEnd(process.execPath, [script(name), ...args])

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

/** The lines of a comparison with a commit. */
const ComparedLine = Schema.fromJsonString(Schema.Struct({
  metric: Schema.String,
  system: Schema.String,
  rounds: Schema.Int,
  ratio: Schema.Finite,
  ratios: Schema.optionalKey(Schema.Array(Schema.Finite)),
  interval: Schema.optionalKey(Schema.Tuple([Schema.Finite, Schema.Finite])),
  verdict: Schema.optionalKey(Schema.Literals(["no worse", "worse"]))
}))

/** A repository of the test's own: this code in one commit, and another version number in its working tree. */
const repository = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const { join } = yield* Path.Path
  const folder = yield* fs.makeTempDirectoryScoped({ prefix: "millrace-bench-test-" })
  const root = fileURLToPath(new URL("..", import.meta.url))
  for (const name of ["src", "scripts/shared", "scripts/bench", "package.json", "package-lock.json", ".gitignore"]) {
    yield* fs.makeDirectory(join(folder, "scripts"), { recursive: true })
    yield* fs.copy(join(root, name), join(folder, name))
  }
  yield* fs.symlink(join(root, "node_modules"), join(folder, "node_modules"))
  const git = (...args: ReadonlyArray<string>) => runToEnd("git", args, folder)
  yield* git("init", "--quiet")
  yield* git("add", ".")
  const author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
  expect(yield* git(...author, "commit", "--quiet", "--no-verify", "-m", "Earlier")).toMatchObject({ code: 0 })
  const manifest = join(folder, "package.json")
  const text = yield* fs.readFileString(manifest)
  yield* fs.writeFileString(manifest, text.replace(/"version": "[^"]+"/, "\"version\": \"99.0.0\""))
  return {
    main: join(folder, "scripts/bench/main.ts"),
    out: join(folder, "against.jsonl"),
    name: Effect.map(git("rev-parse", "HEAD"), ({ stdout }) => `millrace@${stdout.slice(0, 7)}`),
    worktrees: Effect.map(git("worktree", "list"), ({ stdout }) => stdout.trim().split("\n").length)
  }
})

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

  it.live(
    "compares the working tree with a commit, whose own code runs in a worktree that is removed",
    () =>
      Effect.gen(function*() {
        const fs = yield* FileSystem.FileSystem
        const { main, name, out, worktrees } = yield* repository
        const earlier = yield* name
        const args = ["submit", "--against", "HEAD", "--jobs", "50", "--rounds", "5", "--json", "--out", out]
        const { code, stderr, stdout } = yield* runToEnd(process.execPath, [main, ...args])
        const lines = yield* Schema.decodeUnknownEffect(Schema.Array(ComparedLine))(stdout.trim().split("\n"))
        expect(lines.map(({ metric, rounds, system }) => [metric, system, rounds])).toEqual([
          ["rate", "millrace", 5],
          ["rate", earlier, 5],
          ["cost", "millrace", 5],
          ["cost", earlier, 5]
        ])
        for (const { interval, ratio, ratios } of lines.filter(({ system }) => system === earlier)) {
          expect(ratios).toHaveLength(5)
          expect(interval?.[0]).toBeLessThanOrEqual(ratio)
          expect(interval?.[1]).toBeGreaterThanOrEqual(ratio)
        }
        // So few jobs may be worse by chance.
        const verdict = lines[3]?.verdict
        expect([verdict, code]).toEqual(verdict === "worse" ? ["worse", 1] : ["no worse", 0])
        expect(stderr.includes(`Not shown to be no worse than ${earlier}:`)).toBe(verdict === "worse")
        const [first = ""] = (yield* fs.readFileString(out)).split("\n")
        expect(JSON.parse(first).systems).toEqual([
          { name: "millrace", description: expect.stringMatching(/^Millrace 99[.]0[.]0:/) },
          { name: earlier, description: expect.not.stringMatching(/^Millrace 99[.]0[.]0:/) }
        ])
        expect(yield* worktrees).toBe(1)
      }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
    240_000
  )

  it.live("removes the worktree of an interrupted comparison", () =>
    Effect.gen(function*() {
      const { main, out, worktrees } = yield* repository
      const args = ["submit", "--against", "HEAD", "--jobs", "50", "--rounds", "1000", "--out", out]
      const handle = yield* spawn(process.execPath, [main, ...args])
      const isMeasuring = yield* Deferred.make<void>()
      // To its end: a process whose stderr is closed dies at its next line.
      yield* Stream.decodeText(handle.stderr).pipe(
        Stream.splitLines,
        Stream.runForEach((line) =>
          line.startsWith("submit, round 1 ") ? Deferred.succeed(isMeasuring, undefined) : Effect.void
        ),
        Effect.ensuring(Deferred.succeed(isMeasuring, undefined)),
        Effect.forkScoped
      )
      yield* Deferred.await(isMeasuring)
      expect(yield* worktrees).toBe(2)
      yield* Effect.ignore(handle.kill({ killSignal: "SIGINT" }))
      yield* Effect.exit(handle.exitCode)
      expect(yield* worktrees).toBe(1)
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)), 240_000)

  it.live("names an unknown commit, and scenarios that no commit is compared in", () =>
    Effect.gen(function*() {
      const commit = yield* run("main", "drain", "--against", "no-such-commit")
      expect(commit.code).toBe(1)
      expect(commit.stdout + commit.stderr).toContain("--against: \"no-such-commit\" is not a commit of ")
      const scenario = yield* run("main", "startup", "--against", "HEAD")
      expect(scenario.code).toBe(1)
      expect(scenario.stdout + scenario.stderr).toContain(
        "--against does not compare startup. It compares: submit, submitBatch, drain, drainTx, drainGrouped, latency"
      )
      for (const { stderr, stdout } of [commit, scenario]) expect(stdout + stderr).not.toMatch(/BenchError|^ +at /m)
    }).pipe(Effect.provide(NodeServices.layer)), 60_000)

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

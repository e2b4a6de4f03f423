/**
 * The README is true: its program compiles, runs and prints what it says, and its tables are the code's.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import { readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import * as JobError from "../src/JobError.ts"
import * as JobQueue from "../src/JobQueue.ts"
import { databaseUrl, TestDatabase } from "./utils/database.ts"

const root = fileURLToPath(new URL("..", import.meta.url))
const readme = readFileSync(`${root}README.md`, "utf8")

/** The contents of all blocks with this fence. */
const blocks = (fence: string): ReadonlyArray<string> =>
  [...readme.matchAll(/^```(.*)\n([^]*?)^```$/gm)].flatMap(([, info, text]) =>
    info === fence && text !== undefined ? [text] : []
  )

/** A user has the package; here it is its source. */
const program = blocks("ts tour").join("\n").replaceAll("\"millrace\"", "\"../../src/index.ts\"")

const project = JSON.stringify({
  extends: "../../tsconfig.json",
  compilerOptions: { plugins: [] },
  include: ["tour.ts"]
})

describe("README", () => {
  it.live("the tour compiles, runs on an empty database, and prints what it says", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const { join } = yield* Path.Path
      const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
      yield* fs.makeDirectory(join(root, ".millrace"), { recursive: true })
      // In the repository, so that its packages are found.
      const folder = yield* fs.makeTempDirectoryScoped({ directory: join(root, ".millrace"), prefix: "tour-" })
      yield* fs.writeFileString(join(folder, "tour.ts"), program)
      yield* fs.writeFileString(join(folder, "tsconfig.json"), project)
      const node = (...args: ReadonlyArray<string>) =>
        ChildProcess.make(process.execPath, args, {
          env: { DATABASE_URL: url },
          extendEnv: true
        })
      const url = yield* databaseUrl
      const problems = yield* spawner.string(
        node(join(root, "node_modules/@typescript/native/bin/tsc"), "--project", folder)
      )
      expect(problems).toBe("")
      const printed = yield* spawner.string(node(join(folder, "tour.ts")), { includeStderr: true })
      // Times and ids in log lines differ from run to run.
      const said = printed.split("\n").filter((line) => !/^\[\d\d:\d\d:\d\d\.\d+\] (INFO|WARN)/.test(line)).join("\n")
      expect(said).toBe(blocks("text tour").join(""))
    }).pipe(Effect.scoped, Effect.provide([NodeServices.layer, TestDatabase.layerDatabase])), 120_000)

  it("has no TypeScript that is not part of the tour", () => {
    expect(blocks("ts")).toEqual([])
    expect(blocks("typescript")).toEqual([])
  })

  it("names no script that does not exist", () => {
    const { scripts } = JSON.parse(readFileSync(`${root}package.json`, "utf8"))
    const named = [...readme.matchAll(/npm run ([a-z:]+)/g)].flatMap(([, name]) => name ?? [])
    expect(named).toContain("demo")
    expect(named.filter((name) => !(name in scripts))).toEqual([])
  })

  it("says what to do about every error", () => {
    const tags = Object.values(JobError)
      .flatMap((value) => typeof value === "function" && value.prototype instanceof Error ? [value.name] : [])
      .filter((tag) => tag !== "StoreError")
    expect(tags).toContain("SubmitError")
    expect(tags.filter((tag) => !readme.includes(`\`${tag}\``))).toEqual([])
  })

  it("names the defaults of a queue as they are", () => {
    const queue = JobQueue.make("documents")
    const { critical, high, low, normal } = queue.weights
    const week = 7 * 24 * 60 * 60 * 1000
    expect(queue.retention).toEqual({ completedMs: week, cancelledMs: week, expiredMs: week })
    for (
      const [option, text] of [
        ["concurrency", String(queue.concurrency)],
        ["weights", `${critical}:${high}:${normal}:${low}`],
        ["retention", "7 days each"],
        ["maxPayloadBytes", `${queue.maxPayloadBytes / 1024 / 1024} MiB`]
      ] as const
    ) {
      expect(readme).toMatch(new RegExp(`\`${option}\` *[|] ${text} `))
    }
  })
})

/**
 * The demo, as a user runs it: killed in the middle, started again, and given what it cannot use.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import { SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import { createHash } from "node:crypto"
import { fileURLToPath } from "node:url"
import { databaseUrl, TestDatabase } from "./utils/database.ts"

const main = fileURLToPath(new URL("../scripts/demo/main.ts", import.meta.url))

/** The demo as a process; killed, if it still runs, when the scope closes. */
const start = Effect.fnUntraced(function*(...args: ReadonlyArray<string>) {
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  const url = yield* databaseUrl
  const handle = yield* spawner.spawn(
    ChildProcess.make(process.execPath, [main, ...args], {
      env: { DATABASE_URL: url },
      extendEnv: true,
      killSignal: "SIGKILL"
    })
  )
  return { handle, lines: handle.all.pipe(Stream.decodeText(), Stream.splitLines) }
})

/** Runs it to its end. */
const run = (...args: ReadonlyArray<string>) =>
  Effect.gen(function*() {
    const { handle, lines } = yield* start(...args)
    const output = (yield* Stream.runCollect(lines)).join("\n")
    return { code: Number(yield* handle.exitCode), output }
  }).pipe(Effect.scoped)

/** A folder with these files. */
const folderOf = Effect.fnUntraced(function*(files: Readonly<Record<string, string>>) {
  const fs = yield* FileSystem.FileSystem
  const { join } = yield* Path.Path
  const folder = yield* fs.makeTempDirectoryScoped({ prefix: "millrace-demo-" })
  yield* Effect.forEach(Object.entries(files), ([name, content]) => fs.writeFileString(join(folder, name), content))
  return folder
})

interface Row {
  readonly path: string
  readonly lines: number
  readonly words: number
  readonly sha256: string
}

const rows = Effect.flatMap(
  SqlClient,
  (sql) => sql<Row>`select path, lines, words, sha256 from demo.files order by path`
)

const texts = Object.fromEntries(
  Array.from(
    { length: 20 },
    (_, index) => [`text-${index + 10}.txt`, `file ${index}\n${"word ".repeat(index)}\n`] as const
  )
)
const files: Readonly<Record<string, string>> = { ...texts, "table-1.csv": "a,b\n1,2\n", "table-2.csv": "no line feed" }

const expected: ReadonlyArray<Row> = Object.entries(files)
  .map(([path, content]) => ({
    path,
    lines: content.split("\n").length - 1,
    words: content.split(/\s+/).filter((word) => word !== "").length,
    sha256: createHash("sha256").update(content).digest("hex")
  }))
  .toSorted((a, b) => a.path < b.path ? -1 : 1)

describe("the demo", () => {
  it.live("killed in the middle and started again, has indexed every file once", () =>
    Effect.gen(function*() {
      const folder = yield* folderOf(files)
      yield* Effect.scoped(Effect.gen(function*() {
        const { handle, lines } = yield* start(folder, "--delay", "250")
        yield* lines.pipe(Stream.takeUntil((line) => line.startsWith("indexed 6/22")), Stream.runDrain)
        yield* handle.kill({ killSignal: "SIGKILL" })
      }))
      const before = yield* rows
      expect(before.length).toBeGreaterThanOrEqual(6)
      expect(before.length).toBeLessThan(22)

      const { code, output } = yield* run(folder)
      expect(output).toContain(`Continuing a run that was cut off: ${22 - before.length} of 22 files left.`)
      expect(output).toContain("22 rows for 22 files, none of them twice.")
      expect(code).toBe(0)
      expect(yield* rows).toEqual(expected)
    }).pipe(Effect.scoped, Effect.provide([NodeServices.layer, TestDatabase.layer])), 120_000)

  it.live("shows a format that fails until it is fixed, and starts over when run again", () =>
    Effect.gen(function*() {
      const folder = yield* folderOf(files)
      const first = yield* run(folder)
      expect(first.output).toContain("table-1.csv attempt 3 failed: UnsupportedFormat: no reader for .csv files yet")
      expect(first.output).toContain("table-1.csv is a dead letter after 3 attempts")
      expect(first.output).toContain("Replaying 2 dead letters.")
      expect(first.output).not.toMatch(/text-\d+[.]txt .* [^1]$/m)
      expect(first.output).toMatch(/Its trace is [0-9a-f]{32}/)
      expect(first.code).toBe(0)

      const second = yield* run(folder)
      expect(second.output).toContain("Indexing 22 files")
      expect(second.code).toBe(0)
      expect(yield* rows).toEqual(expected)
    }).pipe(Effect.scoped, Effect.provide([NodeServices.layer, TestDatabase.layer])), 120_000)

  it.live("says what is wrong with what it is given, and fails", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const empty = yield* folderOf({})
      const folder = yield* folderOf({ "good.txt": "good\n", "table.csv": "a\n" })
      yield* fs.symlink(`${folder}/nowhere`, `${folder}/broken.txt`)

      expect(yield* run(`${empty}/missing`)).toEqual({
        code: 1,
        output: expect.stringContaining("missing does not exist")
      })
      expect(yield* run(`${folder}/good.txt`)).toEqual({ code: 1, output: expect.stringContaining("is not a folder") })
      expect(yield* run(empty)).toEqual({ code: 1, output: expect.stringContaining("has no files to index") })

      expect(yield* run(folder, "--unsupported", "zzz")).toEqual({
        code: 1,
        output: expect.stringMatching(
          /--unsupported: no file of .* has the format "zzz"[.] There are: [.]csv, [.]txt$/
        )
      })

      const { code, output } = yield* run(folder)
      expect(output).toContain(
        "1 of 3 files could not be indexed:\n  broken.txt: cannot be read: it is not there any more"
      )
      expect(code).toBe(1)
      expect((yield* rows).map(({ path }) => path)).toEqual(["good.txt", "table.csv"])
    }).pipe(Effect.scoped, Effect.provide([NodeServices.layer, TestDatabase.layer])), 120_000)
})

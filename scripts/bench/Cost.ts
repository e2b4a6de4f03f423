/**
 * What a measurement costs the database: processor time, write-ahead log, rows left for vacuum.
 */
import * as Effect from "effect/Effect"
import { readdir, readFile } from "node:fs/promises"
import { join } from "node:path"
import type { BenchError } from "./BenchError.ts"
import { costs } from "./measure.ts"
import * as Server from "./Server.ts"

export interface Cost {
  /** Of the postmaster and all its children, in microseconds. Only on Linux, and for the run's own server. */
  readonly cpuMicros: number | undefined
  readonly walBytes: number
}

/** Ticks of /proc are hundredths of a second wherever Linux runs. */
const microsPerTick = 10_000

/** The fields of /proc/pid/stat from the third one, `state`: what comes before may hold spaces. */
const stat = async (pid: string): Promise<ReadonlyArray<number> | undefined> => {
  const text = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined)
  return text?.slice(text.lastIndexOf(")") + 2).split(" ").map(Number)
}

/** utime + stime of the postmaster and its children; of those that have ended the postmaster keeps the sum. */
const cpuOf = async (dataDir: string): Promise<number | undefined> => {
  const [pid] = (await readFile(join(dataDir, "data/postmaster.pid"), "utf8").catch(() => "")).split("\n")
  const postmaster = pid === undefined || pid === "" ? undefined : await stat(pid)
  if (postmaster === undefined) return undefined
  const [utime = 0, stime = 0, cutime = 0, cstime = 0] = postmaster.slice(11, 15)
  let ticks = utime + stime + cutime + cstime
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name))
  for (const child of await Promise.all(pids.map(stat))) {
    if (child?.[1] === Number(pid)) ticks += (child[11] ?? 0) + (child[12] ?? 0)
  }
  return ticks * microsPerTick
}

/** Running totals: subtract two. */
export const now = (url: string): Effect.Effect<Cost, BenchError, Server.Server> =>
  Effect.gen(function*() {
    const { dataDir } = yield* Server.Server
    const walBytes = yield* Server.number(url, "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8")
    const cpuMicros = dataDir === undefined ? undefined : yield* Effect.promise(() => cpuOf(dataDir))
    return { cpuMicros, walBytes }
  })

/** Processor time a job: `nodeMicros` of the worker, and the database's between two totals, where it is known. */
export const perJob = (
  before: Cost,
  after: Cost,
  nodeMicros: number,
  jobs: number
): Readonly<Record<string, number>> => ({
  [costs.node]: nodeMicros / jobs,
  ...(before.cpuMicros === undefined || after.cpuMicros === undefined
    ? {}
    : { [costs.database]: (after.cpuMicros - before.cpuMicros) / jobs })
})

const sessions =
  `select count(*)::int from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`

/** Row versions that were left behind so far. Sessions report theirs at the latest when they end: waits for that, two seconds at most. */
export const deadTuples = (url: string): Effect.Effect<number, BenchError> =>
  Effect.gen(function*() {
    for (let looks = 0; looks < 20 && (yield* Server.number(url, sessions)) > 0; looks++) {
      yield* Effect.sleep("100 millis")
    }
    return yield* Server.number(url, "select sum(n_tup_upd + n_tup_del)::float8 from pg_stat_user_tables")
  })

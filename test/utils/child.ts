/**
 * Workers (worker.ts) as child processes: started, waited for by what they say, told, stopped and killed.
 */
import type { PgClient } from "@effect/sql-pg/PgClient"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { type ChildProcess, fork } from "node:child_process"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import { mark, Said, type Told, type WorkerOptions } from "./worker.ts"

/** How a process ended. */
export interface Ended {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

/** A worker under way. */
export interface Worker {
  readonly pid: number
  /** All that it has said so far. */
  readonly said: ReadonlyArray<Said>
  /** Waits until it has said something of this kind, `count` times; answers with all of that kind. Dies if it ends before. */
  readonly until: <Say extends Said["say"]>(
    say: Say,
    options?: { readonly jobId?: string; readonly count?: number }
  ) => Effect.Effect<ReadonlyArray<Extract<Said, { readonly say: Say }>>>
  readonly tell: (told: Told) => Effect.Effect<void>
  readonly signal: (signal: NodeJS.Signals) => Effect.Effect<void>
  /** Waits until the process is gone. */
  readonly ended: Effect.Effect<Ended>
  /** `kill -9`, and waits until the process is gone. */
  readonly kill: Effect.Effect<Ended>
}

const program = fileURLToPath(new URL("worker.ts", import.meta.url))
const decode = Schema.decodeUnknownSync(Schema.fromJsonString(Said))

const start = (options: WorkerOptions): ChildProcess =>
  fork(program, [], {
    env: { ...process.env, WORKER_OPTIONS: JSON.stringify(options) },
    execArgv: [],
    stdio: ["ignore", "pipe", "pipe", "ipc"]
  })

/** Starts a worker; it is killed when the scope closes. */
export const startWorker = (
  options: Pick<WorkerOptions, "url"> & Partial<WorkerOptions>
): Effect.Effect<Worker, never, Scope.Scope> =>
  Effect.gen(function*() {
    const ended = Deferred.makeUnsafe<Ended>()
    const child = yield* Effect.acquireRelease(
      Effect.sync(() => start({ role: "worker", concurrency: 20, graceMs: 20_000, ...options })),
      (child) => Effect.andThen(Effect.sync(() => child.kill("SIGKILL")), Deferred.await(ended))
    )
    const said: Array<Said> = []
    const log: Array<string> = []
    const waiting = new Set<() => void>()
    const wake = () => {
      for (const look of waiting) look()
    }
    if (child.stdout === null || child.stderr === null || child.pid === undefined) {
      return yield* Effect.die("the worker did not start")
    }
    createInterface(child.stdout).on("line", (line) => {
      if (!line.startsWith(mark)) return void log.push(line)
      said.push(decode(line.slice(mark.length)))
      wake()
    })
    createInterface(child.stderr).on("line", (line) => log.push(line))
    // `close`, not `exit`: by then all that it wrote has been read.
    child.on("close", (code, signal) => {
      Deferred.doneUnsafe(ended, Effect.succeed({ code, signal }))
      wake()
    })
    child.on("error", () => {})

    const until: Worker["until"] = (say, { count = 1, jobId } = {}) =>
      Effect.callback((resume) => {
        const look = () => {
          const found = said.filter((one): one is Extract<Said, { readonly say: typeof say }> =>
            one.say === say && (jobId === undefined || ("jobId" in one && one.jobId === jobId))
          )
          if (found.length >= count) {
            waiting.delete(look)
            resume(Effect.succeed(found))
          } else if (Deferred.isDoneUnsafe(ended)) {
            waiting.delete(look)
            const all = [...said.map((one) => JSON.stringify(one)), ...log].join("\n")
            resume(Effect.die(new Error(`the worker ended and never said "${say}"; it said:\n${all}`)))
          }
        }
        waiting.add(look)
        look()
        return Effect.sync(() => waiting.delete(look))
      })

    return {
      pid: child.pid,
      said,
      until,
      tell: (told) => Effect.sync(() => child.send(told)),
      signal: (signal) => Effect.sync(() => child.kill(signal)),
      ended: Deferred.await(ended),
      kill: Effect.suspend(() => {
        child.kill("SIGKILL")
        return Deferred.await(ended)
      })
    }
  })

/** One worker after the other until one of them stays: what a supervisor does with a process that keeps dying. */
export const restartUntil = <A, E, R>(
  start: Effect.Effect<Worker, never, Scope.Scope>,
  goal: Effect.Effect<A, E, R>
): Effect.Effect<ReadonlyArray<Worker>, E, R | Scope.Scope> =>
  Effect.gen(function*() {
    const workers: Array<Worker> = []
    const restarting = Effect.gen(function*() {
      const worker = yield* Effect.uninterruptible(
        Effect.tap(start, (worker) => Effect.sync(() => workers.push(worker)))
      )
      yield* worker.ended
    }).pipe(Effect.forever)
    yield* Effect.raceFirst(goal, restarting)
    return workers
  })

/** What the tables say of a job. */
export interface Fate {
  readonly id: string
  readonly state: "live" | "completed" | "cancelled" | "expired" | "failed"
  readonly attempt: number
  /** Raised by every write to the row: 0 is a job that was stored, run once and completed. */
  readonly version: number
  /** Known of live jobs and dead letters. */
  readonly crashes: number | null
  readonly errorTag: string | null
}

/**
 * The fates of these jobs, in their order; one that is nowhere, or in two places, is a defect. (Read as Millrace reads them: a statement that
 * names `finished_jobs` may have been planned a moment before the day of its job was attached.)
 */
export const fatesOf = (sql: PgClient, ids: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<Fate>> =>
  Effect.orDie(Effect.map(
    sql<Fate>`
      select id, 'live' as state, attempt, version, crashes, null as "errorTag" from millrace.jobs where id = any(${ids}::uuid[])
      union all
      select id, 'failed', attempt, version, crashes, error_tag from millrace.dead_letters where id = any(${ids}::uuid[])
      union all
      select f.id, (array['completed', 'cancelled', 'expired'])[f.outcome + 1], f.attempt, f.version, null, null
      from unnest(${ids}::uuid[]) as asked(id) cross join lateral millrace.find_finished(asked.id) as f`,
    (rows) => {
      const byId = new Map(rows.map((row) => [row.id, row]))
      if (rows.length !== new Set(ids).size || byId.size !== rows.length) {
        throw new Error(`of ${ids.length} jobs ${byId.size} are somewhere, in ${rows.length} places`)
      }
      return ids.flatMap((id) => byId.get(id) ?? [])
    }
  ))

/** Waits until no job of these is live. */
export const untilFinal = (sql: PgClient, ids: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<Fate>> =>
  Effect.repeat(fatesOf(sql, ids), {
    until: (fates) => fates.every(({ state }) => state !== "live"),
    schedule: Schedule.spaced("20 millis")
  })

/** A row that a handler wrote. */
export interface Row {
  readonly job_id: string
  readonly attempt: number
  readonly pid: number
}

/** What handlers have committed for these jobs. */
export const rowsOf = (sql: PgClient, ids: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<Row>> =>
  Effect.orDie(
    sql<Row>`select job_id, attempt, pid from public.rows where job_id = any(${ids}::uuid[]) order by job_id, attempt`
  )

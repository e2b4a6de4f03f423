/**
 * The demo's own tables. A run, its batch of jobs and the list of their ids are stored in one transaction: either the run is there with all of
 * its jobs or not at all, wherever the process is killed. That is all the demo does to be able to go on.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { SqlClient } from "effect/sql/SqlClient"
import * as SqlSchema from "effect/sql/SqlSchema"
import { JobId, Jobs } from "../../src/index.ts"
import { type Folder, Unusable } from "./folder.ts"
import { IndexFile } from "./IndexFile.ts"

/** A file, and the job that indexes it. */
export const Task = Schema.Struct({ path: Schema.String, jobId: JobId.JobId })
export type Task = typeof Task.Type

/** One pass over a folder. */
export interface Run {
  readonly runId: number
  /** The format that this run cannot read at first. */
  readonly unsupported: string
  readonly tasks: ReadonlyArray<Task>
}

/** A row of `demo.files`. */
export const IndexedFile = Schema.Struct({
  path: Schema.String,
  lines: Schema.Int,
  words: Schema.Int,
  sha256: Schema.String
})
export type IndexedFile = typeof IndexedFile.Type

/** Makes the tables. `files` has no unique key on purpose: that no file is in it twice is the runtime's doing, not the table's. */
export const prepare = Effect.flatMap(SqlClient, (sql) =>
  sql.withTransaction(Effect.gen(function*() {
    // "if not exists" does not help two that start at the same time.
    yield* sql`select pg_advisory_xact_lock(hashtext('demo'))`
    yield* sql`create schema if not exists demo`
    yield* sql`create table if not exists demo.runs (
    run_id int generated always as identity primary key,
    folder text not null, unsupported text not null,
    started_at timestamptz not null default now(), ended_at timestamptz
  )`
    yield* sql`create unique index if not exists open_runs on demo.runs (folder) where ended_at is null`
    yield* sql`create table if not exists demo.tasks (
    run_id int not null references demo.runs, path text not null, job_id uuid primary key
  )`
    yield* sql`create table if not exists demo.files (
    run_id int not null references demo.runs, job_id uuid not null, path text not null,
    lines int not null, words int not null, sha256 text not null
  )`
  }))).pipe(Effect.withTracerEnabled(false))

/** The run of this folder that has not ended, if there is one: it was cut off, or another process is at it. */
export const unfinished = Effect.fnUntraced(function*({ root }: Folder) {
  const sql = yield* SqlClient
  const [run] = yield* sql<{ readonly runId: number; readonly unsupported: string }>`
    select run_id as "runId", unsupported from demo.runs where folder = ${root} and ended_at is null`
  if (run === undefined) return undefined
  const tasks = yield* SqlSchema.findAll({
    Request: Schema.Int,
    Result: Task,
    execute: (runId) => sql`select path, job_id as "jobId" from demo.tasks where run_id = ${runId} order by path`
  })(run.runId)
  return { ...run, tasks } satisfies Run
})

/** Begins a run: one batch, one job a file. The rows of the folder's former run go in the same transaction. */
export const begin = Effect.fnUntraced(function*(folder: Folder, unsupported: string) {
  const sql = yield* SqlClient
  const jobs = yield* Jobs.Jobs
  const former = sql`select run_id from demo.runs where folder = ${folder.root}`
  return yield* sql.withTransaction(Effect.gen(function*() {
    const begun = yield* SqlSchema.findOneOption({
      Request: Schema.Struct({ folder: Schema.String, unsupported: Schema.String }),
      Result: Schema.Struct({ runId: Schema.Int }),
      execute: (run) =>
        sql`insert into demo.runs ${sql.insert(run)}
        on conflict (folder) where ended_at is null do nothing returning run_id as "runId"`
    })({ folder: folder.root, unsupported })
    if (Option.isNone(begun)) {
      return yield* new Unusable({ message: "Another process has just begun with this folder: start again to join it" })
    }
    const { runId } = begun.value
    yield* sql`delete from demo.files where run_id in (${former})`
    yield* sql`delete from demo.tasks where run_id in (${former})`
    const { jobIds } = yield* jobs.submit(
      folder.files.map((path) => IndexFile.request({ runId, folder: folder.root, path }))
    )
    yield* sql`insert into demo.tasks (run_id, path, job_id)
      select ${runId}, * from unnest(${folder.files}::text[], ${jobIds}::uuid[])`
    const tasks = folder.files.flatMap((path, index) =>
      jobIds[index] === undefined ? [] : [{ path, jobId: jobIds[index] }]
    )
    return { runId, unsupported, tasks } satisfies Run
  }))
})

/** What has been indexed so far. */
export const indexed = Effect.fnUntraced(function*({ runId }: Run) {
  const sql = yield* SqlClient
  return yield* SqlSchema.findAll({
    Request: Schema.Int,
    Result: IndexedFile,
    execute: (runId) => sql`select path, lines, words, sha256 from demo.files where run_id = ${runId} order by path`
  })(runId)
})

/** Every job of the run has ended and was told of. */
export const end = Effect.fnUntraced(function*({ runId }: Run) {
  const sql = yield* SqlClient
  yield* sql`update demo.runs set ended_at = now() where run_id = ${runId}`
})

/**
 * The job of the startup scenario, in a process that uses the built package as a program of a user would: `firstJob.ts` runs it,
 * `oneWaits.ts` submits it. Where the database is says the environment: `DATABASE_URL`, or else `BENCH_FOLDER` of an embedded one.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Millrace from "../../../src/index.ts"

/** What `npm run build` made: imported by a computed name, since it may not be there when this file is checked. */
const built: typeof Millrace = await import(
  new URL("../../../dist/index.js", import.meta.url).href
)
export const { EmbeddedPostgres, Job, JobQueue, JobRuntime, Jobs, Postgres } = built

export const Bench = JobQueue.make("bench")

export class First extends Job.make("First", { payload: Schema.Struct({ text: Schema.String }), queue: Bench }) {}

export const tell = (message: "started" | "submitted") =>
  Effect.sync(() => {
    process.send?.(message)
  })

const folder = process.env["BENCH_FOLDER"]

export const database = () => folder === undefined ? Postgres.layer() : EmbeddedPostgres.layer({ dataDir: folder })

/**
 * What handlers note of themselves outside of any job's transaction: no rollback takes it back. And what they ask of the run beside it.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import type { SqlError } from "effect/sql/SqlError"
import { CurrentJob, Postgres } from "../../src/index.ts"

/** What the database says to a handler that begins. */
export interface Begun {
  readonly began: string
  readonly isMended: boolean
}

/** Notes on connections of its own. Each note returns once it is written: an outage is no reason for the handler to fail. */
export class Starts extends Context.Service<Starts, {
  readonly runner: number
  readonly incarnation: number
  readonly note: (ref: string) => Effect.Effect<Begun, never, CurrentJob.CurrentJob>
  /** How often a handler has begun with this job, this time included. */
  readonly count: (ref: string) => Effect.Effect<number>
  /** `pg_terminate_backend` of a session. */
  readonly terminate: (pid: number) => Effect.Effect<void, SqlError>
}>()("millrace/chaos/Starts") {
  static readonly layer = ({ incarnation, runner }: { readonly incarnation: number; readonly runner: number }) =>
    Layer.effect(
      Starts,
      Effect.gen(function*() {
        const sql = yield* Postgres.makePool(yield* PgClient, { maxConnections: 6, applicationName: "chaos starts" })
        const untilAnswered = <A, E, R>(ask: Effect.Effect<A, E, R>) =>
          ask.pipe(
            Effect.timeout("3 seconds"),
            Effect.retry(Schedule.spaced("200 millis")),
            Effect.orDie,
            Effect.withTracerEnabled(false)
          )
        const note = (ref: string) =>
          untilAnswered(Effect.gen(function*() {
            const { attempt, jobId } = yield* CurrentJob.CurrentJob
            const [begun] = yield* sql<Begun>`
              insert into chaos.starts (job_id, ref, attempt, runner, incarnation)
              values (${jobId}, ${ref}, ${attempt}, ${runner}, ${incarnation})
              returning at::text as began, exists (select from chaos.mended m where m.ref = ${ref}) as "isMended"`
            return begun ?? (yield* Effect.die(new Error("a start was not written")))
          }))
        const count = (ref: string) =>
          untilAnswered(
            Effect.map(
              sql<{ count: number }>`select count(*)::int as count from chaos.starts where ref = ${ref}`,
              ([row]) => row?.count ?? 0
            )
          )
        const terminate = (pid: number) => Effect.asVoid(sql`select pg_terminate_backend(${pid})`)
        return Starts.of({ runner, incarnation, note, count, terminate })
      })
    )
}

/**
 * A runner: a user's program on the public surface, with the handlers of work.ts. Started, frozen and killed by run.ts.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { PgClient } from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { SqlClient } from "effect/sql/SqlClient"
import { CurrentJob, JobRuntime, Postgres } from "../../src/index.ts"
import { Boom, DieJob, GroupedJob, KeyedJob, type Payload, PlainJob, queues, TxJob } from "./work.ts"

/** What a runner is started with. */
export const RunnerOptions = Schema.Struct({
  url: Schema.String,
  runner: Schema.Int,
  incarnation: Schema.Int,
  runtime: Schema.Literals(["cluster", "single"]),
  /** Of `tx`. */
  partitions: Schema.Int,
  /** Where others reach it, and where it listens. */
  host: Schema.String,
  port: Schema.Int,
  listenHost: Schema.String,
  listenPort: Schema.Int
})
export type RunnerOptions = typeof RunnerOptions.Type

/** What the database says to a handler that begins. */
interface Begun {
  readonly began: string
  readonly isMended: boolean
}

/** Notes that a handler runs, on connections of its own: no rollback takes it back. */
class Starts extends Context.Service<Starts, {
  readonly runner: number
  readonly incarnation: number
  /** Returns once it is written, however long the database is away: an outage is no reason for the handler to fail. */
  readonly note: (ref: string) => Effect.Effect<Begun, never, CurrentJob.CurrentJob>
}>()("millrace/chaos/Starts") {
  static readonly layer = ({ incarnation, runner }: RunnerOptions) =>
    Layer.effect(
      Starts,
      Effect.gen(function*() {
        const sql = yield* Postgres.makePool(yield* PgClient, { maxConnections: 6, applicationName: "chaos starts" })
        const note = (ref: string) =>
          Effect.gen(function*() {
            const { attempt, jobId } = yield* CurrentJob.CurrentJob
            const [begun] = yield* sql<Begun>`
              insert into chaos.starts (job_id, ref, attempt, runner, incarnation)
              values (${jobId}, ${ref}, ${attempt}, ${runner}, ${incarnation})
              returning at::text as began, exists (select from chaos.mended m where m.ref = ${ref}) as "isMended"`
            return begun ?? (yield* Effect.die(new Error("a start was not written")))
          }).pipe(
            Effect.timeout("3 seconds"),
            Effect.retry(Schedule.spaced("200 millis")),
            Effect.orDie,
            Effect.withTracerEnabled(false)
          )
        return Starts.of({ runner, incarnation, note })
      })
    )
}

/** Nothing else runs in this process meanwhile. */
const block = (millis: number) =>
  Effect.sync(() => {
    const until = performance.now() + millis
    while (performance.now() < until) { /* as a handler that computes */ }
  })

const take = ({ blocks, millis }: Payload) =>
  Effect.andThen(
    blocks > 0 ? block(blocks) : Effect.void,
    Effect.sleep(millis)
  )

const failIfPlanned = ({ fails }: Payload, { isMended }: Begun) =>
  Effect.flatMap(
    CurrentJob.CurrentJob,
    ({ attempt }) => attempt <= fails && !isMended ? Effect.fail(new Boom()) : Effect.void
  )

const write = ({ key, lock, n, ref }: Payload, { began }: Begun) =>
  Effect.gen(function*() {
    const { incarnation, runner } = yield* Starts
    const { attempt, jobId } = yield* CurrentJob.CurrentJob
    const sql = yield* SqlClient
    yield* sql`
      insert into chaos.effects (job_id, ref, key, n, attempt, runner, incarnation, began, lock)
      values (${jobId}, ${ref}, ${key ?? null}, ${
      n ?? null
    }, ${attempt}, ${runner}, ${incarnation}, ${began}::timestamptz,
        ${lock ?? null})`
  })

/** What was written before a failure is rolled back with it. */
const transactional = (payload: Payload) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient
    const begun = yield* (yield* Starts).note(payload.ref)
    if (payload.isEarly) yield* write(payload, begun)
    if (payload.holds !== undefined) yield* sql`select pg_sleep(${payload.holds / 1_000})`
    yield* take(payload)
    if (!payload.isEarly) yield* write(payload, begun)
    yield* failIfPlanned(payload, begun)
  })

const handlers = (options: RunnerOptions) =>
  Layer.mergeAll(
    TxJob.toLayer(transactional),
    GroupedJob.toLayer(transactional),
    KeyedJob.toLayer(transactional),
    PlainJob.toLayer((payload) =>
      Effect.gen(function*() {
        const begun = yield* (yield* Starts).note(payload.ref)
        yield* take(payload)
        yield* failIfPlanned(payload, begun)
      })
    ),
    DieJob.toLayer((payload) =>
      Effect.gen(function*() {
        yield* write(payload, yield* (yield* Starts).note(payload.ref))
        yield* Effect.sync(() => process.kill(process.pid, "SIGKILL"))
        return yield* Effect.never
      })
    )
  ).pipe(Layer.provide(Starts.layer(options)))

const program = (options: RunnerOptions) => {
  const database = Postgres.layer({ url: options.url, maxConnections: 30, applicationName: "chaos handlers" })
  const shared = { queues: queues(options.partitions), gracePeriod: "5 seconds" } as const
  const runtime = options.runtime === "single"
    ? JobRuntime.layer(shared)
    : JobRuntime.layerCluster({
      ...shared,
      host: options.host,
      port: options.port,
      listenHost: options.listenHost,
      listenPort: options.listenPort
    })
  return Effect.andThen(Effect.sync(() => process.send?.({ say: "ready" })), JobRuntime.run).pipe(
    Effect.provide(handlers(options).pipe(Layer.provideMerge(runtime), Layer.provideMerge(database)))
  )
}

/** Who stands still for longer may lose its locks, with no fault injected: the checker has to know. */
const watchMs = 250
const stoodMs = 2_000
let watchedAt = performance.now()
setInterval(() => {
  const forMs = Math.round(performance.now() - watchedAt) - watchMs
  watchedAt = performance.now()
  if (forMs > stoodMs) process.send?.({ stood: forMs })
}, watchMs).unref()

// Nobody survives the run that started it.
process.on("disconnect", () => process.exit(1))
NodeRuntime.runMain(
  program(Schema.decodeUnknownSync(Schema.fromJsonString(RunnerOptions))(process.env["CHAOS_OPTIONS"]))
)

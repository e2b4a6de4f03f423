/**
 * A small program on Millrace, for tests that run it as a process of its own (child.ts) and kill it. It prints one line for each thing
 * that happens and does what it is told by messages. The definitions and tables are the tests' too.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { PgClient } from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { SqlClient } from "effect/sql/SqlClient"
import { CurrentJob } from "../../src/CurrentJob.ts"
import * as Job from "../../src/Job.ts"
import * as JobQueue from "../../src/JobQueue.ts"
import * as JobRuntime from "../../src/JobRuntime.ts"
import * as Jobs from "../../src/Jobs.ts"
import * as Migrations from "../../src/Migrations.ts"
import * as Postgres from "../../src/Postgres.ts"
import * as RetryPolicy from "../../src/RetryPolicy.ts"

/** What a worker is started with. */
export const WorkerOptions = Schema.Struct({
  url: Schema.String,
  /** `worker` runs jobs, `runner` as one of a cluster; `submitter` submits until it is killed; `client` submits what it is told to. */
  role: Schema.Literals(["worker", "runner", "submitter", "client"]),
  /** Of a runner. */
  port: Schema.optionalKey(Schema.Int),
  /** Of the queue. */
  concurrency: Schema.Int,
  partitions: Schema.optionalKey(Schema.Int),
  /** Whether it has the queue of `Slow`, too. */
  isSlow: Schema.optionalKey(Schema.Boolean),
  graceMs: Schema.Int,
  /** Of the code: the next one also has a handler for `Fresh`, and a step of the schema that this one does not know. */
  version: Schema.optionalKey(Schema.Literal("next"))
})
export type WorkerOptions = typeof WorkerOptions.Type

/** What a worker says. */
export const Said = Schema.Union([
  Schema.Struct({ say: Schema.Literal("ready") }),
  /** It cannot start on this schema. */
  Schema.Struct({ say: Schema.Literal("unserved"), reason: Schema.String, message: Schema.String }),
  /** A handler runs; `beside`: so many others in this process. */
  Schema.Struct({ say: Schema.Literal("started"), jobId: Schema.String, attempt: Schema.Int, beside: Schema.Int }),
  /** A handler has written its row and waits for `go`. */
  Schema.Struct({ say: Schema.Literal("holding"), jobId: Schema.String }),
  /** A handler was interrupted; `isOpen`: its layer's resource is still open. */
  Schema.Struct({ say: Schema.Literal("interrupted"), jobId: Schema.String, isOpen: Schema.Boolean }),
  /** A handler returns. */
  Schema.Struct({ say: Schema.Literal("returning"), jobId: Schema.String, isOpen: Schema.Boolean }),
  /** The resource of the handlers' layer is closed. */
  Schema.Struct({ say: Schema.Literal("closed") }),
  /** A submission was answered. */
  Schema.Struct({ say: Schema.Literal("submitted"), jobIds: Schema.Array(Schema.String) }),
  Schema.Struct({ say: Schema.Literal("refused"), error: Schema.String })
])
export type Said = typeof Said.Type

/** What a worker is told. */
export const Told = Schema.Union([
  /** The `Hold` and `Outside` handlers of this job may return, now or once they get there. */
  Schema.Struct({ tell: Schema.Literal("go"), jobId: Schema.String }),
  /** Submit so many `Write` jobs. */
  Schema.Struct({ tell: Schema.Literal("submit"), count: Schema.Int })
])
export type Told = typeof Told.Type

/** Sizes of the batches that a `submitter` sends, over and over. One is submitted alone. */
export const batchSizes = [1, 7, 1, 50] as const

const retry = RetryPolicy.fixed("10 millis", { maxAttempts: 2 })

export const queue = (concurrency: number, partitions = 1) => JobQueue.make("work", { concurrency, partitions })
const Work = queue(20)

/** Writes one row and returns. With `hold` its transaction stops inside COMMIT while somebody has that advisory lock. */
export class Write extends Job.make("Write", {
  payload: Schema.Struct({ hold: Schema.optionalKey(Schema.Int) }),
  success: Schema.Int,
  queue: Work,
  retry
}) {}

/** Writes one row and waits for `go`. */
export class Hold extends Job.make("Hold", { success: Schema.Int, queue: Work, retry }) {}

/** Writes one row and kills its process. */
export class Die extends Job.make("Die", { queue: Work, retry }) {}

/** The same a second later: by then what runs beside it is noted. */
export class DieLate extends Job.make("DieLate", { queue: Work, retry }) {}

export const slowQueue = JobQueue.make("slow")

/** Writes one row and takes one and a half seconds: an owner notes a run after one. */
export class Slow extends Job.make("Slow", { queue: slowQueue, retry }) {}

/** Writes one row outside of any transaction and waits for `go`. */
export class Outside extends Job.make("Outside", { queue: Work, retry, transaction: "none" }) {}

/** Sends no statement: how it ended is written with whatever ends at the same time. */
export class Idle extends Job.make("Idle", { queue: Work, retry }) {}

/** What only the next version of the code has a handler for: writes one row and returns. */
export class Fresh extends Job.make("Fresh", { success: Schema.Int, queue: Work, retry }) {}

/** A step that the next version of the code brings, for tables that are written to all the time; this one goes on beside it. */
export const expand: Migrations.Migration = {
  number: Migrations.migrations.length + 1,
  name: "expand",
  servesFrom: Migrations.codeVersion,
  statements: [
    "alter table {schema}.jobs add note text",
    "alter table {schema}.dead_letters add note text",
    "create table {schema}.notes (job_id uuid primary key, note text not null)"
  ]
}

/** The step after that, once this version is gone: it serves only the next one. */
export const contract: Migrations.Migration = {
  number: expand.number + 1,
  name: "contract",
  servesFrom: Migrations.codeVersion + 1,
  statements: ["alter table {schema}.jobs alter note set default ''"]
}

/** Brings the schema to what the next version of the code wants, as its start does. */
export const migrateToNext = (...steps: ReadonlyArray<Migrations.Migration>) =>
  Effect.gen(function*() {
    const sql = yield* Postgres.makePool(yield* PgClient, {
      maxConnections: 1,
      startupParameters: { lock_timeout: "5s" }
    })
    return yield* Migrations.run(sql, {
      schema: "millrace",
      migrations: [...Migrations.migrations, ...steps],
      codeVersion: Migrations.codeVersion + 1
    })
  }).pipe(Effect.scoped)

/** `rows` is where handlers write: nothing forbids a second row of the same job. A row with `hold` stops its transaction inside COMMIT. */
export const tables = [
  "create table public.rows (job_id uuid not null, attempt int not null, pid int not null, hold bigint)",
  `create function public.hold() returns trigger language plpgsql as $$
   begin perform pg_advisory_xact_lock_shared(new.hold); return null; end $$`,
  `create constraint trigger hold after insert on public.rows deferrable initially deferred
   for each row when (new.hold is not null) execute function public.hold()`
]

/** Lines of ours among those of the logger. A pipe is written to at once: what was said has arrived, whatever happens next. */
export const mark = "@ "

const say = (said: Said) => Effect.sync(() => process.stdout.write(`${mark}${JSON.stringify(said)}\n`))

/** Something that handlers need and that is closed at the end. */
class Resource extends Context.Service<Resource, { isOpen: boolean }>()("millrace/test/Resource") {
  static readonly layer = Layer.effect(
    Resource,
    Effect.acquireRelease(Effect.sync(() => Resource.of({ isOpen: true })), (resource) => {
      resource.isOpen = false
      return say({ say: "closed" })
    })
  )
}

const gates = new Map<string, Latch.Latch>()

const gate = (jobId: string): Latch.Latch => {
  const known = gates.get(jobId)
  if (known !== undefined) return known
  const made = Latch.makeUnsafe(false)
  gates.set(jobId, made)
  return made
}

let running = 0

/** Around every handler: says what becomes of it. */
const told = <A, E, R>(handler: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const { attempt, jobId } = yield* CurrentJob
    const resource = yield* Resource
    yield* say({ say: "started", jobId, attempt, beside: running++ })
    return yield* handler.pipe(
      Effect.tap(() => say({ say: "returning", jobId, isOpen: resource.isOpen })),
      Effect.onInterrupt(() => say({ say: "interrupted", jobId, isOpen: resource.isOpen })),
      Effect.ensuring(Effect.sync(() => running--))
    )
  })

const write = (hold?: number) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient
    const { attempt, jobId } = yield* CurrentJob
    yield* sql`insert into public.rows (job_id, attempt, pid, hold) values (${jobId}, ${attempt}, ${process.pid}, ${
      hold ?? null
    })`
    return process.pid
  })

const holding = Effect.gen(function*() {
  const { jobId } = yield* CurrentJob
  yield* say({ say: "holding", jobId })
  yield* gate(jobId).await
})

const die = Effect.sync(() => {
  process.kill(process.pid, "SIGKILL")
})

const handlers = Layer.mergeAll(
  Write.toLayer(({ hold }) => told(write(hold))),
  Hold.toLayer(() => told(Effect.tap(write(), holding))),
  Idle.toLayer(() => told(Effect.void)),
  Slow.toLayer(() => told(Effect.andThen(write(), Effect.sleep("1500 millis")))),
  Outside.toLayer(() => told(Effect.andThen(write(), holding))),
  Die.toLayer(() => told(Effect.andThen(write(), die))),
  DieLate.toLayer(() => told(Effect.andThen(Effect.sleep("1 second"), die)))
).pipe(Layer.provide(Resource.layer))

/** What the next version of the code brings. */
const next = {
  handlers: Layer.merge(handlers, Fresh.toLayer(() => write())),
  schema: Layer.effectDiscard(migrateToNext(expand))
}

const submitMany = (jobs: Jobs.Jobs["Service"], count: number) =>
  count === 1
    ? Effect.map(jobs.submit(Write.request({})), (jobId) => [jobId])
    : Effect.map(jobs.submit(Array.from({ length: count }, () => Write.request({}))), ({ jobIds }) => jobIds)

const submit = (count: number) =>
  Effect.flatMap(Jobs.Jobs, (jobs) =>
    submitMany(jobs, count).pipe(
      Effect.flatMap((jobIds) => say({ say: "submitted", jobIds })),
      Effect.catch((error) => say({ say: "refused", error: error.reason._tag }))
    ))

const listen = Effect.gen(function*() {
  const run = Effect.runForkWith(yield* Effect.context<Jobs.Jobs>())
  process.on("message", (message) => {
    const command = Schema.decodeUnknownSync(Told)(message)
    if (command.tell === "go") gate(command.jobId).openUnsafe()
    else run(submit(command.count))
  })
  yield* say({ say: "ready" })
})

const program = (options: WorkerOptions) => {
  const work = queue(options.concurrency, options.partitions)
  const queues = options.isSlow === true ? [work, slowQueue] : [work]
  const declared = { queues, gracePeriod: options.graceMs }
  const database = Postgres.layer({ url: options.url, maxConnections: options.concurrency + 5 })
  if (options.role === "runner") {
    const runtime = JobRuntime.layerCluster({ ...declared, host: "127.0.0.1", port: options.port ?? 0 })
    const version = options.version === "next" ? next : { handlers, schema: Layer.empty }
    return Effect.andThen(listen, JobRuntime.run).pipe(
      Effect.provide(version.handlers.pipe(
        Layer.provideMerge(runtime),
        Layer.provide(version.schema),
        Layer.provideMerge(database)
      )),
      Effect.tapErrorTag("MigrationError", ({ message, reason }) => say({ say: "unserved", reason, message }))
    )
  }
  if (options.role === "worker") {
    const runtime = JobRuntime.layer(declared)
    return Effect.andThen(listen, Effect.never).pipe(
      Effect.provide(handlers.pipe(Layer.provideMerge(runtime), Layer.provideMerge(database)))
    )
  }
  const forever = Effect.forEach(batchSizes, submit, { discard: true }).pipe(Effect.forever)
  const client = options.role === "client"
    ? Effect.never
    : Effect.all([forever, forever, forever, forever], { concurrency: "unbounded", discard: true })
  return Effect.andThen(listen, client).pipe(
    Effect.provide(JobRuntime.layerClient({ queues }).pipe(Layer.provideMerge(database)))
  )
}

if (import.meta.main) {
  // Nobody survives the test that started it.
  process.on("disconnect", () => process.exit(1))
  const options = Schema.decodeUnknownSync(Schema.fromJsonString(WorkerOptions))(process.env["WORKER_OPTIONS"])
  NodeRuntime.runMain(program(options))
}

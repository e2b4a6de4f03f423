/**
 * Millrace as its users have it: the public API, history and results kept, default retention. A session begins as a client, as a web server
 * would be one; `run` makes it a worker.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import { readFileSync } from "node:fs"
import { Job, JobQueue, JobRuntime, Jobs, Postgres } from "../../../src/index.ts"
import type { Payload, Session, Settings, System, Work } from "../System.ts"

/** Handlers at once. Those that write need a connection each. */
const concurrency: Record<Work, number> = { noop: 200, write: 16, grouped: 200 }

/** Connections for handlers. */
const connections: Record<Work, number> = { noop: 4, write: 16, grouped: 8 }

/** The queue and its one job, for a kind of work. */
const program = ({ onStart, partitions, work }: Settings) => {
  const Bench = JobQueue.make("bench", { concurrency: concurrency[work], partitions: partitions ?? 1 })
  class Task extends Job.make("Task", {
    payload: Schema.Struct({ text: Schema.String, at: Schema.Number }),
    queue: Bench,
    transaction: work === "grouped" ? "grouped" : "job"
  }) {}
  const handler = Task.toLayer((payload) =>
    work === "noop"
      ? Effect.sync(() => {
        onStart(payload)
      })
      : Effect.gen(function*() {
        onStart(payload)
        const sql = yield* SqlClient
        yield* sql`insert into public.bench_rows (text) values (${payload.text})`
      })
  )
  return { Bench, Task, handler }
}

const database = ({ url, work }: Settings) => Postgres.layer({ url, maxConnections: connections[work] })

const open = async (settings: Settings): Promise<Session> => {
  const { Bench, handler, Task } = program(settings)
  const scope = Scope.makeUnsafe()
  const build = <A, E>(layer: Layer.Layer<A, E>) => Effect.runPromise(Layer.buildWithScope(layer, scope))
  const shared = await build(database(settings))
  let services = await build(
    JobRuntime.layerClient({ queues: [Bench] }).pipe(Layer.provide(Layer.succeedContext(shared)))
  )
  // Dead rows at the head of a table make counting slow; its index forgets them.
  const watch = await build(
    Postgres.layer({
      url: settings.url,
      maxConnections: 1,
      startupParameters: { enable_seqscan: "off", enable_bitmapscan: "off" }
    })
  )

  const submit = (payload: Payload, isUrgent: boolean) =>
    Effect.flatMap(Jobs.Jobs, (jobs) => jobs.submit(Task.request(payload, { priority: isUrgent ? "critical" : "low" })))

  return {
    submit: async (payload, isUrgent = false) => {
      await Effect.runPromiseWith(services)(submit(payload, isUrgent))
    },
    submitMany: async (payloads) => {
      await Effect.runPromiseWith(services)(Effect.flatMap(
        Jobs.Jobs,
        (jobs) => jobs.submit(payloads.map((payload) => Task.request(payload)), { priority: "low" })
      ))
    },
    run: async () => {
      const queues = [Bench]
      services = await build(
        handler.pipe(
          Layer.provideMerge(
            settings.partitions === undefined
              ? JobRuntime.layer({ queues })
              : JobRuntime.layerCluster({ queues, host: "127.0.0.1", port: 0 })
          ),
          Layer.provide(Layer.succeedContext(shared))
        )
      )
    },
    remaining: async () => {
      const [row] = await Effect.runPromiseWith(watch)(Effect.flatMap(
        SqlClient,
        (sql) => sql<{ count: number }>`select count(*)::int as count from millrace.jobs where state = 0`
      ))
      return row?.count ?? 0
    },
    close: () => Effect.runPromise(Scope.close(scope, Exit.void))
  }
}

const { version }: { readonly version: string } = JSON.parse(
  readFileSync(new URL("../../../package.json", import.meta.url), "utf8")
)

const system: System = {
  name: "millrace",
  description:
    `Millrace ${version}: history and results kept; ${concurrency.noop} handlers at once, ${concurrency.write} where each has a transaction`,
  works: ["noop", "write", "grouped"],
  prepare: async (settings) => {
    const { close } = await open(settings)
    await close()
  },
  open
}

export default system

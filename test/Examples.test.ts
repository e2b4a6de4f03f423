/**
 * The examples, as a user runs them: a worker as a process, a thread that has to end with its job, a client of two databases. And the SQL of
 * docs/, on the tables that there are.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import * as Schedule from "effect/Schedule"
import { readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { Computing, CountPrimes, inThread } from "../examples/cpu.ts"
import { Databases } from "../examples/databases.ts"
import * as Server from "../src/internal/postgres/server.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Jobs from "../src/Jobs.ts"
import { databaseUrl, makeDatabase, TestDatabase } from "./utils/database.ts"

const worker = fileURLToPath(new URL("../examples/worker.ts", import.meta.url))

/** A script for a thread, as text. */
const script = (text: string) => new URL(`data:text/javascript,${encodeURIComponent(text)}`)

/** Counts for ever, where it can be watched. */
const counting = script(`
import { workerData } from "node:worker_threads"
const counter = new Int32Array(workerData)
while (true) Atomics.add(counter, 0, 1)`)

const submitting = JobRuntime.layerClient({ queues: [Computing] }).pipe(Layer.provideMerge(TestDatabase.layer))

/** The answer of a probe, once there is one. */
const probe = (port: number, path: string) => Effect.tryPromise(() => fetch(`http://127.0.0.1:${port}${path}`))

describe("the examples", () => {
  it.live(
    "a worker is ready, computes beside its event loop, lets go of what is cancelled, and leaves when it is told to",
    () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
        const port = yield* Server.freePort
        const handle = yield* spawner.spawn(ChildProcess.make(process.execPath, [worker], {
          env: {
            DATABASE_URL: yield* databaseUrl,
            MILLRACE_RUNNER_HOST: "127.0.0.1",
            MILLRACE_RUNNER_PORT: "0",
            PROBE_PORT: String(port)
          },
          extendEnv: true,
          stdout: "inherit",
          stderr: "inherit"
        }))
        yield* Effect.retry(
          Effect.flatMap(probe(port, "/ready"), ({ status }) => status === 200 ? Effect.void : Effect.fail(status)),
          Schedule.spaced("50 millis")
        )

        const few = yield* jobs.submit(CountPrimes.request({ below: 1_000 }))
        assert.strictEqual(yield* jobs.await(few, CountPrimes), 168)

        const many = yield* jobs.submit(CountPrimes.request({ below: 1e15 }))
        yield* Effect.repeat(jobs.status(many), {
          until: ({ state }) => state === "running",
          schedule: Schedule.spaced("50 millis")
        })
        // Its handler's thread is busy, the process is not.
        assert.strictEqual((yield* probe(port, "/live")).status, 200)
        yield* jobs.cancel(many)
        assert.strictEqual((yield* jobs.status(many)).state, "cancelled")

        yield* handle.kill({ killSignal: "SIGTERM" })
        // As NodeRuntime ends what was interrupted; docs/operate.md tells systemd.
        assert.strictEqual(Number(yield* handle.exitCode), 130)
        assert.isTrue(Exit.isFailure(yield* Effect.exit(probe(port, "/live"))))
      }).pipe(Effect.scoped, Effect.provide([NodeServices.layer, submitting])),
    60_000
  )

  it.live("a thread ends before the interruption of its job returns", () =>
    Effect.gen(function*() {
      const counter = new Int32Array(new SharedArrayBuffer(4))
      const count = () => Atomics.load(counter, 0)
      const fiber = yield* Effect.forkChild(inThread(counting, counter.buffer))
      yield* Effect.repeat(Effect.sync(count), { until: (value) => value > 0, schedule: Schedule.spaced("5 millis") })
      yield* Fiber.interrupt(fiber)
      const before = count()
      const until = performance.now() + 20
      while (performance.now() < until) { /* time in which it would have counted on */ }
      assert.strictEqual(count(), before)
    }))

  it.live("a thread that throws, or ends without a word, is a defect of its job", () =>
    Effect.gen(function*() {
      const dies = (text: string) =>
        Effect.map(Effect.exit(inThread(script(text), undefined)), (exit) =>
          Exit.isFailure(exit) ? String(exit.cause) : "success")
      assert.include(yield* dies("throw new Error('spilled')"), "spilled")
      assert.include(yield* dies("process.exit(3)"), "ended with 3")
    }))

  it.live("a client of two databases stores each tenant's jobs in its own", () =>
    Effect.gen(function*() {
      const urls = [(yield* makeDatabase).url, (yield* makeDatabase).url] as const
      yield* Effect.gen(function*() {
        const { of } = yield* Databases
        const id = yield* of("b").submit(CountPrimes.request({ below: 10 }))
        assert.strictEqual((yield* of("b").status(id)).state, "queued")
        assert.strictEqual((yield* Effect.flip(of("a").status(id)))._tag, "JobNotFound")
      }).pipe(Effect.provide(Databases.layer([Computing], urls, (tenantId) => tenantId === "a" ? 0 : 1)))
    }).pipe(Effect.scoped))

  it.live("the SQL of docs/ fits the tables", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      for (const page of ["operate", "beyond-one-postgres"]) {
        const text = readFileSync(new URL(`../docs/${page}.md`, import.meta.url), "utf8")
        const blocks = [...text.matchAll(/^```sql\n([^]*?)^```$/gm)].flatMap(([, block]) => block ?? [])
        assert.isAbove(blocks.length, 0)
        yield* Effect.forEach(blocks, (block) => sql.unsafe(block))
      }
    }).pipe(Effect.provide(submitting)))
})

/**
 * How long a worker of the built package takes from its process's start to the first line of its first handler.
 */
import * as Effect from "effect/Effect"
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import * as Child from "../../shared/childProcess.ts"
import { BenchError } from "../BenchError.ts"
import type { Scenario } from "../Scenario.ts"
import * as Server from "../Server.ts"
import { ensureBuilt } from "../startup/build.ts"
import * as WorkerProcess from "../WorkerProcess.ts"

const script = (name: string) => fileURLToPath(new URL(`../startup/${name}.ts`, import.meta.url))

type Environment = Readonly<Record<string, string>>

const run = (name: string, environment: Environment) => WorkerProcess.spawn(script(name), [], environment)

const expectMessage = (child: Parameters<typeof WorkerProcess.nextMessage>[0], expected: string) =>
  Effect.flatMap(WorkerProcess.nextMessage(child, "startup"), (message) =>
    message === expected
      ? Effect.void
      : Effect.fail(new BenchError({ message: `startup: expected "${expected}", got ${String(message)}` })))

/** One job is left waiting, and all that was needed for it has ended. */
const oneWaits = (environment: Environment) =>
  Effect.scoped(Effect.gen(function*() {
    const child = yield* run("oneWaits", environment)
    yield* expectMessage(child, "submitted")
    yield* Child.ended(child)
  }))

const firstJob = (environment: Environment) =>
  Effect.scoped(Effect.gen(function*() {
    const from = performance.now()
    const child = yield* run("firstJob", environment)
    yield* expectMessage(child, "started")
    const millis = performance.now() - from
    // An embedded server ends with its worker, and has to be let.
    child.kill("SIGTERM")
    yield* Child.ended(child)
    return millis
  }))

const measured = (environment: Environment) => Effect.andThen(oneWaits(environment), firstJob(environment))

const temporaryFolder = Effect.acquireRelease(
  Effect.promise(() => mkdtemp(join(tmpdir(), "millrace-bench-"))),
  (folder) => Effect.promise(() => rm(folder, { recursive: true, force: true }))
)

export const startup: Scenario = {
  name: "startup",
  what: "from the start of a process to the first line of its first handler, with a job waiting, on the built package",
  work: "noop",
  isOwn: true,
  measure: () =>
    Effect.gen(function*() {
      yield* ensureBuilt
      const onServer = yield* measured({ DATABASE_URL: yield* Server.database })
      const folder = yield* temporaryFolder
      const onEmbedded = yield* measured({ DATABASE_URL: "", BENCH_FOLDER: folder })
      const own = { unit: "ms", isMoreBetter: false, jobs: 1 }
      return [
        { ...own, metric: "running server", value: onServer },
        { ...own, metric: "embedded server", value: onEmbedded }
      ]
    })
}

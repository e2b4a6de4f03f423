/**
 * How does a job that computes for long leave the event loop free? It runs in a thread of its own, which is terminated when the job is
 * interrupted: by its timeout, by a cancel, at a shutdown after the grace period, or when its runner loses the partition.
 *
 * In a program of yours import from "millrace".
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Semaphore from "effect/Semaphore"
import { availableParallelism } from "node:os"
import { Worker } from "node:worker_threads"
import { Job, JobQueue } from "../src/index.ts"

export const Computing = JobQueue.make("computing", { concurrency: 16, partitions: 4 })

export class CountPrimes extends Job.make("CountPrimes", {
  payload: Schema.Struct({ below: Schema.Int }),
  success: Schema.Int,
  queue: Computing,
  timeout: "1 minute"
}) {}

/**
 * Runs a script in a thread and answers with its first message. What the script throws is a defect, as is its end without a message. The
 * thread is gone when this returns, and when the interruption of this returns.
 *
 * A thread takes some 30 ms to start: for shorter work keep a pool of them. It shares its process: native code that crashes takes all down,
 * which a child process (`fork`, ended by `kill("SIGKILL")`) would not.
 */
export const inThread = (script: URL, workerData: unknown): Effect.Effect<unknown> =>
  Effect.callback<unknown>((resume) => {
    // A thread that eats its memory fails its job, not the process.
    const thread = new Worker(script, { workerData, resourceLimits: { maxOldGenerationSizeMb: 512 } })
    // It has to end before the job does: one that goes on would compute beside the next attempt.
    const terminate = Effect.uninterruptible(Effect.promise(() => thread.terminate()))
    thread.once("message", (message) => resume(Effect.as(terminate, message)))
    thread.once("error", (error) => resume(Effect.die(error)))
    thread.once("exit", (code) => resume(Effect.die(new Error(`the thread ended with ${code} and said nothing`))))
    return terminate
  })

/** `concurrency` is of all processes together, and one of them may own every partition: so no more threads here than cores. */
export const CountPrimesLive = Layer.unwrap(Effect.gen(function*() {
  const cores = yield* Semaphore.make(availableParallelism())
  const script = new URL("primes.ts", import.meta.url)
  return CountPrimes.toLayer(({ below }) =>
    inThread(script, below).pipe(
      Semaphore.withPermit(cores),
      Effect.flatMap((message) => Effect.orDie(Schema.decodeUnknownEffect(Schema.Int)(message)))
    )
  )
}))

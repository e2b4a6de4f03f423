/**
 * `npm run bench -- [--jobs N] [--rounds N]`: how fast Millrace alone is here, on a PostgreSQL of its own with default durability. No peers
 * yet, no transactional handlers, one process: figures to compare a change with the commit before it, on one machine, in one hour.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Clock from "effect/Clock"
import * as Console from "effect/Console"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { EmbeddedPostgres, Job, JobQueue, JobRuntime, Jobs } from "../../src/index.ts"

const Bench = JobQueue.make("bench", { concurrency: 100 })

class Noop extends Job.make("Noop", { payload: Schema.Struct({ text: Schema.String }), queue: Bench }) {}

/** About 100 bytes of payload. */
const request = Noop.request({ text: "x".repeat(85) })

const now = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos) / 1e6)

/** What the handlers tell: each start, until `expected` have been. */
const watch = { starts: 0, expected: 0, at: 0, done: Deferred.makeUnsafe<void>() }

const expectStarts = (expected: number) =>
  Effect.sync(() => {
    const done = Deferred.makeUnsafe<void>()
    Object.assign(watch, { starts: 0, expected, done })
    return Deferred.await(done)
  })

const NoopLive = Noop.toLayer(() =>
  Effect.map(now, (at) => {
    watch.at = at
    if (++watch.starts === watch.expected) Deferred.doneUnsafe(watch.done, Effect.void)
  })
)

const percentile = (sorted: ReadonlyArray<number>, part: number) =>
  sorted[Math.min(Math.floor(sorted.length * part), sorted.length - 1)] ?? Number.NaN

const show = (name: string, values: ReadonlyArray<number>, unit: string, digits = 0) => {
  const sorted = values.toSorted((left, right) => left - right)
  const text = (part: number) => percentile(sorted, part).toFixed(digits)
  return Console.log(`${name.padEnd(34)} median ${text(0.5)}  min ${text(0)}  max ${text(1)}  ${unit}`)
}

/** From before `submit` to the handler's first line, on an idle queue. */
const latency = (samples: number) =>
  Effect.gen(function*() {
    const jobs = yield* Jobs.Jobs
    const taken = yield* Effect.forEach(Array.from({ length: samples }), () =>
      Effect.gen(function*() {
        yield* Effect.sleep("20 millis")
        const started = yield* expectStarts(1)
        const before = yield* now
        yield* jobs.submit(request)
        yield* started
        return watch.at - before
      }))
    const sorted = taken.toSorted((left, right) => left - right)
    yield* Console.log(
      `${"submit to first line, idle".padEnd(34)} p50 ${percentile(sorted, 0.5).toFixed(2)}  p99 ${
        percentile(sorted, 0.99).toFixed(2)
      }  ms (${samples} samples)`
    )
  })

const rate = (count: number, from: number, to: number) => count / (to - from) * 1_000

/** Batches of 1,000 submitted while the queue works on them, until the last handler has started. */
const drain = (count: number) =>
  Effect.gen(function*() {
    const jobs = yield* Jobs.Jobs
    const started = yield* expectStarts(count)
    const from = yield* now
    for (let left = count; left > 0; left -= 1_000) {
      yield* jobs.submit(Array.from({ length: Math.min(left, 1_000) }, () => request))
    }
    const submitted = yield* now
    yield* started
    return { submitted: rate(count, from, submitted), drained: rate(count, from, watch.at) }
  })

const program = Effect.fnUntraced(function*(jobs: number, rounds: number) {
  yield* Console.log(`Millrace alone, ${jobs} no-op jobs a round, ${rounds} rounds, history and results kept.`)
  yield* drain(Math.min(jobs, 2_000))
  yield* latency(100)
  const results = yield* Effect.forEach(Array.from({ length: rounds }), () => drain(jobs))
  yield* show("submit, batches of 1,000", results.map(({ submitted }) => submitted), "jobs/s")
  yield* show("submit and run", results.map(({ drained }) => drained), "jobs/s")
})

const layer = NoopLive.pipe(
  Layer.provideMerge(JobRuntime.layer({ queues: [Bench] })),
  Layer.provideMerge(EmbeddedPostgres.layer({ isTemporary: true }))
)

const command = Command.make("bench", {
  jobs: Flag.Int("jobs").pipe(Flag.withDescription("Jobs a round"), Flag.withDefault(20_000)),
  rounds: Flag.Int("rounds").pipe(Flag.withDescription("Rounds"), Flag.withDefault(3))
}, ({ jobs, rounds }) => Effect.provide(program(jobs, rounds), layer)).pipe(
  Command.withDescription("How fast Millrace alone is on this machine.")
)

command.pipe(
  Command.run({ version: "0.1.0" }),
  Effect.provide(NodeServices.layer),
  NodeRuntime.runMain
)

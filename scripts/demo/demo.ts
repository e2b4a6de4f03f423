/**
 * The story of a run: submit a batch, watch it, see one format fail until its jobs are dead letters, fix the cause, replay them.
 */
import * as Console from "effect/Console"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import { EventBus, JobRuntime, Jobs, RequestContext } from "../../src/index.ts"
import { type Folder, Unusable } from "./folder.ts"
import { Files, Formats, IndexFile, layer as handlers, UnsupportedFormat } from "./IndexFile.ts"
import * as Progress from "./Progress.ts"
import * as Report from "./report.ts"
import * as Runs from "./Runs.ts"

/** What the command line says. */
export interface Options {
  readonly folder: Folder
  readonly delay: Duration.Input
  /** The format that fails until the fix. */
  readonly unsupported: string
}

/** Waits for every job, and gives those that did not end well. */
const failuresOf = Effect.fnUntraced(function*(tasks: ReadonlyArray<Runs.Task>) {
  const jobs = yield* Jobs.Jobs
  const ends = yield* Effect.forEach(
    tasks,
    (task) => Effect.map(Effect.result(jobs.await(task.jobId, IndexFile)), (end) => ({ task, end })),
    { concurrency: 32 }
  )
  return ends.flatMap(({ end, task }) => Result.isFailure(end) ? [{ task, error: end.failure }] : [])
})

/** The cause is repaired; the dead letters go back into the queue, and this time they succeed. */
const fixAndReplay = Effect.fnUntraced(function*(run: Runs.Run, deadLetters: ReadonlyArray<Runs.Task>) {
  const jobs = yield* Jobs.Jobs
  const { say } = yield* Progress.Display
  yield* say(
    `The fix is deployed: ${run.unsupported} files can be read now. Replaying ${deadLetters.length} dead ${
      deadLetters.length === 1 ? "letter" : "letters"
    }.`
  )
  yield* (yield* Formats).fix
  yield* Effect.forEach(
    deadLetters,
    // Not found: another process has just replayed it.
    ({ jobId }) => Effect.catchTag(jobs.replayJob(jobId), "DeadLetterNotFound", () => Effect.void),
    { concurrency: 8 }
  )
  return yield* failuresOf(deadLetters)
})

/** Tells what is in the table now, and the life of the job that had the hardest one. */
const report = Effect.fnUntraced(function*(run: Runs.Run) {
  const jobs = yield* Jobs.Jobs
  const statuses = yield* Effect.forEach(run.tasks, ({ jobId }) => jobs.status(jobId), { concurrency: 16 })
  const statusOf = new Map(run.tasks.map(({ path }, index) => [path, statuses[index]]))
  const attemptsOf = (path: string) => Report.attempts(statusOf.get(path))
  const files = (yield* Runs.indexed(run)).map((file) => ({ ...file, attempts: attemptsOf(file.path) }))
  yield* Console.log(`\n${Report.filesTable(files)}\n\n${Report.summary(files, run.tasks.length)}`)

  const hardest = run.tasks.toSorted((a, b) => attemptsOf(b.path) - attemptsOf(a.path))[0]
  const status = hardest === undefined ? undefined : statusOf.get(hardest.path)
  if (hardest === undefined || status === undefined) return
  yield* Console.log(`\nThe history of ${hardest.path}, job ${hardest.jobId}:\n\n${Report.history(status)}`)
  const traceId = status.request.trace?.traceId
  if (traceId !== undefined) yield* Console.log(`\nIts trace is ${traceId}, from the submission to the last attempt.`)
})

/** From the first event to the last job: subscribe, submit or go on, wait, repair, replay. */
const story = Effect.fnUntraced(
  function*(cutOff: Runs.Run | undefined, { delay, folder, unsupported: chosen }: Options) {
    const bus = yield* EventBus.EventBus
    const events = yield* bus.subscribe({ queue: Files.name })
    const { say } = yield* Progress.Display
    const unsupported = cutOff?.unsupported ?? chosen
    const done = cutOff === undefined ? 0 : (yield* Runs.indexed(cutOff)).length
    yield* say(
      cutOff === undefined
        ? `Indexing ${folder.files.length} files of ${folder.root}. Nobody has taught this program ${unsupported} files yet: they will fail.`
        : `Continuing a run that was cut off: ${cutOff.tasks.length - done} of ${cutOff.tasks.length} files left.`
    )

    // Handlers come last. Until they are there no job of a run that was cut off moves, so nothing escapes the count above.
    return yield* Effect.gen(function*() {
      const run = cutOff ?? (yield* Runs.begin(folder, unsupported))
      const watching = yield* Effect.forkScoped(Progress.watch(events, run, done))
      const failures = yield* failuresOf(run.tasks)
      const deadLetters = failures.filter(({ error }) => error instanceof UnsupportedFormat)
      const others = failures.filter(({ error }) => !(error instanceof UnsupportedFormat))
      const again = deadLetters.length === 0 ? [] : yield* fixAndReplay(run, deadLetters.map(({ task }) => task))
      yield* Runs.end(run)
      // The last events may still be on their way to the display.
      yield* Effect.timeoutOption(Fiber.await(watching), "200 millis")
      return { run, failures: [...others, ...again] }
    }).pipe(Effect.provide(Layer.provideMerge(handlers(delay), Formats.layer(unsupported))))
  }
)

/** Runs the demo on what `options` say. Needs a database and the platform. */
export const run = (options: Options) =>
  Effect.gen(function*() {
    yield* Runs.prepare
    const cutOff = yield* Runs.unfinished(options.folder)
    const { failures, run } = yield* Effect.scoped(story(cutOff, options)).pipe(Effect.provide(Progress.layer))
    yield* report(run)
    if (failures.length > 0) {
      const lines = failures.map(({ error, task }) => `  ${task.path}: ${error.message}`)
      return yield* new Unusable({
        message: [`${failures.length} of ${run.tasks.length} files could not be indexed:`, ...lines].join("\n")
      })
    }
  }).pipe(
    Effect.withSpan("demo.run"),
    RequestContext.provide({ userId: "demo" }),
    Effect.provide(JobRuntime.layer({ queues: [Files] }))
  )

/**
 * How far a run is, told by events: a bar where standard output is a terminal, plain lines elsewhere.
 *
 * Events are for showing. They may be missing after a crash, so nothing here decides when the run is over.
 */
import * as Console from "effect/Console"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Match from "effect/Match"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import * as Terminal from "effect/Terminal"
import type { JobEvent, JobId } from "../../src/index.ts"
import type { Run } from "./Runs.ts"

/** Counts of a run's jobs. */
export interface Progress {
  readonly total: number
  readonly completed: number
  readonly retrying: ReadonlySet<JobId.JobId>
  readonly deadLetters: ReadonlySet<JobId.JobId>
}

const without = <A>(set: ReadonlySet<A>, value: A): ReadonlySet<A> =>
  set.has(value) ? new Set([...set].filter((other) => other !== value)) : set
const including = <A>(set: ReadonlySet<A>, value: A): ReadonlySet<A> => new Set([...set, value])

/** What an event changes: pure. */
export const step = (progress: Progress, event: JobEvent.JobEvent): Progress => {
  const { completed, deadLetters, retrying } = progress
  return Match.value(event).pipe(
    Match.withReturnType<Progress>(),
    Match.tags({
      JobStarted: ({ jobId }) => ({ ...progress, retrying: without(retrying, jobId) }),
      JobRetried: ({ jobId }) => ({ ...progress, retrying: including(retrying, jobId) }),
      JobDeadLettered: ({ jobId }) => ({ ...progress, deadLetters: including(deadLetters, jobId) }),
      JobReplayed: ({ jobId }) => ({ ...progress, deadLetters: without(deadLetters, jobId) }),
      JobCompleted: () => ({ ...progress, completed: completed + 1 })
    }),
    Match.orElse(() => progress)
  )
}

/** Where progress is shown. */
export class Display extends Context.Service<Display, {
  /** Something worth a line of its own. */
  readonly say: (line: string) => Effect.Effect<void>
  /** `path` has just been indexed. */
  readonly show: (progress: Progress, path: string | undefined) => Effect.Effect<void>
}>()("demo/Display") {}

const plural = (count: number, noun: string) => count === 0 ? "" : `  ${count} ${noun}${count === 1 ? "" : "s"}`

const bar = ({ completed, deadLetters, retrying, total }: Progress, path: string): string => {
  const filled = Math.round(30 * completed / total)
  const counts = `${"█".repeat(filled)}${"░".repeat(30 - filled)} ${completed}/${total}`
  return `${counts}${retrying.size === 0 ? "" : `  ${retrying.size} retrying`}${
    plural(deadLetters.size, "dead letter")
  }  ${path}`
}

/** A bar that stays on the last line; lines go above it. */
const onTerminal = Effect.gen(function*() {
  const { columns, display } = yield* Terminal.Terminal
  let last = ""
  let file = ""
  const clear = "\r\u001b[2K"
  const write = (text: string) => Effect.orDie(display(text))
  yield* Effect.addFinalizer(() => write(last === "" ? "" : "\n"))
  return Display.of({
    say: (line) => write(`${clear}${line}\n${last}`),
    show: (progress, path) =>
      Effect.flatMap(columns, (columns) => {
        file = path ?? file
        last = bar(progress, file).slice(0, columns - 1)
        return write(clear + last)
      })
  })
})

/** A line a file, and of many files about forty lines in all. */
const onPaper: Display["Service"] = {
  say: Console.log,
  show: ({ completed, total }, path) =>
    path === undefined || (completed % Math.ceil(total / 40) !== 0 && completed < total)
      ? Effect.void
      : Console.log(`indexed ${completed}/${total}  ${path}`)
}

/** The display that fits standard output. */
export const layer = Layer.effect(
  Display,
  Effect.gen(function*() {
    const { stdoutIsTerminal } = yield* Stdio.Stdio
    return (yield* stdoutIsTerminal) ? yield* onTerminal : onPaper
  })
)

/** What is told in words: everything but success. */
const sentence = (event: JobEvent.JobEvent): string | undefined =>
  Match.value(event).pipe(
    Match.tags({
      JobFailed: ({ attempt, failure }) => `attempt ${attempt} failed: ${failure.tag}: ${failure.message}`,
      JobRetried: ({ at, dueAt }) => `will be tried again in ${Math.max(0, Math.round(dueAt - at))} ms`,
      JobDeadLettered: ({ attempt }) => `is a dead letter after ${attempt} ${attempt === 1 ? "attempt" : "attempts"}`,
      JobReplayed: () => "was replayed"
    }),
    Match.orElse(() => undefined)
  )

/** Shows the events of a run until all of its jobs are completed. Of the files that fail, the first three are told of in words. */
export const watch = Effect.fnUntraced(function*(
  events: Stream.Stream<JobEvent.JobEvent>,
  run: Run,
  completed: number
) {
  const display = yield* Display
  const paths = new Map(run.tasks.map(({ jobId, path }) => [jobId, path]))
  const told = new Set<string>()
  let progress: Progress = { total: run.tasks.length, completed, retrying: new Set(), deadLetters: new Set() }
  yield* display.show(progress, undefined)
  return yield* events.pipe(
    Stream.mapEffect((event) =>
      Effect.gen(function*() {
        const path = paths.get(event.jobId)
        if (path === undefined) return
        progress = step(progress, event)
        const words = sentence(event)
        if (words !== undefined && told.size < 3) told.add(path)
        if (words !== undefined && told.has(path)) yield* display.say(`  ${path} ${words}`)
        yield* display.show(progress, event._tag === "JobCompleted" ? path : undefined)
      })
    ),
    Stream.takeUntil(() => progress.completed === progress.total),
    Stream.runDrain
  )
})

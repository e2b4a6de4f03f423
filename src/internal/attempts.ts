/**
 * The attempts a partition has under way: starts them, notes the long ones, ends them when told.
 *
 * Promise: every started job is given back exactly once, when its outcome is confirmed. A crash on any line leaves a live row.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberSet from "effect/FiberSet"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Execution from "../Execution.ts"
import type { Handler } from "../JobHandlers.ts"
import type { JobId } from "../JobId.ts"
import type { ReadyJob, RunNote, Settlement } from "../JobStore.ts"
import * as Coalescer from "./coalescer.ts"
import type { Run, Runs } from "./run.ts"
import * as RunEnd from "./runEnd.ts"
import { liveClock, onLiveClock } from "./time/liveClock.ts"
import { untilAnswered } from "./untilAvailable.ts"

/** The attempts of one ownership. */
export interface Attempts {
  /** Those whose outcome is not written down yet. */
  readonly size: () => number
  /** How many handlers are under way. */
  readonly underWay: () => number
  /** Whether another may start: handlers under way, and outcomes still to be written. */
  readonly hasPlace: () => boolean
  readonly ids: () => ReadonlyArray<JobId>
  /** Those whose handler is under way. */
  readonly running: () => ReadonlyArray<JobId>
  readonly count: (choose: (run: Run) => boolean) => number
  readonly get: (id: JobId) => Run | undefined
  /** Starts the attempt. `isNotedFirst`: its note must be stored before the handler starts. */
  readonly start: (job: ReadyJob, handler: Handler, now: number, isNotedFirst: boolean) => void
  /** Interrupts and settles as cancelled; answers whether that was the outcome. */
  readonly cancel: (run: Run, by: string | undefined) => Effect.Effect<boolean>
  /** Waits until the chosen ones have ended. */
  readonly awaitEnd: (choose: (run: Run) => boolean) => Effect.Effect<void>
  /** Interrupts the chosen ones without an outcome: their rows stay and run again. Returns when they have ended. */
  readonly stop: (choose: (run: Run) => boolean) => Effect.Effect<void>
  /** Stores the notes that are due and forgets those of ended byId. */
  readonly note: Effect.Effect<void>
}

const longRunMs = 1_000
const heartbeatMs = 10_000
/** How long a stop waits for outcomes to be written. */
const stopWait = "5 seconds"

/**
 * How many attempts may have ended without their outcome being written down yet: their places go to others meanwhile, so that the outcomes
 * of short jobs travel to the database together. All of them would run again after a crash, hence not more than the work warrants.
 */
const maxUnwritten = (concurrency: number) => Math.min(Math.max(4 * concurrency, 64), 1_000)

/** Nothing started yet. What is under way when the scope closes is interrupted. */
export const make = (options: RunEnd.Surroundings): Effect.Effect<Attempts, never, Scope.Scope> =>
  Effect.gen(function*() {
    const { announcer, environment, isStopped, release } = options
    const { owner, queue, store } = environment
    const execution = Execution.make(environment)
    const runs: Runs = { byId: new Map(), inPlace: 0, doneNotes: new Set() }
    const { byId, doneNotes } = runs
    const fork = yield* FiberSet.runtime(yield* FiberSet.make())()
    const { concluded, ended, goOn, lookAgain } = RunEnd.make({ ...options, runs, fork })
    const unwrittenLimit = maxUnwritten(queue.concurrency)

    const noteStart = yield* Coalescer.make({
      run: (notes: ReadonlyArray<RunNote>) =>
        Effect.gen(function*() {
          const noted = new Set(yield* store.noteRunning(owner, notes, yield* store.now))
          return notes.map(({ id }) => noted.has(id))
        }),
      maxBatch: 500,
      maxInFlight: 1
    })

    const progressed = (run: Run, fraction: number, message: string | undefined): Effect.Effect<void> =>
      Effect.suspend(() => {
        run.progress = Number.isFinite(fraction) ? Math.min(Math.max(fraction, 0), 1) : 0
        run.message = message?.slice(0, 1_000).replaceAll("\0", "")
        run.isNoteDue = true
        const { job, progress } = run
        return Effect.flatMap(store.now, (now) => announcer.progressed(job, now, progress, run.message))
      })

    const control = (run: Run): Execution.Control => ({
      isInterrupting: () => run.ending !== undefined,
      progress: (fraction, message) => progressed(run, fraction, message)
    })

    const noteOf = (run: Run): RunNote => ({
      id: run.job.id,
      version: run.job.version,
      attempt: run.job.attempt + 1,
      startedAt: run.startedAt,
      progress: run.progress,
      message: run.message
    })

    const withPayload = (job: ReadyJob): Effect.Effect<ReadyJob | undefined> =>
      Effect.flatMap(untilAnswered(store.payload(job.id, job.version), isStopped), (answer) => {
        const payload = Option.flatten(answer)
        return Option.isSome(payload)
          ? Effect.succeed({ ...job, payload: payload.value })
          : Effect.as(lookAgain(job), undefined)
      })

    /** `undefined`: it did not start, and its row is given back. */
    const attempt = (run: Run, job: ReadyJob): Effect.Effect<Execution.Conclusion | undefined> => {
      const telling = announcer.started(job, run.startedAt, execution.scheduledFor(job))
      const ran = execution.run(job, run.handler, control(run))
      return telling === undefined ? ran : Effect.andThen(telling, ran)
    }

    /** With what has to be read or written before the handler may start. */
    const prepared = (run: Run, isNotedFirst: boolean): Effect.Effect<Execution.Conclusion | undefined> =>
      Effect.gen(function*() {
        if (isNotedFirst) {
          const noted = yield* untilAnswered(noteStart(noteOf(run)), isStopped)
          if (Option.isNone(noted) || !noted.value) {
            release(run.job, true)
            return undefined
          }
          run.notedAt = liveClock.currentTimeMillisUnsafe()
        }
        const job = run.job.isLarge ? yield* withPayload(run.job) : run.job
        return job === undefined ? undefined : yield* attempt(run, job)
      })

    const onExit = (run: Run, exit: Exit.Exit<Execution.Conclusion | undefined>): void => {
      run.fiber = undefined
      if (Exit.isFailure(exit)) return goOn(run, Effect.failCause(exit.cause))
      if (exit.value === undefined) return ended(run, undefined)
      concluded(run, exit.value)
    }

    const endOf = (run: Run): Deferred.Deferred<Settlement | undefined> => run.ended ??= Deferred.makeUnsafe()

    const interrupt = (run: Run): Effect.Effect<void> =>
      run.fiber === undefined ? Effect.void : Fiber.interrupt(run.fiber)

    const stop = (choose: (run: Run) => boolean) =>
      Effect.forEach([...byId.values()].filter(choose), (run) => {
        run.ending ??= { _tag: "Stop" }
        // Its handler has ended when it is interrupted. What is left is to write that down, and the database may be away.
        const written = onLiveClock(Effect.timeoutOption(Deferred.await(endOf(run)), stopWait))
        return Effect.andThen(interrupt(run), written)
      }, { concurrency: "unbounded", discard: true })

    return {
      size: () => byId.size,
      underWay: () => runs.inPlace,
      hasPlace: () => runs.inPlace < queue.concurrency && byId.size - runs.inPlace < unwrittenLimit,
      ids: () => [...byId.keys()],
      running: () => [...byId.values()].filter(({ isInPlace }) => isInPlace).map(({ job }) => job.id),
      count: (choose) => [...byId.values()].filter(choose).length,
      get: (id) => byId.get(id),
      start: (job, handler, now, isNotedFirst) => {
        const run: Run = {
          job,
          handler,
          startedAt: now,
          startedLive: liveClock.currentTimeMillisUnsafe(),
          progress: undefined,
          message: undefined,
          notedAt: undefined,
          isNoteDue: false,
          ending: undefined,
          fiber: undefined,
          isInPlace: true,
          ended: undefined
        }
        byId.set(job.id, run)
        runs.inPlace++
        const running = Effect.suspend(() =>
          isNotedFirst || job.isLarge ? prepared(run, isNotedFirst) : attempt(run, job)
        )
        // Uninterruptible but for the handler. It runs at once, and may have ended when this returns.
        const fiber = fork(running, { uninterruptible: true })
        run.fiber = fiber
        // Told to end by its own handler, before there was a fiber to interrupt.
        if (run.ending !== undefined) fiber.interruptUnsafe()
        fiber.addObserver((exit) => onExit(run, exit))
      },
      cancel: (run, by) =>
        Effect.gen(function*() {
          run.ending ??= { _tag: "Cancel", by }
          const end = endOf(run)
          yield* interrupt(run)
          const settlement = yield* Deferred.await(end)
          return settlement?._tag === "Finish" && settlement.outcome === "cancelled"
        }),
      awaitEnd: (choose) =>
        Effect.forEach([...byId.values()].filter(choose), (run) => Deferred.await(endOf(run)), {
          concurrency: "unbounded",
          discard: true
        }),
      stop,
      note: Effect.gen(function*() {
        const now = liveClock.currentTimeMillisUnsafe()
        // An outcome that waits to be written is no run to blame for a crash.
        const due = [...byId.values()].filter((run) =>
          run.isInPlace && (run.isNoteDue || (run.notedAt === undefined
            ? now - run.startedLive >= longRunMs
            : now - run.notedAt >= heartbeatMs))
        )
        if (due.length > 0) {
          for (const run of due) run.isNoteDue = false
          yield* Effect.onError(
            Effect.flatMap(store.now, (at) => store.noteRunning(owner, due.map(noteOf), at)),
            () => Effect.sync(() => due.forEach((run) => run.isNoteDue = true))
          )
          for (const run of due) run.notedAt = now
        }
        const done = [...doneNotes].filter((id) => !byId.has(id))
        if (done.length > 0) {
          yield* store.noteDone(owner, done)
          for (const id of done) doneNotes.delete(id)
        }
      }).pipe(Effect.catch((error) => Effect.logDebug("Could not note running jobs", error)))
    }
  })

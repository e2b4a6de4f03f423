/**
 * The attempts a partition has under way: starts them, notes the long ones, ends them when told.
 *
 * Promise: every started job is given back exactly once, when its outcome is confirmed. A crash on any line leaves a live row.
 */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
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
import type { RunWatch } from "./runWatch.ts"
import { atMost, liveClock, monotonicMillis, onLiveClock } from "./time/liveClock.ts"
import { told } from "./told.ts"
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
  /**
   * Interrupts the chosen ones without an outcome: their rows stay and run again. Returns when they have ended, or are waited for no more.
   */
  readonly stop: (choose: (run: Run) => boolean, by: StopBy) => Effect.Effect<void>
  /** Those whose outcome is not written down yet, in the order of their starts. */
  readonly runs: () => Iterable<Run>
  /** Stores the notes that are due: of starts, and if it is a whole look also what handlers have reported. */
  readonly note: (isWhole: boolean) => Effect.Effect<void>
  /** Deletes the notes of ended ones. */
  readonly forget: Effect.Effect<void>
}

/** How long a stop waits, by the monotonic clock. */
export interface StopBy {
  /** Until handlers that have not ended are abandoned. */
  readonly abandonAt: number
  /** Until what else is under way, such as the writing of outcomes, goes on without it. */
  readonly endBy: number
}

/** With the turns of notes.ts a start is recorded 200 ms after it at the latest: then another process sees that the job runs. */
const longRunMs = 150
const heartbeatMs = 10_000
/** A COMMIT that takes longer is cut off: a trigger of it waits, or the line is dead. */
const commitMs = 30_000
/** How long a stop waits for the server to end the session of an abandoned handler. */
const severingMs = 100
/**
 * How many attempts may have ended without their outcome being written down yet: their places go to others meanwhile, so that the outcomes
 * of short jobs travel to the database together. All of them would run again after a crash, hence not more than the work warrants.
 */
const maxUnwritten = (concurrency: number) => Math.min(Math.max(4 * concurrency, 64), 1_000)

/** An outcome that waits to be written is no run to blame for a crash. */
const isNoteDue = (run: Run, now: number, isWhole: boolean): boolean =>
  run.isInPlace &&
  ((isWhole && run.isNoteDue) ||
    (run.notedAt === undefined ? now - run.startedLive >= longRunMs : now - run.notedAt >= heartbeatMs))

const commitHangs = ({ job }: Run) =>
  Effect.annotateLogs(Effect.logWarning("COMMIT does not end, its session is ended"), {
    event: "commit.hangs",
    type: job.type,
    jobId: job.id
  })

/** Nothing started yet. What is under way when the scope closes is interrupted. */
export const make = (
  options: RunEnd.Surroundings & {
    /** How long a handler may take to end once it is interrupted. */
    readonly abandonAfterMs: number
    readonly runWatch: RunWatch
    /** Keeps the next job of the run's key from starting; the answer lets it. */
    readonly hold: (job: ReadyJob) => () => void
  }
): Effect.Effect<Attempts, never, Scope.Scope> =>
  Effect.gen(function*() {
    const { abandonAfterMs, announcer, environment, hold, isStopped, release, runWatch } = options
    const { owner, queue, store } = environment
    const execution = Execution.make(environment)
    const runs: Runs = { byId: new Map(), inPlace: 0, doneNotes: new Set() }
    const { byId, doneNotes } = runs
    const fibers = yield* FiberSet.make()
    const fork = yield* FiberSet.runtime(fibers)()
    const { concluded, ended, goOn, lookAgain } = RunEnd.make({ ...options, runs, fork })
    const unwrittenLimit = maxUnwritten(queue.concurrency)

    /** The database did not take the last notes: it is asked less often. */
    let isRefused = false

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
        if (run.isAbandoned) return Effect.void
        run.progress = Number.isFinite(fraction) ? Math.min(Math.max(fraction, 0), 1) : 0
        run.message = message?.slice(0, 1_000).replaceAll("\0", "")
        run.isNoteDue = true
        const { job, progress } = run
        return Effect.flatMap(store.now, (now) => announcer.progressed(job, now, progress, run.message))
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
      if (run.isAbandoned) return Effect.undefined
      const telling = announcer.started(job, run.startedAt, execution.scheduledFor(job))
      const ran = execution.run(job, run.handler, run.control)
      return telling === undefined
        ? ran
        : Effect.andThen(telling, Effect.suspend(() => run.isAbandoned ? Effect.undefined : ran))
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
      // It was concluded when it was abandoned.
      if (run.isAbandoned) return
      run.fiber = undefined
      run.isAttempting = false
      if (run.handler.timeoutMs === undefined) {
        runWatch.ended(run.job.type, liveClock.currentTimeMillisUnsafe() - run.startedLive)
      }
      if (Exit.isFailure(exit)) {
        // A fiber whose handler has broken Effect itself may have ended without its finalizers: its session is still taken.
        return goOn(run, Effect.andThen(run.control.attempting?.end ?? Effect.void, Effect.failCause(exit.cause)))
      }
      if (exit.value === undefined) return ended(run, undefined)
      concluded(run, exit.value)
    }

    const endOf = (run: Run): Deferred.Deferred<Settlement | undefined> => run.ended ??= Deferred.makeUnsafe()

    /** Its fiber goes on alone: whatever it still does changes nothing. What it holds is taken from it. */
    const leave = (run: Run): Effect.Effect<void> =>
      Effect.suspend(() => {
        const { control: { attempting }, fiber } = run
        if (fiber === undefined || !run.isAttempting) return Effect.void
        run.isAttempting = false
        run.isAbandoned = true
        run.fiber = undefined
        // What closes this set would wait for it.
        if (fibers.state._tag === "Open") fibers.state.backing.delete(fiber)
        if (attempting === undefined) {
          release(run.job, true)
          ended(run, undefined)
          return Effect.void
        }
        const concluding = Effect.map(execution.abandon(attempting), (conclusion) => concluded(run, conclusion))
        const severed = execution.sever(attempting)
        return Effect.andThen(concluding, run.ending?._tag === "Stop" ? atMost(severingMs, severed) : severed)
      })

    /** Its handler does not end, though it was interrupted. */
    const abandon = (run: Run): Effect.Effect<void> =>
      Effect.suspend(() => {
        const { control: { attempting }, fiber, job } = run
        if (fiber === undefined || !run.isAttempting || attempting === undefined) return Effect.void
        // Its handler has ended, and COMMIT does not: whether it does is found out once its session is gone.
        if (attempting.completingAt !== undefined) return attempting.end ?? Effect.void
        const letGo = hold(job)
        fork(Effect.andThen(onLiveClock(Effect.sleep(Duration.millis(abandonAfterMs))), Effect.sync(letGo)))
        const abandoned = runWatch.abandon(queue.name, job)
        announcer.abandoned(job, abandoned.running())
        fiber.addObserver(() => {
          abandoned.ended()
          announcer.abandonedEnded(job, abandoned.running())
          letGo()
        })
        const after = run.ending?._tag === "Cancel"
          ? "cancel"
          : run.ending?._tag === "Stop"
          ? "stop"
          : "timeout"
        const line = Effect.logWarning("Attempt abandoned, its handler does not end").pipe(
          Effect.annotateLogs({
            event: "attempt.abandoned",
            reason: after,
            queue: queue.name,
            type: job.type,
            jobId: job.id,
            attempt: job.attempt + 1
          })
        )
        return Effect.andThen(told(line), leave(run))
      })

    /** Abandons it unless it has ended by then, or is another one. */
    const later = (run: Run, isSame: () => boolean): void => {
      if (!Number.isFinite(abandonAfterMs)) return
      fork(
        onLiveClock(Effect.sleep(Duration.millis(abandonAfterMs))).pipe(
          Effect.andThen(Effect.suspend(() => isSame() ? Effect.uninterruptible(abandon(run)) : Effect.void))
        )
      )
    }

    /** Its handler is interrupted, and whatever pauses. */
    const interrupt = (run: Run): void => run.fiber?.interruptUnsafe()

    const until = (at: number, effect: Effect.Effect<unknown>) =>
      Effect.suspend(() => Effect.timeoutOption(effect, Duration.millis(Math.max(at - monotonicMillis(), 0))))

    const stop = (choose: (run: Run) => boolean, { abandonAt, endBy }: StopBy) =>
      Effect.forEach([...byId.values()].filter(choose), (run) => {
        run.ending ??= { _tag: "Stop" }
        interrupt(run)
        const end = Deferred.await(endOf(run))
        return until(abandonAt, end).pipe(
          Effect.andThen(abandon(run)),
          // What is left is to write down how it ended, and the database may be away.
          Effect.andThen(until(endBy, end)),
          Effect.andThen(leave(run)),
          onLiveClock
        )
      }, { concurrency: "unbounded", discard: true })

    return {
      size: () => byId.size,
      runs: () => byId.values(),
      underWay: () => runs.inPlace,
      hasPlace: () => runs.inPlace < queue.concurrency && byId.size - runs.inPlace < unwrittenLimit,
      ids: () => [...byId.keys()],
      running: () => [...byId.values()].filter(({ isInPlace }) => isInPlace).map(({ job }) => job.id),
      count: (choose) => [...byId.values()].filter(choose).length,
      get: (id) => byId.get(id),
      start: (job, handler, now, isNotedFirst) => {
        const control: Execution.Control = {
          isInterrupting: () => run.ending !== undefined,
          progress: (fraction, message) => progressed(run, fraction, message),
          onTimeout: () => {
            const starts = control.attempting?.starts
            later(run, () => control.attempting?.starts === starts)
          },
          alongside: runWatch.alongside(queue.name, job),
          attempting: undefined
        }
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
          ended: undefined,
          isAttempting: true,
          isAbandoned: false,
          control
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
        if (run.ending !== undefined) interrupt(run)
        fiber.addObserver((exit) => onExit(run, exit))
      },
      cancel: (run, by) =>
        Effect.gen(function*() {
          if (run.ending === undefined) {
            run.ending = { _tag: "Cancel", by }
            later(run, () => true)
          }
          const end = endOf(run)
          interrupt(run)
          const settlement = yield* Deferred.await(end)
          return settlement?._tag === "Finish" && settlement.outcome === "cancelled"
        }),
      awaitEnd: (choose) =>
        Effect.forEach([...byId.values()].filter(choose), (run) => Deferred.await(endOf(run)), {
          concurrency: "unbounded",
          discard: true
        }),
      stop,
      note: Effect.fnUntraced(function*(isWhole) {
        if (isRefused && !isWhole) return
        const now = liveClock.currentTimeMillisUnsafe()
        const due: Array<Run> = []
        for (const run of byId.values()) if (isNoteDue(run, now, isWhole)) due.push(run)
        if (due.length > 0) {
          for (const run of due) run.isNoteDue = false
          yield* Effect.onError(
            Effect.flatMap(store.now, (at) => store.noteRunning(owner, due.map(noteOf), at)),
            () =>
              Effect.sync(() => {
                isRefused = true
                for (const run of due) run.isNoteDue = true
              })
          )
          isRefused = false
          for (const run of due) {
            if (byId.get(run.job.id) === run) run.notedAt = now
            // It has ended meanwhile.
            else doneNotes.add(run.job.id)
          }
        }
        for (const run of byId.values()) {
          const { attempting } = run.control
          if (attempting?.completingAt !== undefined && now - attempting.completingAt >= commitMs) {
            attempting.completingAt = now
            fork(Effect.andThen(told(commitHangs(run)), attempting.end ?? Effect.void))
          }
        }
      }, Effect.catch((error) => Effect.logDebug("Could not note running jobs", error))),
      forget: Effect.suspend(() => {
        const done = [...doneNotes].filter((id) => !byId.has(id))
        if (done.length === 0) return Effect.void
        return Effect.map(store.noteDone(owner, done), () => {
          for (const id of done) doneNotes.delete(id)
        })
      }).pipe(Effect.catch((error) => Effect.logDebug("Could not forget ended jobs", error)))
    }
  })

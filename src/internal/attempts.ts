/**
 * The attempts a partition has under way: starts them, settles what they concluded, notes the long ones, ends them when told.
 *
 * Promise: every started job is given back exactly once, when its outcome is confirmed. A crash on any line leaves a live row.
 */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
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
import type { Announcer } from "./announcer.ts"
import * as Coalescer from "./coalescer.ts"
import * as Reruns from "./reruns.ts"
import type { Settled, Settler } from "./settler.ts"
import { liveClock, onLiveClock } from "./time/liveClock.ts"

/** One attempt under way, until its outcome is written down. */
export interface Run {
  readonly job: ReadyJob
  readonly handler: Handler
  readonly startedAt: number
  /** By the real clock, to see which runs are long. */
  readonly startedLive: number
  progress: number | undefined
  message: string | undefined
  notedAt: number | undefined
  isNoteDue: boolean
  /** Why it was interrupted: it is cancelled for good, or stopped to run again elsewhere. */
  ending: { readonly _tag: "Cancel"; readonly by: string | undefined } | { readonly _tag: "Stop" } | undefined
  /** Runs the handler, and after that whatever takes longer to settle: interrupting it then cuts short its pauses. */
  fiber: Fiber.Fiber<unknown> | undefined
  /** Whether it still takes up one of the queue's places. */
  isInPlace: boolean
  /** How it was settled, for those who wait for it; `undefined` when its row was left alone. */
  ended: Deferred.Deferred<Settlement | undefined> | undefined
}

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
  /** Stores the notes that are due and forgets those of ended runs. */
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

/** `release`: the outcome is confirmed; `isReady`: the row is still there, to be read again. */
export const make = (options: {
  readonly environment: Execution.Environment
  readonly settler: Settler
  readonly announcer: Announcer
  readonly release: (job: ReadyJob, isReady: boolean) => void
  /** A job is due at a later time now. */
  readonly onDue: () => void
  /** There is room for another attempt, or one less to wait for. */
  readonly onEnded: () => void
  readonly isStopped: () => boolean
}): Effect.Effect<Attempts, never, Scope.Scope> =>
  Effect.gen(function*() {
    const { announcer, environment, isStopped, onDue, release, settler } = options
    const { owner, queue, store } = environment
    const execution = Execution.make(environment)
    const runs = new Map<JobId, Run>()
    const reruns = Reruns.make()
    const doneNotes = new Set<JobId>()
    const fork = yield* FiberSet.runtime(yield* FiberSet.make())()
    // A serial queue starts a job only when the one before is written down.
    const isSerial = queue.concurrency === 1
    const unwrittenLimit = maxUnwritten(queue.concurrency)
    let inPlace = 0

    const noteStart = yield* Coalescer.make({
      run: (notes: ReadonlyArray<RunNote>) =>
        Effect.gen(function*() {
          const noted = new Set(yield* store.noteRunning(owner, notes, yield* store.now))
          return notes.map(({ id }) => noted.has(id))
        }),
      maxBatch: 500,
      maxInFlight: 1
    })

    // ---------------------------------------------------------------------------------------------- the end of a run

    const leavePlace = (run: Run) => {
      if (!run.isInPlace) return
      run.isInPlace = false
      inPlace--
      options.onEnded()
    }

    const ended = (run: Run, settlement: Settlement | undefined) => {
      const id = run.job.id
      // The job may be running again already: its row was given back before this run had been told of.
      if (runs.get(id) === run) runs.delete(id)
      if (run.notedAt !== undefined) doneNotes.add(id)
      leavePlace(run)
      if (run.ended !== undefined) Deferred.doneUnsafe(run.ended, Effect.succeed(settlement))
      options.onEnded()
    }

    /** The outcome is written: the row is given back, and told of. */
    const written = (run: Run, settlement: Settlement) => {
      const { entry } = settlement
      const at = entry.kind === "attempt" ? entry.endedAt : entry.at
      release(run.job, false)
      if (settlement._tag === "Retry" || settlement._tag === "PutBack") onDue()
      const telling = announcer.settled(run.job, settlement, at)
      if (telling === undefined) return ended(run, settlement)
      fork(Effect.onExit(telling, () => Effect.sync(() => ended(run, settlement))))
    }

    /** Ours, for a handler's defect is an outcome. Whatever became of the row, it is looked at again, not at once. */
    const guarded = (run: Run, rest: Effect.Effect<Settlement | undefined>) =>
      rest.pipe(
        Effect.catchDefect((defect) =>
          Effect.logError("Settling a job died", defect).pipe(
            Effect.annotateLogs("jobId", run.job.id),
            Effect.andThen(pause(run, "5 seconds")),
            Effect.andThen(lookAgain(run.job)),
            Effect.as(undefined)
          )
        ),
        Effect.onExit((exit) => Effect.sync(() => ended(run, Exit.isSuccess(exit) ? exit.value : undefined))),
        Effect.uninterruptible
      )

    const goOn = (run: Run, rest: Effect.Effect<Settlement | undefined>): void => {
      run.fiber = fork(guarded(run, rest))
    }

    /** Until the time is over, or somebody waits for the end of this run. */
    const pause = (run: Run, duration: Duration.Input): Effect.Effect<unknown> =>
      Effect.suspend(() =>
        run.ending === undefined
          ? onLiveClock(Effect.sleep(duration)).pipe(Effect.interruptible, Effect.exit)
          : Effect.void
      )

    const settled = (run: Run, settlement: Settlement) =>
      settler.push(settlement, (exit) => {
        if (Exit.isFailure(exit)) return goOn(run, Effect.failCause(exit.cause))
        const answer = exit.value
        if (typeof answer !== "string") return written(run, answer)
        goOn(run, Effect.as(unwritten(run, answer), undefined))
      })

    const unwritten = (run: Run, answer: Extract<Settled, string>): Effect.Effect<void> => {
      switch (answer) {
        case "superseded":
          return lookAgain(run.job)
        case "stopped":
          return Effect.void
        // Running it again at once would be refused again.
        case "refused":
          return Effect.andThen(pause(run, "60 seconds"), lookAgain(run.job))
      }
    }

    /** Asks until the store answers, or this ownership is over. */
    const untilAnswered = <A, E>(effect: Effect.Effect<A, E>): Effect.Effect<Option.Option<A>> =>
      Effect.suspend(() => {
        let pause = 50
        const attempt: Effect.Effect<Option.Option<A>> = Effect.suspend(() =>
          Effect.matchEffect(effect, {
            onSuccess: (value) => Effect.succeedSome(value),
            onFailure: () => {
              if (isStopped()) return Effect.succeedNone
              pause = Math.min(pause * 2, 5_000)
              return Effect.andThen(onLiveClock(Effect.sleep(Duration.millis(pause))), attempt)
            }
          })
        )
        return attempt
      })

    /** What became of a row that was not ours to settle any more. */
    const lookAgain = (job: ReadyJob) =>
      Effect.map(untilAnswered(store.reread([job.id])), (rows) => {
        const row = Option.isSome(rows) ? rows.value[0] : undefined
        release(job, row?.state === "queued")
        if (row !== undefined && row.state !== "queued") onDue()
      })

    /** Lost during COMMIT: forbid the old attempt, or find that it had committed. */
    const resolve = ({ job }: Run): Effect.Effect<Settlement | undefined> =>
      Effect.gen(function*() {
        const refenced = yield* untilAnswered(store.refence(owner, job.id, job.version))
        const isLive = Option.isSome(refenced) && Option.isSome(refenced.value)
        release(job, isLive)
        if (isLive || Option.isNone(refenced)) return undefined
        const record = yield* untilAnswered(store.find(job.id))
        if (Option.isNone(record) || Option.isNone(record.value)) return undefined
        const { endedAt, history, state } = record.value.value
        const entry = history.at(-1)
        if (state !== "completed" || entry === undefined) return undefined
        const settlement: Settlement = {
          _tag: "Finish",
          id: job.id,
          version: job.version,
          outcome: "completed",
          result: undefined,
          purgeAt: endedAt ?? 0,
          entry
        }
        yield* announcer.settled(job, settlement, yield* store.now) ?? Effect.void
        return settlement
      })

    /** Once more, after a pause; given up as the handler's own failure when the database keeps breaking it. */
    const rerun = (run: Run, conclusion: Extract<Execution.Conclusion, { readonly _tag: "Rerun" }>) =>
      Effect.gen(function*() {
        const { job } = run
        const pauseMs = reruns.next(job.id, conclusion.trouble)
        if (pauseMs !== undefined) {
          yield* pause(run, Duration.millis(pauseMs))
          release(job, true)
          return undefined
        }
        const { decision, failure } = yield* Execution.judge(conclusion.cause, run.handler, job.attempt + 1)
        const answer = yield* settler.settle(
          Execution.settlementOf(job, conclusion.entry, decision, failure, queue.retention)
        )
        if (typeof answer === "string") return yield* Effect.as(unwritten(run, answer), undefined)
        release(job, false)
        if (answer._tag === "Retry" || answer._tag === "PutBack") onDue()
        yield* announcer.settled(job, answer, yield* store.now) ?? Effect.void
        return answer
      })

    const cancellation = (
      run: Run,
      { entry }: Extract<Execution.Conclusion, { readonly _tag: "Interrupted" }>
    ): Settlement => ({
      _tag: "Finish",
      id: run.job.id,
      version: run.job.version,
      outcome: "cancelled",
      result: undefined,
      purgeAt: entry.endedAt + queue.retention.cancelledMs,
      entry: {
        ...entry,
        outcome: "cancelled",
        ...(run.ending?._tag === "Cancel" && run.ending.by !== undefined ? { by: run.ending.by } : {})
      }
    })

    /** The handler has ended. What can be said at once is; the rest has a fiber of its own. */
    const concluded = (run: Run, conclusion: Execution.Conclusion): void => {
      const { job } = run
      if (!isSerial) leavePlace(run)
      if (conclusion._tag !== "Rerun") reruns.forget(job.id)
      switch (conclusion._tag) {
        case "Settle":
          return settled(run, conclusion.settlement)
        case "Committed":
          return written(run, conclusion.settlement)
        case "Superseded":
          return goOn(run, Effect.as(lookAgain(job), undefined))
        case "Unknown":
          return goOn(run, resolve(run))
        case "Rerun":
          return goOn(run, rerun(run, conclusion))
        case "Interrupted":
          if (run.ending?._tag === "Cancel") return settled(run, cancellation(run, conclusion))
          release(job, true)
          return ended(run, undefined)
      }
    }

    // ---------------------------------------------------------------------------------------------- a run

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
      Effect.flatMap(untilAnswered(store.payload(job.id, job.version)), (answer) => {
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
          const noted = yield* untilAnswered(noteStart(noteOf(run)))
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
      Effect.forEach([...runs.values()].filter(choose), (run) => {
        run.ending ??= { _tag: "Stop" }
        // Its handler has ended when it is interrupted. What is left is to write that down, and the database may be away.
        const written = onLiveClock(Effect.timeoutOption(Deferred.await(endOf(run)), stopWait))
        return Effect.andThen(interrupt(run), written)
      }, { concurrency: "unbounded", discard: true })

    return {
      size: () => runs.size,
      underWay: () => inPlace,
      hasPlace: () => inPlace < queue.concurrency && runs.size - inPlace < unwrittenLimit,
      ids: () => [...runs.keys()],
      running: () => [...runs.values()].filter(({ isInPlace }) => isInPlace).map(({ job }) => job.id),
      count: (choose) => [...runs.values()].filter(choose).length,
      get: (id) => runs.get(id),
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
        runs.set(job.id, run)
        inPlace++
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
        Effect.forEach([...runs.values()].filter(choose), (run) => Deferred.await(endOf(run)), {
          concurrency: "unbounded",
          discard: true
        }),
      stop,
      note: Effect.gen(function*() {
        const now = liveClock.currentTimeMillisUnsafe()
        // An outcome that waits to be written is no run to blame for a crash.
        const due = [...runs.values()].filter((run) =>
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
        const done = [...doneNotes].filter((id) => !runs.has(id))
        if (done.length > 0) {
          yield* store.noteDone(owner, done)
          for (const id of done) doneNotes.delete(id)
        }
      }).pipe(Effect.catch((error) => Effect.logDebug("Could not note running jobs", error)))
    }
  })

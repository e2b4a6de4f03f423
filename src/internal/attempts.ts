/**
 * The attempts a partition has under way: starts them, settles what they concluded, notes the long ones, ends them when told.
 *
 * Promise: every started job is given back exactly once, when its outcome is confirmed. A crash on any line leaves a live row.
 */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Execution from "../Execution.ts"
import type { Handler } from "../JobHandlers.ts"
import type { JobId } from "../JobId.ts"
import type { ReadyJob, RunNote, Settlement } from "../JobStore.ts"
import type { Announcer } from "./announcer.ts"
import * as Coalescer from "./coalescer.ts"
import type { Settler } from "./settler.ts"
import { liveClock, onLiveClock } from "./time/liveClock.ts"

/** One attempt under way. */
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
  readonly fiber: Deferred.Deferred<Fiber.Fiber<void>>
  /** How it was settled; `undefined` when its row was left alone. */
  readonly ended: Deferred.Deferred<Settlement | undefined>
}

/** The attempts of one ownership. */
export interface Attempts {
  readonly size: () => number
  readonly ids: () => ReadonlyArray<JobId>
  readonly count: (choose: (run: Run) => boolean) => number
  readonly get: (id: JobId) => Run | undefined
  /** Forks the attempt. `isNotedFirst`: its note must be stored before the handler starts. */
  readonly start: (job: ReadyJob, handler: Handler, isNotedFirst: boolean) => Effect.Effect<void>
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
const maxConflicts = 5
const maxConnectionLosses = 20
const maxReruns = 10_000

/** `release`: the outcome is confirmed; `isReady`: the row is still there, to be read again. */
export const make = (options: {
  readonly environment: Execution.Environment
  readonly settle: Settler
  readonly announcer: Announcer
  readonly scope: Scope.Scope
  readonly release: (job: ReadyJob, isReady: boolean) => void
  /** A job is due at a later time now. */
  readonly onDue: () => void
  /** There is room for another attempt. */
  readonly onEnded: () => void
  readonly isStopped: () => boolean
}): Effect.Effect<Attempts, never, Scope.Scope> =>
  Effect.gen(function*() {
    const { announcer, environment, isStopped, onDue, release, settle } = options
    const { owner, queue, store } = environment
    const runs = new Map<JobId, Run>()
    const reruns = new Map<JobId, number>()
    const doneNotes = new Set<JobId>()

    const noteStart = yield* Coalescer.make({
      run: (notes: ReadonlyArray<RunNote>) =>
        Effect.gen(function*() {
          const noted = new Set(yield* store.noteRunning(owner, notes, yield* store.now))
          return notes.map(({ id }) => noted.has(id))
        }),
      maxBatch: 500,
      maxInFlight: 1
    })

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

    const announce = (job: ReadyJob, settlement: Settlement) =>
      Effect.flatMap(store.now, (now) => announcer.settled(job, settlement, now))

    const settled = (job: ReadyJob, settlement: Settlement) =>
      Effect.flatMap(settle(settlement), (answer) => {
        if (answer === "superseded") return Effect.as(lookAgain(job), undefined)
        if (answer === "stopped") return Effect.undefined
        // Running it again at once would be refused again.
        if (answer === "refused") {
          return onLiveClock(Effect.sleep("60 seconds")).pipe(
            Effect.interruptible,
            Effect.exit,
            Effect.andThen(lookAgain(job)),
            Effect.as(undefined)
          )
        }
        release(job, false)
        if (answer._tag === "Retry" || answer._tag === "PutBack") onDue()
        return Effect.as(announce(job, answer), answer)
      })

    /** Lost during COMMIT: forbid the old attempt, or find that it had committed. */
    const resolve = (job: ReadyJob) =>
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
        yield* announce(job, settlement)
        return settlement
      })

    const rerun = (run: Run, conclusion: Extract<Execution.Conclusion, { readonly _tag: "Rerun" }>) =>
      Effect.gen(function*() {
        const { job } = run
        const count = (reruns.get(job.id) ?? 0) + 1
        const limit = conclusion.trouble === "conflict" ? maxConflicts : maxConnectionLosses
        if (count > limit) {
          const { decision, failure } = yield* Execution.judge(conclusion.cause, run.handler, job.attempt + 1)
          return yield* settled(
            job,
            Execution.settlementOf(job, conclusion.entry, decision, failure, queue.retention)
          )
        }
        const pause = conclusion.trouble === "conflict" ? 5 * count : Math.min(50 * 2 ** count, 5_000)
        yield* onLiveClock(Effect.sleep(Duration.millis(pause))).pipe(Effect.interruptible, Effect.exit)
        reruns.set(job.id, count)
        // Of a job that was cancelled meanwhile nobody else would take it out.
        const [oldest] = reruns.keys()
        if (reruns.size > maxReruns && oldest !== undefined) reruns.delete(oldest)
        release(job, true)
        return undefined
      })

    const concluded = (run: Run, conclusion: Execution.Conclusion): Effect.Effect<Settlement | undefined> => {
      const { job } = run
      if (conclusion._tag !== "Rerun") reruns.delete(job.id)
      switch (conclusion._tag) {
        case "Settle":
          return settled(job, conclusion.settlement)
        case "Committed":
          release(job, false)
          return Effect.as(announce(job, conclusion.settlement), conclusion.settlement)
        case "Superseded":
          return Effect.as(lookAgain(job), undefined)
        case "Unknown":
          return resolve(job)
        case "Rerun":
          return rerun(run, conclusion)
        case "Interrupted":
          if (run.ending?._tag === "Cancel") return settled(job, cancellation(run, conclusion))
          release(job, true)
          return Effect.undefined
      }
    }

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

    const control = (run: Run): Execution.Control => ({
      isInterrupting: () => run.ending !== undefined,
      progress: (fraction, message) =>
        Effect.suspend(() => {
          run.progress = Number.isFinite(fraction) ? Math.min(Math.max(fraction, 0), 1) : 0
          run.message = message?.slice(0, 1_000).replaceAll("\0", "")
          run.isNoteDue = true
          const { job, progress } = run
          return Effect.flatMap(store.now, (now) => announcer.progressed(job, now, progress, run.message))
        })
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
      job.isLarge
        ? Effect.flatMap(untilAnswered(store.payload(job.id, job.version)), (answer) => {
          const payload = Option.flatten(answer)
          return Option.isSome(payload)
            ? Effect.succeed({ ...job, payload: payload.value })
            : Effect.as(lookAgain(job), undefined)
        })
        : Effect.succeed(job)

    const attempt = (run: Run, isNotedFirst: boolean): Effect.Effect<Settlement | undefined> =>
      Effect.gen(function*() {
        if (isNotedFirst) {
          const noted = yield* untilAnswered(noteStart(noteOf(run)))
          if (Option.isNone(noted) || !noted.value) {
            release(run.job, true)
            return undefined
          }
          run.notedAt = liveClock.currentTimeMillisUnsafe()
        }
        const job = yield* withPayload(run.job)
        if (job === undefined) return undefined
        yield* announcer.started(job, run.startedAt)
        const conclusion = yield* Execution.run(environment, job, run.handler, control(run))
        return yield* concluded(run, conclusion)
      })

    const stop = (choose: (run: Run) => boolean) =>
      Effect.forEach([...runs.values()].filter(choose), (run) => {
        run.ending ??= { _tag: "Stop" }
        return Effect.flatMap(Deferred.await(run.fiber), Fiber.interrupt)
      }, { concurrency: "unbounded", discard: true })

    return {
      size: () => runs.size,
      ids: () => [...runs.keys()],
      count: (choose) => [...runs.values()].filter(choose).length,
      get: (id) => runs.get(id),
      start: (job, handler, isNotedFirst) =>
        Effect.gen(function*() {
          const run: Run = {
            job,
            handler,
            startedAt: yield* store.now,
            startedLive: liveClock.currentTimeMillisUnsafe(),
            progress: undefined,
            message: undefined,
            notedAt: undefined,
            isNoteDue: false,
            ending: undefined,
            fiber: Deferred.makeUnsafe(),
            ended: Deferred.makeUnsafe()
          }
          runs.set(job.id, run)
          const fiber = yield* attempt(run, isNotedFirst).pipe(
            // Ours, for a handler's defect is an outcome. Whatever became of the row, it is looked at again, not at once.
            Effect.catchDefect((defect) =>
              Effect.logError("Settling a job died", defect).pipe(
                Effect.annotateLogs("jobId", job.id),
                Effect.andThen(onLiveClock(Effect.sleep("5 seconds"))),
                Effect.andThen(lookAgain(job)),
                Effect.as(undefined)
              )
            ),
            Effect.onExit((exit) =>
              Effect.sync(() => {
                runs.delete(job.id)
                if (run.notedAt !== undefined) doneNotes.add(job.id)
                Deferred.doneUnsafe(run.ended, exit._tag === "Success" ? exit : Effect.undefined)
                options.onEnded()
              })
            ),
            Effect.asVoid,
            Effect.uninterruptible,
            Effect.forkIn(options.scope)
          )
          Deferred.doneUnsafe(run.fiber, Effect.succeed(fiber))
        }),
      cancel: (run, by) =>
        Effect.gen(function*() {
          run.ending ??= { _tag: "Cancel", by }
          yield* Effect.flatMap(Deferred.await(run.fiber), Fiber.interrupt)
          const settlement = yield* Deferred.await(run.ended)
          return settlement?._tag === "Finish" && settlement.outcome === "cancelled"
        }),
      awaitEnd: (choose) =>
        Effect.forEach([...runs.values()].filter(choose), (run) => Deferred.await(run.ended), {
          concurrency: "unbounded",
          discard: true
        }),
      stop,
      note: Effect.gen(function*() {
        const now = liveClock.currentTimeMillisUnsafe()
        const due = [...runs.values()].filter((run) =>
          run.isNoteDue || (run.notedAt === undefined
            ? now - run.startedLive >= longRunMs
            : now - run.notedAt >= heartbeatMs)
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

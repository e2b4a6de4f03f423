/**
 * How a run ends once its handler has: what it concluded is settled, and its row given back.
 *
 * Promise: every run is given back exactly once, when its outcome is confirmed, whatever the store or the lines below do. A crash on any
 * line leaves a live row, or one that is settled already.
 */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type * as Execution from "../Execution.ts"
import type { ReadyJob, Settlement } from "../JobStore.ts"
import type { Announcer } from "./announcer.ts"
import * as Cancels from "./cancels.ts"
import * as Judgement from "./judgement.ts"
import * as Reruns from "./reruns.ts"
import type { Run, Runs } from "./run.ts"
import type { Settled, Settler } from "./settler.ts"
import { onLiveClock } from "./time/liveClock.ts"
import { untilAnswered } from "./untilAvailable.ts"

/** Ends runs of one ownership. */
export interface RunEnd {
  /** The handler has ended. What can be said at once is; the rest has a fiber of its own. */
  readonly concluded: (run: Run, conclusion: Execution.Conclusion) => void
  /** Does what is left to be done for the run, and then ends it. */
  readonly goOn: (run: Run, rest: Effect.Effect<Settlement | undefined>) => void
  /** Nothing is left to be done: whoever waits for the run is told how it was settled. */
  readonly ended: (run: Run, settlement: Settlement | undefined) => void
  /** What became of a row that was not ours to settle any more. */
  readonly lookAgain: (job: ReadyJob) => Effect.Effect<void>
}

/** What attempts have to do with, from their start to their end. */
export interface Surroundings {
  readonly environment: Execution.Environment
  readonly settler: Settler
  readonly announcer: Announcer
  readonly cancels: Cancels.Cancels
  /** The outcome is confirmed. `isReady`: the row is still there, to be read again. */
  readonly release: (job: ReadyJob, isReady: boolean) => void
  /** A job is due at a later time now. */
  readonly onDue: () => void
  /** There is room for another attempt, or one less to wait for. */
  readonly onEnded: () => void
  readonly isStopped: () => boolean
}

/** Ends what is in `runs`. */
export const make = (
  options: Surroundings & {
    readonly runs: Runs
    readonly fork: (effect: Effect.Effect<unknown>) => Fiber.Fiber<unknown>
  }
): RunEnd => {
  const { announcer, cancels, environment: { owner, queue, store }, fork, isStopped, onDue, onEnded } = options
  const { release, runs, settler } = options
  const reruns = Reruns.make()
  // A serial queue starts a job only when the one before is written down.
  const isSerial = queue.concurrency === 1

  const leavePlace = (run: Run) => {
    if (!run.isInPlace) return
    run.isInPlace = false
    runs.inPlace--
    onEnded()
  }

  const ended = (run: Run, settlement: Settlement | undefined) => {
    const id = run.job.id
    // The job may be running again already: its row was given back before this run had been told of.
    if (runs.byId.get(id) === run) runs.byId.delete(id)
    if (run.notedAt !== undefined) runs.doneNotes.add(id)
    leavePlace(run)
    if (run.ended !== undefined) Deferred.doneUnsafe(run.ended, Effect.succeed(settlement))
    onEnded()
  }

  /** The outcome is written: the row is given back, and told of. */
  const written = (run: Run, settlement: Settlement) => {
    const { entry } = settlement
    const at = entry.kind === "attempt" ? entry.endedAt : entry.at
    release(run.job, false)
    if (settlement._tag === "Retry" || settlement._tag === "PutBack") onDue()
    else cancels.forget(run.job.id)
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

  /** A cancel that came while it ran, and did not interrupt it: nothing follows that attempt. */
  const orCancelled = (run: Run, settlement: Settlement): Settlement => {
    const cancel = run.ending?._tag === "Cancel" ? run.ending : cancels.of(run.job.id)
    return cancel === undefined ? settlement : Cancels.instead(settlement, cancel, queue) ?? settlement
  }

  const settled = (run: Run, settlement: Settlement) =>
    settler.push(orCancelled(run, settlement), (exit) => {
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

  /** What became of a row that was not ours to settle any more. */
  const lookAgain = (job: ReadyJob) =>
    Effect.map(untilAnswered(store.reread([job.id]), isStopped), (rows) => {
      const row = Option.isSome(rows) ? rows.value[0] : undefined
      release(job, row?.state === "queued")
      if (row !== undefined && row.state !== "queued") onDue()
    })

  /** Lost during COMMIT: forbid the old attempt, or find that it had committed. */
  const resolve = ({ job }: Run): Effect.Effect<Settlement | undefined> =>
    Effect.gen(function*() {
      const refenced = yield* untilAnswered(store.refence(owner, job.id, job.version), isStopped)
      const isLive = Option.isSome(refenced) && Option.isSome(refenced.value)
      release(job, isLive)
      if (isLive || Option.isNone(refenced)) return undefined
      const record = yield* untilAnswered(store.find(job.id), isStopped)
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
      const { decision, failure } = yield* Judgement.judge(conclusion.cause, run.handler, job.attempt + 1)
      const answer = yield* settler.settle(
        Judgement.settlementOf(job, conclusion.entry, decision, failure, queue.retention)
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

  return { concluded, goOn, ended, lookAgain }
}

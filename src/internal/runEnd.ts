/**
 * How a run ends once its handler has: what it concluded is settled, and its row given back.
 *
 * Promise: every run is given back exactly once, when its outcome is confirmed, whatever the store or the lines below do. A crash on any
 * line leaves a live row, or one that is settled already.
 */
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type * as Execution from "../Execution.ts"
import * as JobError from "../JobError.ts"
import type { Attempt } from "../JobHistory.ts"
import type { ReadyJob, Rerun, Settlement, StoreError } from "../JobStore.ts"
import { accounting, asRerun, countsAs, pauseMs, type RunEnding } from "./accounting.ts"
import type { Announcer } from "./announcer.ts"
import * as Cancels from "./cancels.ts"
import * as Judgement from "./judgement.ts"
import type { Run, Runs } from "./run.ts"
import type { Settled, Settler } from "./settler.ts"
import { onLiveClock } from "./time/liveClock.ts"
import { told } from "./told.ts"
import { untilAnswered } from "./untilAvailable.ts"
import type { Unwritten } from "./unwritten.ts"
import { inspectableCause } from "./words/safely.ts"

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
  /** Whether this process can be sure that it owns the partition. */
  readonly isOwned: () => boolean
  readonly unwritten: Unwritten
}

/** A run that counts as no attempt. */
const brokenOff = (
  log: typeof Effect.logWarning,
  end: RunEnding,
  failure: JobError.JobFailure | undefined
): Effect.Effect<void> =>
  Effect.annotateLogs(log("Run broken off, the job runs again"), {
    event: "job.rerun",
    end,
    counts: accounting[end].counts,
    ...(failure === undefined ? {} : { because: `${failure.tag}: ${failure.message}` })
  })

/** Ends what is in `runs`. */
export const make = (
  options: Surroundings & {
    readonly runs: Runs
    readonly fork: (effect: Effect.Effect<unknown>) => Fiber.Fiber<unknown>
  }
): RunEnd => {
  const { announcer, cancels, environment, fork, isOwned, isStopped, onDue, onEnded } = options
  const { release, runs, settler, unwritten } = options
  const { owner, queue, store } = environment
  const keep = (settlement: Settlement): void => unwritten.keep(owner, settlement)

  const log = ({ job: { id, type } }: Run, line: Effect.Effect<void>) =>
    told(Effect.annotateLogs(line, { jobId: id, jobType: type, queue: queue.name }))

  const entryOf = ({ job, startedAt }: Run, endedAt: number): Omit<Attempt, "outcome"> => ({
    kind: "attempt",
    attempt: job.attempt + 1,
    startedAt,
    endedAt,
    runner: environment.position.runner
  })

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
    release(run.job, settlement._tag === "Rerun")
    if (settlement._tag === "Retry" || settlement._tag === "PutBack") onDue()
    else if (settlement._tag !== "Rerun") cancels.forget(run.job.id)
    const telling = announcer.settled(run.job, settlement, at)
    if (telling === undefined) return ended(run, settlement)
    fork(Effect.onExit(telling, () => Effect.sync(() => ended(run, settlement))))
  }

  /** A defect that arose while the run was judged, encoded or settled: an attempt that failed, or it would run again forever. */
  const unjudged = (run: Run, defect: unknown): Effect.Effect<Settlement | undefined> =>
    Effect.gen(function*() {
      const { handler, job } = run
      const error = new JobError.UnjudgedRun({ detail: JobError.toFailure(defect, { class: "System" }).message })
      yield* log(run, Effect.logError(error.message))
      const { decision, failure } = yield* Judgement.judge(Cause.die(error), handler, job.attempt + 1)
      const entry = entryOf(run, yield* store.now)
      return yield* settle(run, Judgement.settlementOf(job, entry, decision, failure, queue.retention))
    })

  /** Ours, for a handler's defect is an outcome. */
  const guarded = (run: Run, rest: Effect.Effect<Settlement | undefined>) =>
    rest.pipe(
      Effect.catchDefect((defect) =>
        Effect.catchCause(unjudged(run, defect), (cause) =>
          log(run, Effect.logError("Settling a job died", inspectableCause(cause))).pipe(
            Effect.andThen(pause(run, "60 seconds")),
            Effect.andThen(lookAgain(run.job)),
            Effect.as(undefined)
          ))
      ),
      Effect.onExit((exit) =>
        Effect.sync(() =>
          ended(run, Exit.isSuccess(exit) ? exit.value : undefined)
        )
      ),
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

  const settled = (run: Run, outcome: Settlement) => {
    const settlement = orCancelled(run, outcome)
    settler.push(settlement, (exit) => {
      if (Exit.isFailure(exit)) {
        if (Cause.hasInterruptsOnly(exit.cause)) keep(settlement)
        return goOn(run, Effect.failCause(exit.cause))
      }
      const answer = exit.value
      if (typeof answer !== "string") return written(run, answer)
      goOn(run, Effect.as(notWritten(run, settlement, answer), undefined))
    })
  }

  /** The same for a fiber that goes on behind it: what was written, released and told of. `undefined`: nothing. */
  const settle = (run: Run, outcome: Settlement, pauseMs = 0): Effect.Effect<Settlement | undefined> =>
    Effect.gen(function*() {
      const { job } = run
      const settlement = orCancelled(run, outcome)
      const answer = yield* Effect.onError(
        settler.settle(settlement),
        (cause) => Effect.sync(() => Cause.hasInterruptsOnly(cause) && keep(settlement))
      )
      if (typeof answer === "string") return yield* Effect.as(notWritten(run, settlement, answer), undefined)
      if (answer._tag === "Rerun" && pauseMs > 0) {
        // Its row rests. The run is over, and holds back nobody.
        fork(onLiveClock(Effect.delay(Effect.sync(() => release(job, true)), Duration.millis(pauseMs))))
      } else release(job, answer._tag === "Rerun")
      if (answer._tag === "Retry" || answer._tag === "PutBack") onDue()
      else if (answer._tag !== "Rerun") cancels.forget(job.id)
      yield* announcer.settled(job, answer, yield* store.now) ?? Effect.void
      return answer
    })

  const notWritten = (
    run: Run,
    settlement: Settlement,
    answer: Extract<Settled, string>
  ): Effect.Effect<void> => {
    switch (answer) {
      case "superseded":
        return lookAgain(run.job, settlement)
      case "stopped":
        return Effect.sync(() => keep(settlement))
      // Running it again at once would be refused again.
      case "refused":
        return Effect.andThen(pause(run, "60 seconds"), lookAgain(run.job))
    }
  }

  /** What became of a row that was not ours to settle any more. */
  const lookAgain = (job: ReadyJob, settlement?: Settlement) =>
    Effect.map(untilAnswered(store.reread([job.id]), isStopped), (rows) => {
      const row = Option.isSome(rows) ? rows.value[0] : undefined
      // The row is as the run found it: only the ownership has ended.
      if (settlement !== undefined && (Option.isNone(rows) || row?.version === settlement.version)) keep(settlement)
      release(job, row?.state === "queued")
      if (row !== undefined && row.state !== "queued") onDue()
    })

  /** Forbids the attempt to commit. The answer to an earlier asking may have got lost: then the row has its version already. */
  const refence = ({ id, version }: ReadyJob): Effect.Effect<Option.Option<number>, StoreError> =>
    Effect.flatMap(
      store.refence(owner, id, version),
      (refenced) =>
        Option.isSome(refenced) ?
          Effect.succeed(refenced) :
          Effect.map(
            store.reread([id]),
            ([row]) => row?.state === "queued" && row.version === version + 1 ? Option.some(row.version) : Option.none()
          )
    )

  /** Lost during COMMIT: forbid the old attempt, or find that it had committed. */
  const resolve = (
    run: Run,
    { ifNot }: Extract<Execution.Conclusion, { readonly _tag: "Unknown" }>
  ): Effect.Effect<Settlement | undefined> =>
    Effect.gen(function*() {
      const { job } = run
      const refenced = yield* untilAnswered(refence(job), isStopped)
      const version = Option.isNone(refenced) ? job.version : Option.getOrUndefined(refenced.value)
      if (version !== undefined && (ifNot._tag === "Rerun" || ifNot._tag === "Settle")) {
        const settlement = ifNot._tag === "Rerun"
          ? rerunOf(version, job, ifNot.end, ifNot.entry, ifNot.failure)
          : { ...ifNot.settlement, version }
        if (Option.isSome(refenced)) {
          return yield* settlement._tag === "Rerun" && ifNot._tag === "Rerun"
            ? again(run, ifNot.end, settlement)
            : settle(run, settlement)
        }
        // Not found out before the ownership ended. Fenced by its version, it says nothing if the attempt has committed.
        keep(settlement)
      }
      release(job, version !== undefined)
      if (version !== undefined) return undefined
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

  const rerunOf = (
    version: number,
    { id }: ReadyJob,
    end: RunEnding,
    entry: Omit<Attempt, "outcome">,
    failure: JobError.JobFailure | undefined
  ): Rerun => {
    const isCrash = accounting[end].counts === "crash"
    return {
      _tag: "Rerun",
      id,
      version,
      isCrash,
      entry: {
        ...entry,
        outcome: isCrash ? "crashed" : "interrupted",
        ...(failure === undefined ? {} : { failure: Judgement.withoutLargeError(failure) })
      }
    }
  }

  /** The run counts as no attempt: it is written down, and after a pause the job runs again. */
  const again = (run: Run, end: RunEnding, settlement: Rerun): Effect.Effect<Settlement | undefined> => {
    const { job } = run
    const line = brokenOff(Effect.logWarning, end, settlement.entry.failure)
    return Effect.andThen(log(run, line), settle(run, settlement, pauseMs(end, job.reruns + job.crashes)))
  }

  /** The runtime has interrupted it: a shutdown, a handler that is going, a lock that was lost. */
  const interrupted = (run: Run, entry: Omit<Attempt, "outcome">): void => {
    const { handler, job } = run
    if (countsAs("interrupted", job.reruns) === "attempt") {
      const failed = Effect.flatMap(
        Judgement.judge(Cause.fail(new JobError.RunInterrupted({ reruns: job.reruns + 1 })), handler, entry.attempt),
        ({ decision, failure }) =>
          settle(run, asRerun("interrupted", Judgement.settlementOf(job, entry, decision, failure, queue.retention)))
      )
      return goOn(run, failed)
    }
    const settlement = rerunOf(job.version, job, "interrupted", entry, undefined)
    // How many they are is told at Info by what has ended them.
    fork(log(run, brokenOff(Effect.logDebug, "interrupted", undefined)))
    if (isOwned()) return settled(run, settlement)
    // Whoever owns it next runs it again. If that is this process, it knows.
    keep(settlement)
    release(job, true)
    ended(run, undefined)
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

  /** The handler has ended. What can be said at once is; the rest has a fiber of its own. */
  const concluded = (run: Run, conclusion: Execution.Conclusion): void => {
    const { job } = run
    if (!isSerial) leavePlace(run)
    switch (conclusion._tag) {
      case "Settle":
        return settled(run, conclusion.settlement)
      case "Committed":
        return written(run, conclusion.settlement)
      case "Superseded":
        return goOn(run, Effect.as(lookAgain(job), undefined))
      case "Unknown":
        return goOn(run, resolve(run, conclusion))
      case "Rerun": {
        const { end, entry, failure } = conclusion
        return goOn(run, again(run, end, rerunOf(job.version, job, end, entry, failure)))
      }
      case "Interrupted":
        return run.ending?._tag === "Cancel"
          ? settled(run, cancellation(run, conclusion))
          : interrupted(run, conclusion.entry)
    }
  }

  return { concluded, goOn, ended, lookAgain }
}

/**
 * One attempt: `span > request context > timeout > decode > transaction > handler > exit > classify > decide`.
 *
 * Every step is total and the last one is pure (RetryPolicy.decide). What it concludes is written down by the partition. A crash on any
 * line before COMMIT leaves the job's row as it was, and none of the handler's writes.
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as References from "effect/References"
import * as Tracer from "effect/Tracer"
import { types } from "node:util"
import { CurrentJob, type Service as CurrentJobService } from "./CurrentJob.ts"
import { asRerun, countsAs, type RunEnding } from "./internal/accounting.ts"
import * as AttemptSpan from "./internal/attemptSpan.ts"
import * as Judgement from "./internal/judgement.ts"
import { liveClock } from "./internal/time/liveClock.ts"
import { isA } from "./internal/words/safely.ts"
import * as JobError from "./JobError.ts"
import type { Handler } from "./JobHandlers.ts"
import type { Attempt } from "./JobHistory.ts"
import type { JobId } from "./JobId.ts"
import { type JobQueue, maxJsonBytes } from "./JobQueue.ts"
import {
  type Breakage,
  type Finish,
  type JobStore,
  type Owner,
  type ReadyJob,
  type Session,
  type Settlement,
  tenantId,
  type TenantKey,
  type Transacted
} from "./JobStore.ts"
import * as RequestContext from "./RequestContext.ts"

/** Where attempts run. */
export interface Environment {
  readonly store: JobStore["Service"]
  readonly owner: Owner
  readonly queue: JobQueue
  readonly position: RequestContext.ClusterPosition
  /** Services of the runtime, below those of the handler: clock, tracer, loggers. */
  readonly services: Context.Context<never>
}

/** What an attempt is told from outside. */
export interface Control {
  readonly progress: CurrentJobService["progress"]
  /** Whether the runtime asked for the interruption: then it is not a failure. */
  readonly isInterrupting: () => boolean
  /** The timeout has passed, and the handler is interrupted: it may not end by that. */
  readonly onTimeout: () => void
  /** The abandoned run that still runs when this one starts: of the same key, or of the same job. */
  readonly alongside: JobId | undefined
  /** The attempt, once it has begun. */
  attempting: Attempting | undefined
}

/**
 * How a run ended. `Settle`: still to be written down. `Committed`: written in the handler's own transaction. `Rerun`: rolled back, and not
 * counted as an attempt (`accounting`). `Unknown`: the connection was lost during COMMIT. `Interrupted`: the runtime asked for it.
 */
export type Conclusion =
  | { readonly _tag: "Settle"; readonly settlement: Settlement }
  | { readonly _tag: "Committed"; readonly settlement: Finish }
  | {
    readonly _tag: "Rerun"
    readonly end: Breakage
    readonly failure: JobError.JobFailure
    readonly entry: Omit<Attempt, "outcome">
  }
  | { readonly _tag: "Superseded" }
  | {
    readonly _tag: "Unknown"
    /** What it means if it did not commit. Its settlement then has another version. */
    readonly ifNot: Exclude<Conclusion, { readonly _tag: "Unknown" }>
  }
  | { readonly _tag: "Interrupted"; readonly entry: Omit<Attempt, "outcome"> }

/** Whose work it is, as stored with the job: the same for all jobs of a submission. */
interface Origin {
  readonly request: RequestContext.RequestContext
  readonly tenantId: string | undefined
  readonly scheduledFor: number | undefined
  /** The span it was submitted in. */
  readonly submitting: Tracer.ExternalSpan | undefined
}

/** What the attempts of one handler have in common. */
interface Common {
  /** The services of each, but for its own. */
  readonly services: Context.Context<never>
  /** Whether any backend sees what a span says of itself. */
  readonly isRecorded: boolean
}

/** One attempt under way: what every step of the pipeline looks at. */
export interface Attempting extends Session {
  readonly environment: Environment
  readonly common: Common
  readonly job: ReadyJob
  readonly origin: Origin
  readonly handler: Handler
  readonly control: Control
  readonly startedAt: number
  /** What the database did to the attempt's own transaction. Any other failure is the handler's, errors of other databases too. */
  broken: Breakage | undefined
  /** The attempt's span, once it has begun. */
  span: Tracer.Span | undefined
  /** How often the handler was started: again where the transaction that it shared was broken. */
  starts: number
  /** What the handler is given of it, once it has begun. */
  current: CurrentJobService | undefined
  /** The handler has returned, and what it returned is written. */
  completingAt: number | undefined
  /** The runtime waits for it no more: whatever it still does concludes nothing. */
  isAbandoned: boolean
}

/** The attempts of one ownership. */
export interface Execution {
  /** Since when the job could have been run: `undefined` where it was to be at once. */
  readonly scheduledFor: (job: ReadyJob) => number | undefined
  /** Runs a job once. Never fails; interruptible while the handler runs, not while it settles. */
  readonly run: (job: ReadyJob, handler: Handler, control: Control) => Effect.Effect<Conclusion>
  /** Concludes an attempt whose handler does not end. From here on it cannot commit. */
  readonly abandon: (attempting: Attempting) => Effect.Effect<Conclusion>
  /** Ends the transactions of an attempt from outside. */
  readonly sever: (attempting: Attempting) => Effect.Effect<void>
}

/** What is the same for many attempts is made once. */
export const make = (environment: Environment): Execution => {
  const origins = new WeakMap<object, Origin>()
  const originOf = ({ context, tenant }: ReadyJob): Origin => {
    if (typeof context !== "object" || context === null) return makeOrigin(environment, context, tenant)
    const known = origins.get(context)
    if (known !== undefined && known.tenantId === tenantId(tenant)) return known
    const origin = makeOrigin(environment, context, tenant)
    origins.set(context, origin)
    return origin
  }
  const commons = new WeakMap<Handler, Common>()
  const commonOf = (handler: Handler): Common => {
    const known = commons.get(handler)
    if (known !== undefined) return known
    const common = makeCommon(environment, handler)
    commons.set(handler, common)
    return common
  }
  return {
    scheduledFor: (job) => originOf(job).scheduledFor,
    run: (job, handler, control) =>
      Effect.flatMap(environment.store.now, (startedAt) => {
        const attempting: Attempting = {
          environment,
          common: commonOf(handler),
          job,
          origin: originOf(job),
          handler,
          control,
          startedAt,
          broken: undefined,
          span: undefined,
          end: undefined,
          starts: 0,
          current: undefined,
          completingAt: undefined,
          isAbandoned: false
        }
        control.attempting = attempting
        return attempt(attempting)
      }).pipe(Effect.uninterruptible),
    sever: ({ current, end = Effect.void }) =>
      current === undefined ? end : Effect.andThen(end, environment.store.endTransactions(current)),
    abandon: (attempting) => {
      attempting.isAbandoned = true
      const { control, environment, handler, span } = attempting
      const cause = control.isInterrupting()
        ? Cause.interrupt()
        : Cause.fail(new JobError.JobTimeout({ timeoutMs: handler.timeoutMs ?? 0 }))
      return Effect.flatMap(environment.store.now, (endedAt) => {
        if (span !== undefined) AttemptSpan.end(attempting, span, Exit.failCause(cause))
        return concludeFailure(attempting, cause, endedAt)
      })
    }
  }
}

/** Of an abandoned attempt: it has been concluded before. */
const superseded: Effect.Effect<Conclusion> = Effect.succeed({ _tag: "Superseded" })

const makeOrigin = ({ position }: Environment, context: unknown, tenant: TenantKey): Origin => {
  const { scheduledFor, ...request } = RequestContext.fromStored(context, tenantId(tenant))
  const trace = request.trace === undefined ? undefined : RequestContext.traceOf(request.trace)
  return {
    // Handlers of many jobs see the same object.
    request: Object.freeze({
      ...request,
      ...(request.roles === undefined ? {} : { roles: Object.freeze(request.roles) }),
      ...(request.origin === undefined ? {} : { origin: Object.freeze(request.origin) }),
      ...(request.trace === undefined ? {} : { trace: Object.freeze(request.trace) }),
      cluster: Object.freeze(position)
    }),
    tenantId: tenantId(tenant),
    scheduledFor,
    submitting: trace === undefined ? undefined : Tracer.externalSpan(trace)
  }
}

const makeCommon = ({ services, store }: Environment, handler: Handler): Common => {
  const merged = Context.mergeAll(
    services,
    handler.context,
    handler.transaction === "none" ? Context.empty() : store.handlerServices
  )
  return {
    // A few are added to it for each attempt: not worth a copy of all the others.
    services: Context.makeUnsafe(merged.mapUnsafe, { maxDepth: 16 }),
    isRecorded: AttemptSpan.isRecorded(merged)
  }
}

const attempt = (attempting: Attempting): Effect.Effect<Conclusion> =>
  Effect.flatMap(AttemptSpan.begin(attempting), (span) => {
    attempting.span = span
    return Effect.flatMap(
      Effect.exit(Effect.setContext(handled(attempting), ownServices(attempting, span))),
      (exit) => {
        if (attempting.isAbandoned) return superseded
        AttemptSpan.end(attempting, span, exit)
        return conclude(attempting, exit)
      }
    )
  })

type Unbroken = Exclude<Transacted, { readonly _tag: "Broken" }>

/** The handler inside its transaction; what it returns is encoded before anything is committed. */
const handled = (attempting: Attempting): Effect.Effect<Unbroken, unknown, CurrentJob> => {
  const { environment: { owner, store }, handler, job } = attempting
  const work = Effect.flatMap(handler.decode(job.payload), (payload) => {
    if (attempting.isAbandoned) return Effect.interrupt
    attempting.starts++
    attempting.completingAt = undefined
    return effectOf(handler.run(payload))
  }).pipe(
    // Within the timeout: a finalizer that hangs is part of the attempt.
    Effect.scoped,
    within(handler.timeoutMs, attempting.control.onTimeout),
    Effect.interruptible
  )
  const write = (result: string) => {
    if (attempting.isAbandoned) return Effect.interrupt
    attempting.completingAt = liveClock.currentTimeMillisUnsafe()
    return completed(attempting, result)
  }
  const complete = (value: unknown) => {
    const encoded = handler.encodeSuccess(value)
    // Most encoders answer at once. One that takes its time is part of the attempt, and may be interrupted.
    return Exit.isExit(encoded) && Exit.isSuccess(encoded) && typeof encoded.value === "string"
      ? write(encoded.value)
      : Effect.flatMap(
        Effect.catch(encoded, unencoded).pipe(
          within(handler.timeoutMs, attempting.control.onTimeout),
          Effect.interruptible
        ),
        write
      )
  }
  // One that has crashed shares no transaction: others would be blamed with it.
  const transact = handler.transaction === "grouped" && job.crashes === 0 ? store.transactGrouped : store.transact
  return handler.transaction === "none"
    ? Effect.map(Effect.flatMap(work, complete), ({ settlement }): Unbroken => ({ _tag: "Pending", settlement }))
    : Effect.flatMap(transact(owner, work, complete, attempting), (transacted): Effect.Effect<Unbroken, unknown> => {
      if (transacted._tag !== "Broken") return Effect.succeed(transacted)
      attempting.broken = transacted.by
      return Effect.failCause(transacted.cause)
    })
}

const completed = (
  attempting: Attempting,
  result: string
): Effect.Effect<{ readonly settlement: Finish; readonly now: number }, JobError.ResultTooLarge> => {
  const { environment: { queue, store }, job } = attempting
  const bytes = Buffer.byteLength(result)
  if (bytes > maxJsonBytes) return Effect.fail(new JobError.ResultTooLarge({ bytes, limitBytes: maxJsonBytes }))
  return Effect.map(store.now, (now) => ({
    now,
    settlement: {
      _tag: "Finish",
      id: job.id,
      version: job.version,
      outcome: "completed",
      result,
      purgeAt: now + queue.retention.completedMs,
      entry: { ...entryOf(attempting, now), outcome: "completed" }
    }
  }))
}

/** A result that its definition does not take is a mistake of the handler's. */
const unencoded = (error: unknown): Effect.Effect<never, JobError.ResultTooLarge> =>
  isA(error, JobError.ResultTooLarge) ? Effect.fail(error) : Effect.die(error)

/**
 * What is no Effect (a Promise, say) would end the fiber without its finalizers: the run would never be settled. A Proxy may say that it is
 * one, and be none.
 */
const effectOf = <A, E, R>(answer: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  !types.isProxy(answer) && Effect.isEffect(answer)
    ? answer
    : Effect.die(new TypeError("the handler did not return an Effect"))

/** `onTimeout` runs before the effect is interrupted, for it may not end by that. */
const within = (timeoutMs: number | undefined, onTimeout: () => void) => <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  timeoutMs === undefined ? effect : Effect.raceFirst(
    effect,
    Effect.flatMap(Effect.sleep(Duration.millis(timeoutMs)), () => {
      onTimeout()
      return Effect.fail(new JobError.JobTimeout({ timeoutMs }))
    })
  )

/**
 * The handler's own services over the runtime's, under those of this attempt: of its transaction, where it has one. Nothing of the fiber that
 * starts it gets through.
 */
const ownServices = (attempting: Attempting, span: Tracer.AnySpan): Context.Context<CurrentJob> => {
  const { common, control, environment, job, origin: { request } } = attempting
  const attempt = job.attempt + 1
  const current: CurrentJobService = {
    jobId: job.id,
    type: job.type,
    queue: environment.queue.name,
    attempt,
    submittedAt: job.createdAt,
    request,
    progress: control.progress
  }
  attempting.current = current
  return common.services.pipe(
    Context.add(RequestContext.Request, request),
    Context.add(References.CurrentLogAnnotations, {
      ...Context.get(common.services, References.CurrentLogAnnotations),
      jobId: job.id,
      jobType: job.type,
      attempt
    }),
    Context.add(CurrentJob, current),
    Context.add(Tracer.ParentSpan, span)
  )
}

const entryOf = (attempting: Attempting, endedAt: number): Omit<Attempt, "outcome"> => ({
  kind: "attempt",
  attempt: attempting.job.attempt + 1,
  startedAt: attempting.startedAt,
  endedAt,
  runner: attempting.environment.position.runner,
  ...(attempting.control.alongside === undefined ? {} : { alongside: attempting.control.alongside }),
  ...AttemptSpan.idsOf(attempting, attempting.span)
})

const conclude = (attempting: Attempting, exit: Exit.Exit<Unbroken, unknown>): Effect.Effect<Conclusion> => {
  if (Exit.isFailure(exit)) {
    return Effect.flatMap(
      attempting.environment.store.now,
      (endedAt) => concludeFailure(attempting, exit.cause, endedAt)
    )
  }
  const transacted = exit.value
  switch (transacted._tag) {
    case "Pending":
      return Effect.succeed({ _tag: "Settle", settlement: transacted.settlement })
    case "Unknown":
      attempting.broken = transacted.by
      return Effect.flatMap(attempting.environment.store.now, (now) =>
        Effect.map(
          concludeFailure(attempting, transacted.cause, now),
          (ifNot): Conclusion => ({ _tag: "Unknown", ifNot })
        ))
    case "Committed":
    case "Superseded":
      return Effect.succeed(transacted)
  }
}

/** How the run ended, as far as its failure tells: `undefined` where the runtime interrupted it. */
const endOf = ({ broken, control }: Attempting, cause: Cause.Cause<unknown>): RunEnding | undefined => {
  const verdict = Judgement.verdictOf(cause)
  if (broken === "crashed" && verdict !== "discard") return broken
  if (Cause.hasInterrupts(cause) && control.isInterrupting()) return undefined
  return broken === undefined || verdict !== undefined ? "failed" : broken
}

const concludeFailure = (
  attempting: Attempting,
  cause: Cause.Cause<unknown>,
  endedAt: number
): Effect.Effect<Exclude<Conclusion, { readonly _tag: "Unknown" }>> => {
  const { broken, environment, handler, job } = attempting
  const entry = entryOf(attempting, endedAt)
  const end = endOf(attempting, cause)
  if (end === undefined) return Effect.succeed({ _tag: "Interrupted", entry })
  if (end === broken && countsAs(end, job.reruns) !== "attempt") {
    return Effect.map(Judgement.failureOf(cause, handler), (failure) => ({ _tag: "Rerun", end, failure, entry }))
  }
  return Effect.map(Judgement.judge(cause, handler, entry.attempt), ({ decision, failure }) => ({
    _tag: "Settle",
    settlement: asRerun(end, Judgement.settlementOf(job, entry, decision, failure, environment.queue.retention))
  }))
}

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
import * as Random from "effect/Random"
import * as Tracer from "effect/Tracer"
import { CurrentJob, type Service as CurrentJobService } from "./CurrentJob.ts"
import * as JobError from "./JobError.ts"
import type { Handler } from "./JobHandlers.ts"
import type { Attempt } from "./JobHistory.ts"
import { type JobQueue, maxJsonBytes, type Retention } from "./JobQueue.ts"
import {
  type Finish,
  type JobStore,
  type Owner,
  type ReadyJob,
  type Settlement,
  tenantId,
  type Transacted
} from "./JobStore.ts"
import * as RequestContext from "./RequestContext.ts"
import * as RetryPolicy from "./RetryPolicy.ts"

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
}

/**
 * How an attempt ended. `Settle`: still to be written down. `Committed`: written in the handler's own transaction. `Rerun`: rolled back
 * for a reason of the database's; not counted. `Unknown`: the connection was lost during COMMIT.
 */
export type Conclusion =
  | { readonly _tag: "Settle"; readonly settlement: Settlement }
  | { readonly _tag: "Committed"; readonly settlement: Finish }
  | {
    readonly _tag: "Rerun"
    readonly trouble: "conflict" | "connection"
    readonly cause: Cause.Cause<unknown>
    readonly entry: Omit<Attempt, "outcome">
  }
  | { readonly _tag: "Superseded" }
  | { readonly _tag: "Unknown" }
  | { readonly _tag: "Interrupted"; readonly entry: Omit<Attempt, "outcome"> }

/** One attempt under way: what every step of the pipeline looks at. */
interface Attempting {
  readonly environment: Environment
  readonly job: ReadyJob
  readonly handler: Handler
  readonly control: Control
  readonly stored: RequestContext.Stored
  readonly startedAt: number
  /** The attempt's span, once it has begun. */
  span: Tracer.AnySpan | undefined
  /** What the database did to the attempt's own transaction. Any other failure is the handler's, errors of other databases too. */
  broken: "conflict" | "connection" | undefined
}

/** Runs a job once. Never fails; interruptible while the handler runs, not while it settles. */
export const run = (
  environment: Environment,
  job: ReadyJob,
  handler: Handler,
  control: Control
): Effect.Effect<Conclusion> =>
  Effect.gen(function*() {
    const attempting: Attempting = {
      environment,
      job,
      handler,
      control,
      stored: RequestContext.fromStored(job.context, tenantId(job.tenant)),
      startedAt: yield* environment.store.now,
      span: undefined,
      broken: undefined
    }
    const exit = yield* Effect.currentParentSpan.pipe(
      Effect.flatMap((span) => {
        attempting.span = span
        return handled(attempting, span)
      }),
      withAttemptSpan(attempting),
      Effect.annotateLogs({ jobId: job.id, jobType: job.type, attempt: job.attempt + 1 }),
      Effect.setContext(services(attempting)),
      Effect.exit
    )
    return yield* conclude(attempting, exit, yield* environment.store.now)
  }).pipe(Effect.uninterruptible)

type Unbroken = Exclude<Transacted, { readonly _tag: "Broken" }>

/** The handler inside its transaction; what it returns is encoded before anything is committed. */
const handled = (attempting: Attempting, span: Tracer.AnySpan): Effect.Effect<Unbroken, unknown> => {
  const { environment: { owner, queue, store }, handler, job } = attempting
  const work = Effect.flatMap(handler.decode(job.payload), (payload) => effectOf(handler.run(payload))).pipe(
    within(handler.timeoutMs),
    Effect.scoped,
    Effect.provideService(CurrentJob, currentJob(attempting)),
    // Not the transaction's, which most attempts never begin.
    Effect.withParentSpan(span),
    Effect.interruptible
  )
  const complete = (value: unknown) =>
    Effect.gen(function*() {
      const result = yield* Effect.orDie(handler.encodeSuccess(value))
      const bytes = Buffer.byteLength(result)
      if (bytes > maxJsonBytes) return yield* new JobError.ResultTooLarge({ bytes, limitBytes: maxJsonBytes })
      const now = yield* store.now
      const settlement: Finish = {
        _tag: "Finish",
        id: job.id,
        version: job.version,
        outcome: "completed",
        result,
        purgeAt: now + queue.retention.completedMs,
        entry: { ...entryOf(attempting, now), outcome: "completed" }
      }
      return { settlement, now }
    })
  return handler.transaction === "job"
    ? Effect.flatMap(store.transact(owner, work, complete), (transacted): Effect.Effect<Unbroken, unknown> => {
      if (transacted._tag !== "Broken") return Effect.succeed(transacted)
      attempting.broken = transacted.by
      return Effect.failCause(transacted.cause)
    })
    : Effect.map(Effect.flatMap(work, complete), ({ settlement }): Unbroken => ({ _tag: "Pending", settlement }))
}

/** What is no Effect (a Promise, say) would end the fiber without its finalizers: the run would never be settled. */
const effectOf = <A, E, R>(answer: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.isEffect(answer) ? answer : Effect.die(new TypeError("the handler did not return an Effect"))

const within = (timeoutMs: number | undefined) => <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  timeoutMs === undefined ? effect : Effect.timeoutOrElse(effect, {
    duration: Duration.millis(timeoutMs),
    orElse: () => Effect.fail(new JobError.JobTimeout({ timeoutMs }))
  })

const requestOf = ({ environment, stored }: Attempting): RequestContext.RequestContext => {
  const { scheduledFor: _, ...request } = stored
  return { ...request, cluster: environment.position }
}

const currentJob = (attempting: Attempting): CurrentJobService => {
  const { control, environment, job } = attempting
  return {
    jobId: job.id,
    type: job.type,
    queue: environment.queue.name,
    attempt: job.attempt + 1,
    submittedAt: job.createdAt,
    request: requestOf(attempting),
    progress: control.progress
  }
}

/**
 * The handler's own services over the runtime's, under those of this attempt: of its transaction, where it has one. Nothing of the fiber that
 * starts it gets through.
 */
const services = (attempting: Attempting): Context.Context<never> =>
  Context.mergeAll(
    attempting.environment.services,
    attempting.handler.context,
    attempting.handler.transaction === "job" ? attempting.environment.store.handlerServices : Context.empty()
  ).pipe(
    Context.add(RequestContext.Request, requestOf(attempting))
  )

/**
 * The attempt's span: a consumer span named by OpenTelemetry's messaging conventions, with a link to the submitting span in every case. It
 * is that span's child where the job was to start at once, and begins a trace of its own where it was scheduled.
 */
const withAttemptSpan =
  ({ environment, job, stored }: Attempting) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, Exclude<R, Tracer.ParentSpan>> => {
    const trace = stored.trace === undefined ? undefined : RequestContext.traceOf(stored.trace)
    const submitting = trace === undefined ? undefined : Tracer.externalSpan(trace)
    const isChild = submitting !== undefined && stored.scheduledFor === undefined
    return Effect.withSpan(withErrorType(effect), `process ${environment.queue.name}`, {
      kind: "consumer",
      ...(isChild ? { parent: submitting } : { root: true }),
      links: submitting === undefined ? [] : [{ span: submitting, attributes: {} }],
      attributes: {
        "messaging.system": "millrace",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": environment.queue.name,
        "messaging.destination.partition.id": String(environment.owner.partition),
        "messaging.message.id": job.id,
        "millrace.job.type": job.type,
        "millrace.job.attempt": job.attempt + 1,
        ...(stored.tenantId === undefined ? {} : { "millrace.tenant.id": stored.tenantId })
      }
    })
  }

/** `error.type` of the conventions, on a span whose effect fails. An interruption is not a failure. */
const withErrorType = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.tapCause(effect, (cause) =>
    Cause.hasInterruptsOnly(cause)
      ? Effect.void
      : Effect.annotateCurrentSpan("error.type", JobError.tagOf(Cause.squash(cause))))

const entryOf = ({ environment, job, span, startedAt }: Attempting, endedAt: number): Omit<Attempt, "outcome"> => {
  const trace = span === undefined ? undefined : RequestContext.traceOf(span)
  return {
    kind: "attempt",
    attempt: job.attempt + 1,
    startedAt,
    endedAt,
    runner: environment.position.runner,
    ...(trace === undefined ? {} : { traceId: trace.traceId, spanId: trace.spanId })
  }
}

const conclude = (
  attempting: Attempting,
  exit: Exit.Exit<Unbroken, unknown>,
  endedAt: number
): Effect.Effect<Conclusion> => {
  const { broken, control, environment, handler, job } = attempting
  if (Exit.isSuccess(exit)) {
    const transacted = exit.value
    return Effect.succeed(
      transacted._tag === "Pending" ? { _tag: "Settle", settlement: transacted.settlement } : transacted
    )
  }
  const { cause } = exit
  const entry = entryOf(attempting, endedAt)
  if (Cause.hasInterrupts(cause) && control.isInterrupting()) return Effect.succeed({ _tag: "Interrupted", entry })
  if (broken !== undefined && !isVerdict(Cause.squash(cause))) {
    return Effect.succeed({ _tag: "Rerun", trouble: broken, cause, entry })
  }
  return Effect.map(
    judge(cause, handler, entry.attempt),
    ({ decision, failure }): Conclusion => ({
      _tag: "Settle",
      settlement: settlementOf(job, entry, decision, failure, environment.queue.retention)
    })
  )
}

/** The same failure as a settlement. Also for the runtime's own verdicts (crash loops, reruns that do not end). */
export const settlementOf = (
  job: ReadyJob,
  entry: Omit<Attempt, "outcome">,
  decision: RetryPolicy.Decision,
  failure: JobError.JobFailure,
  retention: Retention
): Settlement => {
  const { id, version } = job
  const brief = withoutLargeError(failure)
  switch (decision._tag) {
    case "Retry": {
      const dueAt = entry.endedAt + decision.delayMs
      return { _tag: "Retry", id, version, dueAt, entry: { ...entry, outcome: "retried", dueAt, failure: brief } }
    }
    case "DeadLetter":
      return {
        _tag: "DeadLetter",
        id,
        version,
        failure,
        isAttempt: true,
        entry: { ...entry, outcome: "dead-lettered", failure: brief }
      }
    case "Snooze": {
      const dueAt = entry.endedAt + decision.delayMs
      return { _tag: "PutBack", id, version, dueAt, entry: { ...entry, outcome: "put back", dueAt } }
    }
    case "Discard":
      return {
        _tag: "Finish",
        id,
        version,
        outcome: "cancelled",
        result: undefined,
        purgeAt: entry.endedAt + retention.cancelledMs,
        entry: { ...entry, outcome: "cancelled", failure: brief }
      }
  }
}

/** Of a typed error, in characters of JSON. */
const maxErrorLength = 1_000_000

/** History keeps at most 8 kB of an encoded error; the dead letter itself keeps all of it. */
const withoutLargeError = (failure: JobError.JobFailure): JobError.JobFailure => {
  if (failure.error === undefined || JSON.stringify(failure.error).length <= 8_000) return failure
  const { error: _, ...rest } = failure
  return rest
}

/** Classifies a failure and decides. A policy of the user's that throws is a dead letter, not a wedged queue. */
export const judge = (
  cause: Cause.Cause<unknown>,
  handler: Handler,
  attempt: number
): Effect.Effect<{ readonly decision: RetryPolicy.Decision; readonly failure: JobError.JobFailure }> =>
  Effect.gen(function*() {
    const failed = cause.reasons.find(Cause.isFailReason)
    const error = failed === undefined ? Cause.squash(cause) : failed.error
    const { failure, isTyped } = yield* describe(error, failed !== undefined, handler)
    const question: RetryPolicy.Question = {
      policy: handler.retry,
      attempt,
      class: failure.class,
      error,
      retryAfterMs: isTyped ? JobError.retryAfterOf(error) : undefined,
      asked: askedBy(error),
      jitter: yield* Random.next
    }
    const decision = yield* Effect.sync(() => RetryPolicy.decide(question)).pipe(
      Effect.catchCause((cause) =>
        Effect.as(
          Effect.logError("A custom retry policy died: the job becomes a dead letter", cause),
          { _tag: "DeadLetter" } satisfies RetryPolicy.Decision
        )
      )
    )
    return { decision, failure }
  })

/** Says what is to become of the job, also after the database broke its transaction. */
const isVerdict = (error: unknown): boolean => askedBy(error) !== undefined || error instanceof JobError.JobTimeout

const askedBy = (error: unknown): RetryPolicy.Question["asked"] =>
  error instanceof JobError.Snooze
    ? { snoozeMs: Duration.toMillis(error.delay) }
    : error instanceof JobError.Discard
    ? { discard: error.because }
    : undefined

/** Our own verdicts carry their class; a failure the definition can encode is typed; everything else is a defect, class System. */
const describe = (error: unknown, isFailure: boolean, handler: Handler) =>
  Effect.gen(function*() {
    if (
      error instanceof JobError.ParseError || error instanceof JobError.JobTimeout ||
      error instanceof JobError.CommitFailed ||
      error instanceof JobError.ResultTooLarge
    ) {
      return { failure: JobError.toFailure(error, { class: error.errorClass }), isTyped: true }
    }
    if (error instanceof JobError.Snooze || error instanceof JobError.Discard) {
      return { failure: JobError.toFailure(error, { class: "Business" }), isTyped: true }
    }
    const encoded = isFailure ? yield* Effect.exit(handler.encodeError(error)) : undefined
    if (encoded === undefined || Exit.isFailure(encoded)) {
      return { failure: JobError.toFailure(error, { class: "System" }), isTyped: false }
    }
    // A dead letter has to stay readable; what is left of such an error is its tag and message.
    const isStorable = JSON.stringify(encoded.value).length <= maxErrorLength
    const named = yield* Effect.sync(() => handler.classify(error)).pipe(Effect.catchCause(() => Effect.undefined))
    const errorClass = named ?? JobError.errorClassOf(error) ?? "Business"
    const failure = JobError.toFailure(error, {
      class: errorClass,
      ...(isStorable ? { encoded: encoded.value } : {})
    })
    return { failure, isTyped: true }
  })

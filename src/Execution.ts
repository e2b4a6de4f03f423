/**
 * One attempt: `span > request context > timeout > decode > transaction > handler > exit > classify > decide`.
 *
 * Every step is total and the last one is pure (RetryPolicy.decide). What it concludes is written down by the partition. A crash on any
 * line before COMMIT leaves the job's row as it was, and none of the handler's writes.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Random from "effect/Random"
import * as References from "effect/References"
import * as Tracer from "effect/Tracer"
import { CurrentJob, type Service as CurrentJobService } from "./CurrentJob.ts"
import * as JobError from "./JobError.ts"
import type { Handler } from "./JobHandlers.ts"
import type { Attempt } from "./JobHistory.ts"
import { type JobQueue, maxJsonBytes, type Retention } from "./JobQueue.ts"
import { type Finish, type JobStore, type Owner, type ReadyJob, type Settlement, type Transacted } from "./JobStore.ts"
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
  /** What the database did to the attempt's own transaction. Any other failure is the handler's, errors of other databases too. */
  broken: "conflict" | "connection" | undefined
  /** The attempt's span, once it has begun. */
  span: Tracer.AnySpan | undefined
}

/** Runs a job once. Never fails; interruptible while the handler runs, not while it settles. */
export type Run = (
  job: ReadyJob,
  stored: RequestContext.Stored,
  handler: Handler,
  control: Control
) => Effect.Effect<Conclusion>

/** Runs the jobs of one ownership. What the attempts of one handler have in common is made once. */
export const make = (environment: Environment): Run => {
  const bases = new WeakMap<Handler, Context.Context<never>>()
  const baseOf = (handler: Handler) => {
    const known = bases.get(handler)
    if (known !== undefined) return known
    const base = basis(environment, handler)
    bases.set(handler, base)
    return base
  }
  return (job, stored, handler, control) =>
    Effect.flatMap(environment.store.now, (startedAt) => {
      const attempting: Attempting = {
        environment,
        job,
        handler,
        control,
        stored,
        startedAt,
        broken: undefined,
        span: undefined
      }
      return Effect.setContext(attempt(attempting), baseOf(handler))
    }).pipe(Effect.uninterruptible)
}

/** Services of an attempt that are the same for all of its handler's, and room for those that are not: see {@link withOwnServices}. */
const basis = ({ services, store }: Environment, handler: Handler): Context.Context<never> =>
  Context.makeUnsafe(
    Context.mergeAll(
      services,
      handler.context,
      handler.transaction === "none" ? Context.empty() : store.handlerServices
    ).mapUnsafe,
    // Eight are added to it for each attempt: not worth a copy of all the others.
    { maxDepth: 16 }
  )

const attempt = (attempting: Attempting): Effect.Effect<Conclusion> =>
  Effect.withFiber((fiber) => {
    const base: Context.Context<never> = fiber.context
    return Effect.flatMap(spanOf(attempting, base), (span) => {
      attempting.span = span
      return handled(attempting).pipe(
        Effect.setContext(withOwnServices(attempting, base, span)),
        Effect.exit,
        Effect.flatMap((exit) => {
          endSpan(span, exit, base)
          return Effect.flatMap(attempting.environment.store.now, (endedAt) => conclude(attempting, exit, endedAt))
        })
      )
    })
  })

type Unbroken = Exclude<Transacted, { readonly _tag: "Broken" }>

/** The handler inside its transaction; what it returns is encoded before anything is committed. */
const handled = (attempting: Attempting): Effect.Effect<Unbroken, unknown, CurrentJob> => {
  const { environment: { owner, store }, handler, job } = attempting
  const work = Effect.flatMap(handler.decode(job.payload), (payload) => effectOf(handler.run(payload))).pipe(
    within(handler.timeoutMs),
    Effect.scoped,
    Effect.interruptible
  )
  const complete = (value: unknown) => {
    const encoded = handler.encodeSuccess(value)
    // Most encoders answer at once.
    return Exit.isExit(encoded) && Exit.isSuccess(encoded) && typeof encoded.value === "string"
      ? completed(attempting, encoded.value)
      : Effect.flatMap(Effect.orDie(encoded), (result) => completed(attempting, result))
  }
  return handler.transaction === "none"
    ? Effect.map(Effect.flatMap(work, complete), ({ settlement }): Unbroken => ({ _tag: "Pending", settlement }))
    : Effect.flatMap(store.transact(owner, work, complete), (transacted): Effect.Effect<Unbroken, unknown> => {
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

/**
 * The handler's own services over the runtime's, under those of this attempt: of its transaction, where it has one. Nothing of the fiber that
 * starts it gets through.
 */
const withOwnServices = (
  attempting: Attempting,
  base: Context.Context<never>,
  span: Tracer.AnySpan
): Context.Context<CurrentJob> => {
  const { control, environment, job } = attempting
  const request = requestOf(attempting)
  const attempt = job.attempt + 1
  return base.pipe(
    Context.add(RequestContext.Request, request),
    Context.add(References.CurrentLogAnnotations, {
      ...Context.get(base, References.CurrentLogAnnotations),
      jobId: job.id,
      jobType: job.type,
      attempt
    }),
    Context.add(CurrentJob, {
      jobId: job.id,
      type: job.type,
      queue: environment.queue.name,
      attempt,
      submittedAt: job.createdAt,
      request,
      progress: control.progress
    }),
    Context.add(Tracer.ParentSpan, span)
  )
}

/**
 * The attempt's span: a consumer span named by OpenTelemetry's messaging conventions, with a link to the submitting span in every case. It
 * is that span's child where the job was to start at once, and begins a trace of its own where it was scheduled. Where nobody records spans
 * it is made all the same, for its ids, but says nothing of itself.
 */
const spanOf = (
  { environment, job, stored }: Attempting,
  base: Context.Context<never>
): Effect.Effect<Tracer.Span> => {
  const trace = stored.trace === undefined ? undefined : RequestContext.traceOf(stored.trace)
  const submitting = trace === undefined ? undefined : Tracer.externalSpan(trace)
  const isChild = submitting !== undefined && stored.scheduledFor === undefined
  const kinship = isChild ? { parent: submitting } : { root: true }
  if (!isRecorded(base)) return Effect.makeSpan(`process ${environment.queue.name}`, { kind: "consumer", ...kinship })
  return Effect.makeSpan(`process ${environment.queue.name}`, {
    kind: "consumer",
    ...kinship,
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

/** Whether any backend would see what a span says of itself. */
const isRecorded = (context: Context.Context<never>): boolean =>
  Context.get(context, Tracer.Tracer) !== Tracer.nativeTracer

/** Ends it, with `error.type` of the conventions where the attempt failed. An interruption is not a failure. */
const endSpan = (span: Tracer.Span, exit: Exit.Exit<unknown, unknown>, base: Context.Context<never>): void => {
  if (Exit.isFailure(exit) && !Cause.hasInterruptsOnly(exit.cause)) {
    span.attribute("error.type", JobError.tagOf(Cause.squash(exit.cause)))
  }
  const isTimed = Context.get(base, References.TracerTimingEnabled)
  span.end(isTimed ? Context.get(base, Clock.Clock).currentTimeNanosUnsafe() : 0n, exit)
}

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

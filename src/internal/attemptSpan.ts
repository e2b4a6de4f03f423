/**
 * How an attempt shows in a trace: its span, and the ids that its history names.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as References from "effect/References"
import * as Result from "effect/Result"
import * as Tracer from "effect/Tracer"
import { tagOf } from "../JobError.ts"
import type { Attempt } from "../JobHistory.ts"
import type { Owner, ReadyJob } from "../JobStore.ts"
import * as RequestContext from "../RequestContext.ts"
import { inspectableCause } from "./words/safely.ts"

/** What a span says of an attempt. */
export interface Traced {
  readonly environment: { readonly owner: Pick<Owner, "partition">; readonly queue: { readonly name: string } }
  readonly common: {
    /** Its services, among them the tracer. */
    readonly services: Context.Context<never>
    readonly isRecorded: boolean
  }
  readonly job: Pick<ReadyJob, "id" | "type" | "attempt">
  readonly origin: {
    readonly tenantId: string | undefined
    readonly scheduledFor: number | undefined
    /** The span it was submitted in. */
    readonly submitting: Tracer.ExternalSpan | undefined
  }
}

/** Whether any backend sees what a span says of itself, where these are the services. */
export const isRecorded = (services: Context.Context<never>): boolean =>
  !Context.get(services, References.TracerEnabled) || Context.get(services, Tracer.Tracer) !== Tracer.nativeTracer

/**
 * The attempt's span: a consumer span named by OpenTelemetry's messaging conventions, with a link to the submitting span in every case. It
 * is that span's child where the job was to start at once, and begins a trace of its own where it was scheduled. Where nobody records spans
 * it is made all the same, for its ids, but says nothing of itself.
 */
export const begin = ({ common, environment, job, origin }: Traced): Effect.Effect<Tracer.Span> => {
  const { scheduledFor, submitting } = origin
  const name = `process ${environment.queue.name}`
  const parent = submitting !== undefined && scheduledFor === undefined ? submitting : undefined
  if (!common.isRecorded) {
    return Effect.succeed(
      new Tracer.NativeSpan({
        name,
        parent: Option.fromUndefinedOr(parent),
        annotations: Context.empty(),
        links: [],
        startTime: 0n,
        kind: "consumer",
        sampled: parent?.sampled ?? true
      })
    )
  }
  return Effect.setContext(
    Effect.makeSpan(name, {
      kind: "consumer",
      ...(parent === undefined ? { root: true } : { parent }),
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
        ...(origin.tenantId === undefined ? {} : { "millrace.tenant.id": origin.tenantId })
      }
    }),
    common.services
  )
}

/**
 * Ends it, with `error.type` of the conventions where the attempt failed. An interruption is not a failure. The tracer gets errors that it can
 * inspect, whatever the handler failed with; one that throws all the same loses the span, and the attempt goes on.
 */
export const end = ({ common }: Traced, span: Tracer.Span, exit: Exit.Exit<unknown, unknown>): void => {
  if (!common.isRecorded) return
  Result.try(() => {
    if (Exit.isFailure(exit) && !Cause.hasInterruptsOnly(exit.cause)) {
      span.attribute("error.type", tagOf(Cause.squash(exit.cause)))
    }
    const isTimed = Context.get(common.services, References.TracerTimingEnabled)
    span.end(
      isTimed ? Context.get(common.services, Clock.Clock).currentTimeNanosUnsafe() : 0n,
      Exit.isFailure(exit) ? Exit.failCause(inspectableCause(exit.cause)) : exit
    )
  })
}

/** The ids of a span. Those of one that nobody records are Effect's own, and right. */
export const idsOf = ({ common }: Traced, span: Tracer.Span | undefined): Pick<Attempt, "traceId" | "spanId"> => {
  const trace = span === undefined || !common.isRecorded ? span : RequestContext.traceOf(span)
  return trace === undefined ? {} : { traceId: trace.traceId, spanId: trace.spanId }
}

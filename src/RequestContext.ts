/**
 * Who asked for the work: tenant, user, request, trace. Captured at `submit`, stored with the job, restored around its handler.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"

/** W3C trace context of the submitting span: 32 and 16 lower-case hex digits. */
export const Trace = Schema.Struct({
  traceId: Schema.String,
  spanId: Schema.String,
  sampled: Schema.Boolean
})

/** W3C trace context of the submitting span. */
export type Trace = typeof Trace.Type

/**
 * What is stored of a span, or nothing where its ids name no trace: tracing is off (`noop`), no provider is registered (zeros), or
 * somebody else wrote the row. A child of such a span would join a trace that is not there, and could not be exported.
 */
export const traceOf = ({ sampled, spanId, traceId }: Trace): Trace | undefined =>
  /^(?!0*$)[0-9a-f]{16,32}$/.test(traceId) && /^(?!0*$)[0-9a-f]{16}$/.test(spanId)
    ? { traceId, spanId, sampled }
    : undefined

/** Where an attempt runs. Present only inside a handler. */
export const ClusterPosition = Schema.Struct({
  runner: Schema.String,
  shard: Schema.String,
  entity: Schema.String
})

/** Where an attempt runs. */
export type ClusterPosition = typeof ClusterPosition.Type

/** The request a job was submitted for. Every field is optional: with none given the caller is the *system*. */
export const RequestContext = Schema.Struct({
  tenantId: Schema.optionalKey(Schema.String),
  userId: Schema.optionalKey(Schema.String),
  requestId: Schema.optionalKey(Schema.String),
  roles: Schema.optionalKey(Schema.Array(Schema.String)),
  origin: Schema.optionalKey(Schema.Struct({
    ip: Schema.optionalKey(Schema.String),
    userAgent: Schema.optionalKey(Schema.String)
  })),
  trace: Schema.optionalKey(Trace),
  cluster: Schema.optionalKey(ClusterPosition)
})

/** The request a job was submitted for. */
export type RequestContext = typeof RequestContext.Type

/** The caller when nobody is named. */
export const system: RequestContext = {}

/** The current request. Defaults to the {@link system}; inherited by forked fibers. */
export const Request: Context.Reference<RequestContext> = Context.Reference("millrace/RequestContext/Request", {
  defaultValue: () => system
})

/** Runs an effect on behalf of `request`: what it submits carries this context. */
export const provide: {
  (request: RequestContext): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, request: RequestContext): Effect.Effect<A, E, R>
} = dual(
  2,
  <A, E, R>(self: Effect.Effect<A, E, R>, request: RequestContext): Effect.Effect<A, E, R> =>
    Effect.provideService(self, Request, request)
)

/** What is stored with a job: its request, and when it was to start if not at once. */
export const Stored = Schema.Struct({ ...RequestContext.fields, scheduledFor: Schema.optionalKey(Schema.Finite) })

/** What is stored with a job. */
export type Stored = typeof Stored.Type

const decodeStored = Schema.decodeUnknownOption(Stored)

/**
 * Reads a stored context. What cannot be read (written by other means than `submit`) is empty, but for the tenant: that is the row's, since
 * a handler that ran as the system would reach every tenant's jobs.
 */
export const fromStored = (stored: unknown, tenantId: string | undefined): Stored => {
  const { tenantId: _, ...rest }: Stored = Option.getOrElse(decodeStored(stored), () => system)
  return tenantId === undefined ? rest : { ...rest, tenantId }
}

/**
 * What any error says of itself, and what is kept of it: its class, when it wants to be tried again, its tag, and all that as it is stored.
 * Public through `JobError`.
 */
import type * as Duration from "effect/Duration"
import * as Formatter from "effect/Formatter"
import * as Predicate from "effect/Predicate"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { durationLike, millisOf, shown } from "./options.ts"

/**
 * What kind of failure it was. By default `Permanent` and `Validation` are not tried again, the others are.
 * A typed error without a class is `Business`, a defect is `System`.
 */
export const ErrorClass = Schema.Literals(["Transient", "Permanent", "Timeout", "Validation", "Business", "System"])

/** What kind of failure it was. */
export type ErrorClass = typeof ErrorClass.Type

/** A stored failure of an attempt. `message` is at most 8 kB of text; `error` is the encoded typed error, absent for defects. */
export const JobFailure = Schema.Struct({
  class: ErrorClass,
  tag: Schema.String,
  message: Schema.String,
  stack: Schema.optionalKey(Schema.String),
  error: Schema.optionalKey(Schema.Json)
})

/** A stored failure of an attempt. */
export type JobFailure = typeof JobFailure.Type

/** The class a typed error names itself, by a property `errorClass`. */
export const errorClassOf = (error: unknown): ErrorClass | undefined => {
  if (!Predicate.hasProperty(error, "errorClass")) return undefined
  const named = error.errorClass
  return ErrorClass.literals.find((literal) => literal === named)
}

/** The delay a typed error asks for, by a property `retryAfter` (a `Duration`, milliseconds, or a text such as `"5 seconds"`), in milliseconds. */
export const retryAfterOf = (error: unknown): number | undefined => {
  if (!Predicate.hasProperty(error, "retryAfter")) return undefined
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- anything may be there, and what is no duration is NaN
  const millis = millisOf(error.retryAfter as Duration.Input)
  return Number.isFinite(millis) && millis >= 0 ? millis : undefined
}

/** What is wrong with the delay that an error asks for, if anything is: it is passed over. */
export const wrongRetryAfter = (error: unknown): string | undefined => {
  if (retryAfterOf(error) !== undefined || !Predicate.hasProperty(error, "retryAfter")) return undefined
  const { retryAfter } = error
  return retryAfter === undefined || retryAfter === null
    ? undefined
    : `retryAfter: expected a duration that is finite and not negative, ${durationLike}, received ${shown(retryAfter)}`
}

const limit = 8_000

const text = (value: unknown): string => describe(value).slice(0, limit).replaceAll("\0", "\u{fffd}")

/** What a property says of an error; nothing, where reading it throws. */
const read = <A>(property: () => A): A | undefined => Result.getOrElse(Result.try(property), () => undefined)

/** A failure as it is stored: texts cut to 8 kB and free of NUL, which `jsonb` refuses. Cannot throw, whatever the error is. */
export const toFailure = (error: unknown, as: {
  readonly class: ErrorClass
  /** The encoded typed error; absent for defects. */
  readonly encoded?: Schema.Json
}): JobFailure => {
  const isTyped = as.encoded !== undefined
  const stack = error instanceof Error && !isTyped ? read(() => error.stack) : undefined
  return {
    class: as.class,
    tag: text(tagOf(error)).slice(0, 200),
    message: text(error instanceof Error ? read(() => serverWords(error) ?? error.message) ?? "" : error),
    ...(stack === undefined ? {} : { stack: text(stack) }),
    ...(as.encoded === undefined ? {} : { error: as.encoded })
  }
}

/** What the database said, where it said something: the message of a `SqlError` is the same for every failed statement. */
const serverWords = (error: Error): string | undefined => {
  const reason =
    Predicate.hasProperty(error, "_tag") && error._tag === "SqlError" && Predicate.hasProperty(error, "reason")
      ? error.reason
      : undefined
  const cause = Predicate.hasProperty(reason, "cause") ? reason.cause : undefined
  if (!(cause instanceof Error)) return undefined
  // Node's own codes (EPIPE) look like SQLSTATEs: the server names a severity as well.
  const hasState = Predicate.hasProperty(cause, "severity") && Predicate.hasProperty(cause, "code")
  const state = hasState ? ` (SQLSTATE ${String(cause.code)})` : ""
  return `${cause.message}${state}`
}

/** What kind of error it is, in one word: its tag, or its name. Cannot throw. */
export const tagOf = (error: unknown): string => {
  const tag = read(() => Predicate.hasProperty(error, "_tag") ? error._tag : undefined)
  if (typeof tag === "string") return tag
  const name = error instanceof Error ? read(() => error.name) : undefined
  return typeof name === "string" ? name : "UnknownError"
}

const describe = (value: unknown): string => typeof value === "string" ? value : Formatter.format(value)

/**
 * What any error says of itself, and what is kept of it: its class, when it wants to be tried again, its tag, and all that as it is stored.
 * Nothing here throws, whatever the error is (see `safely`). Public through `JobError`.
 */
import type * as Duration from "effect/Duration"
import * as Schema from "effect/Schema"
import { durationLike, millisOf, shown } from "./options.ts"
import { cut, describe, isA, isOpaque, opaque, property, read, stackOf, textOf } from "./safely.ts"

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
  const named = property(error, "errorClass")
  return ErrorClass.literals.find((literal) => literal === named)
}

const delayOf = (retryAfter: unknown): number | undefined => {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- anything may be there, and what is no duration is NaN
  const millis = read(() => millisOf(retryAfter as Duration.Input))
  return millis !== undefined && Number.isFinite(millis) && millis >= 0 ? millis : undefined
}

/** The delay a typed error asks for, by a property `retryAfter` (a `Duration`, milliseconds, or a text such as `"5 seconds"`), in milliseconds. */
export const retryAfterOf = (error: unknown): number | undefined => delayOf(property(error, "retryAfter"))

/** What is wrong with the delay that an error asks for, if anything is: it is passed over. */
export const wrongRetryAfter = (error: unknown): string | undefined => {
  const retryAfter = property(error, "retryAfter")
  return retryAfter === undefined || retryAfter === null || delayOf(retryAfter) !== undefined
    ? undefined
    : `retryAfter: expected a duration that is finite and not negative, ${durationLike}, received ${shown(retryAfter)}`
}

const limit = 8_000

/** Text as it is stored: at most 8 kB, well-formed and free of NUL. */
const text = (value: unknown): string =>
  cut(typeof value === "string" ? value : describe(value, limit), limit).toWellFormed().replaceAll("\0", "\u{fffd}")

/** A failure as it is stored: texts cut to 8 kB and free of NUL, which `jsonb` refuses. Cannot throw, whatever the error is. */
export const toFailure = (error: unknown, as: {
  readonly class: ErrorClass
  /** The encoded typed error; absent for defects. */
  readonly encoded?: Schema.Json
}): JobFailure => {
  const isError = isA(error, Error)
  const isTyped = as.encoded !== undefined
  const stack = isError && !isTyped ? stackOf(error) : undefined
  return {
    class: as.class,
    tag: cut(text(tagOf(error)), 200),
    message: text(
      isError ? serverWords(error) ?? property(error, "message") ?? "" : isOpaque(error) ? opaque : error
    ),
    ...(stack === undefined ? {} : { stack: text(stack) }),
    ...(as.encoded === undefined ? {} : { error: as.encoded })
  }
}

/** What the database said, where it said something: the message of a `SqlError` is the same for every failed statement. */
const serverWords = (error: Error): string | undefined => {
  if (property(error, "_tag") !== "SqlError") return undefined
  const cause = property(property(error, "reason"), "cause")
  if (!isA(cause, Error)) return undefined
  // Node's own codes (EPIPE) look like SQLSTATEs: the server names a severity as well.
  const code = property(cause, "severity") === undefined ? undefined : textOf(cause, "code")
  const message = textOf(cause, "message")
  return message === undefined ? undefined : `${message}${code === undefined ? "" : ` (SQLSTATE ${code})`}`
}

/** What kind of error it is, in one word: its tag, or its name. Cannot throw. */
export const tagOf = (error: unknown): string =>
  textOf(error, "_tag") ?? (isA(error, Error) ? textOf(error, "name") : undefined) ??
    (isOpaque(error) ? uninspectable : "UnknownError")

/** The tag of what no tag can be read from. */
const uninspectable = "UninspectableError"

/** What is kept of a failure that could not be judged: nothing of it was readable. */
export const unjudged: JobFailure = { class: "System", tag: uninspectable, message: opaque }

/**
 * `OTEL_*` variables, one at a time, read through Config as OpenTelemetry's specification says: an empty one is an unset one.
 *
 * No error carries a header's value: it is usually a key.
 */
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"

/** A variable's value cannot be used: `expected` says what can. Nothing is sent, and the program does not start half-observed. */
export class TelemetryError extends Schema.TaggedError<TelemetryError>("millrace/TelemetryError")("TelemetryError", {
  variable: Schema.String,
  expected: Schema.String,
  /** As given; for headers only what is safe to show. */
  received: Schema.String
}) {
  readonly isRetryable = false
  override get message() {
    return `${this.variable}: expected ${this.expected}, received ${this.received}`
  }
}

/** What a variable says: an empty one is an unset one, as the specification has it. */
export interface Value {
  readonly variable: string
  readonly text: string
}

/** The first of these variables that says something. */
export const read = (...variables: ReadonlyArray<string>): Effect.Effect<Value | undefined, TelemetryError> =>
  Effect.gen(function*() {
    for (const variable of variables) {
      const text = yield* Effect.mapError(
        Config.option(Config.String(variable)),
        () => new TelemetryError({ variable, expected: "a text", received: "something else" })
      )
      const trimmed = Option.getOrElse(text, () => "").trim()
      if (trimmed !== "") return { variable, text: trimmed }
    }
    return undefined
  })

/** Refuses a value; `received` replaces its text where that must not be shown. */
export const invalid = ({ text, variable }: Value, expected: string, received = JSON.stringify(text)) =>
  Effect.fail(new TelemetryError({ variable, expected, received }))

/** One of these words, in whatever case. */
export const readOne = <const A extends string>(
  allowed: ReadonlyArray<A>,
  expected: string,
  ...variables: ReadonlyArray<string>
) =>
  Effect.flatMap(read(...variables), (value): Effect.Effect<A | undefined, TelemetryError> => {
    if (value === undefined) return Effect.undefined
    const found = allowed.find((word) => word === value.text.toLowerCase())
    return found === undefined ? invalid(value, expected) : Effect.succeed(found)
  })

/** The longest wait that a timer takes: beyond it fires at once. */
const longest = 2 ** 31 - 1

/** A count or milliseconds. */
export const readInt = (...variables: ReadonlyArray<string>) =>
  Effect.flatMap(read(...variables), (value): Effect.Effect<number | undefined, TelemetryError> => {
    if (value === undefined) return Effect.undefined
    const number = /^\d+$/.test(value.text) ? Number(value.text) : 0
    return number >= 1 && number <= longest
      ? Effect.succeed(number)
      : invalid(value, `a whole number from 1 to ${longest}`)
  })

/** `a=1,b=2`, values percent-encoded. `pair` says what is wrong with one, in words that are safe to show. */
export const readPairs = (
  expected: string,
  pair: (key: string, value: string) => string | undefined,
  ...variables: ReadonlyArray<string>
) =>
  Effect.flatMap(read(...variables), (value) =>
    Effect.gen(function*() {
      const pairs = new Map<string, string>()
      const entries = value?.text.split(",").map((entry) => entry.trim()) ?? []
      for (const [index, entry] of entries.entries()) {
        if (value === undefined || entry === "") continue
        const at = entry.indexOf("=")
        const nth = `entry ${index + 1} of ${entries.length}`
        if (at < 1) return yield* invalid(value, expected, `${nth} without a name or without "="`)
        const key = entry.slice(0, at).trim()
        const decoded = Option.liftThrowable(decodeURIComponent)(entry.slice(at + 1).trim())
        if (Option.isNone(decoded)) {
          return yield* invalid(value, expected, `${nth} (${key}) with a "%" that encodes nothing`)
        }
        const wrong = pair(key, decoded.value)
        if (wrong !== undefined) {
          return yield* invalid(value, expected, `${nth} with ${wrong}`)
        }
        pairs.set(key, decoded.value)
      }
      return Object.fromEntries(pairs)
    }))

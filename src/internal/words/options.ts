/**
 * What is said of wrong options, to callers whose types did not say it: where, which field, what was expected, and what was given.
 */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import { describe } from "./safely.ts"

const maxShown = 100

/** Any value in at most 100 characters. Cannot throw. */
export const shown = (value: unknown): string => {
  const text = describe(value, maxShown + 1)
  return text.length > maxShown ? `${text.slice(0, maxShown)}...` : text
}

/** Wrong options are a mistake of the program. */
export const refuse = (where: string, field: string, expected: string, received: unknown): never => {
  throw new RangeError(`${where}: ${field}: expected ${expected}, received ${shown(received)}`)
}

/** Refuses what is not right. */
export const check = (isRight: boolean, where: string, field: string, expected: string, received: unknown): void => {
  if (!isRight) refuse(where, field, expected, received)
}

/** What is expected where a field is none of these. */
export const noneBut = (known: Iterable<string>): string => `no such field, only ${[...known].join(", ")}`

/** All fields of some options, by the compiler's account: one that is added to them cannot be forgotten here. */
export const fieldsOf = <Options>(
  fields: { readonly [Field in keyof Required<Options>]: true }
): ReadonlyArray<string> => Object.keys(fields)

/** Refuses what is no object, and fields that nobody would look at: most are misspelt. `under`: the field that the options are. */
export const checkFields = (where: string, options: unknown, known: ReadonlyArray<string>, under?: string): void => {
  if (typeof options !== "object" || options === null || Array.isArray(options)) {
    return refuse(where, under ?? "options", `an object of ${known.join(", ")}`, options)
  }
  for (const [field, value] of Object.entries(options)) {
    check(known.includes(field), where, under === undefined ? field : `${under}.${field}`, noneBut(known), value)
  }
}

/** What is said wherever a duration is expected: what it may look like. */
export const durationLike = "such as \"10 seconds\" or milliseconds"

const units = new Set(["weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds", "nanoseconds"])

/** Effect takes `NaN` and objects of other fields for zero. */
const isDuration = (input: unknown): boolean => {
  if (typeof input !== "object" || input === null) return !Number.isNaN(input)
  if (Duration.isDuration(input) || Array.isArray(input)) return true
  const fields = Object.keys(input)
  return fields.length > 0 && fields.every((field) => units.has(field))
}

/** In milliseconds; `NaN`, which no check takes, for what is no duration. */
export const millisOf = (input: Duration.Input): number =>
  isDuration(input)
    ? Option.match(Duration.fromInput(input), { onNone: () => Number.NaN, onSome: Duration.toMillis })
    : Number.NaN

/**
 * What each option of a database or server may be, and the words for the first that is not. Nothing here shows a secret: of a field that
 * nobody knows the value is not repeated, for it may be a misspelt password.
 */
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import { durationLike, millisOf, noneBut, shown } from "../words/options.ts"

/** What a field may be. */
export interface Kind {
  readonly expected: string
  readonly isRight: (value: unknown) => boolean
  readonly isSecret?: boolean
}

/** One kind for each option; `undefined` is always right. */
export type Kinds<Options> = { readonly [Field in keyof Required<Options>]: Kind }

export const text: Kind = { expected: "a text", isRight: Predicate.isString }
export const secret: Kind = {
  expected: "a text, or one that is Redacted",
  isRight: (value) => typeof value === "string" || Redacted.isRedacted(value),
  isSecret: true
}
export const flag: Kind = { expected: "true or false", isRight: Predicate.isBoolean }
export const callable: Kind = { expected: "a function", isRight: Predicate.isFunction }
/** What is in it is its reader's concern. */
export const object: Kind = { expected: "an object", isRight: Predicate.isObject, isSecret: true }
export const port: Kind = integer(1, 65_535)
export const time: Kind = {
  expected: `a duration that is not negative, ${durationLike}`,
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- anything may be given, and what is no duration is NaN
  isRight: (value) => millisOf(value as Parameters<typeof millisOf>[0]) >= 0
}

export function integer(least: number, most = Number.MAX_SAFE_INTEGER): Kind {
  return {
    expected: most === Number.MAX_SAFE_INTEGER ? `an integer from ${least} on` : `an integer from ${least} to ${most}`,
    isRight: (value) => Number.isInteger(value) && Number(value) >= least && Number(value) <= most
  }
}

/** What is wrong with the first option that is; `under`: the field that the options are. */
export const complaintOf = <Options>(
  kinds: Kinds<Options>,
  where: string,
  options: unknown,
  under?: string
): string | undefined => {
  const known = Object.keys(kinds)
  const told = (field: string, expected: string, received: unknown, isSecret = false) =>
    `${where}: ${field}: expected ${expected}${isSecret ? "" : `, received ${shown(received)}`}`
  if (!Predicate.isObject(options)) return told(under ?? "options", `an object of ${known.join(", ")}`, options, true)
  const kindOf = new Map<string, Kind>(Object.entries(kinds))
  for (const [name, value] of Object.entries(options)) {
    const field = under === undefined ? name : `${under}.${name}`
    const kind = kindOf.get(name)
    if (kind === undefined) return told(field, noneBut(known), value, true)
    if (value !== undefined && !kind.isRight(value)) return told(field, kind.expected, value, kind.isSecret)
  }
  return undefined
}

/**
 * JSON of foreign values, bounded: what is written stays below a limit, and so does the time that it takes to find out that it does not.
 */
import * as Result from "effect/Result"
import { types } from "node:util"

/** The text would be longer than the limit. */
export class TooLong extends Error {
  override readonly name = "TooLong"
}

/** What JSON leaves out of objects. */
const isUnwritten = (value: unknown): boolean =>
  value === undefined || typeof value === "function" || typeof value === "symbol"

/** How much of a limit a value leaves, counted low; not a number where only `JSON.stringify` itself can say. */
const left = (value: unknown, room: number): number => {
  if (typeof value === "string") return room - value.length - 2
  if (isUnwritten(value)) return room
  if (typeof value !== "object" || value === null) return room - 1
  if (types.isProxy(value)) return Number.NaN
  // A Buffer's `toJSON` makes an array of all of it first.
  if (ArrayBuffer.isView(value)) return room - value.byteLength * (Buffer.isBuffer(value) ? 2 : 0.5)
  if ("toJSON" in value) return Number.NaN
  // There is one comma less than there are parts.
  let rest = room - 1
  if (Array.isArray(value)) {
    for (let index = 0; index < value.length && rest >= 0; index++) rest = left(value[index], rest - 1)
    return rest
  }
  // `Object.entries` would make an array for each.
  for (const key of Object.keys(value)) {
    const part: unknown = Reflect.get(value, key)
    if (isUnwritten(part)) continue
    rest = left(part, rest - key.length - 4)
    if (!(rest >= 0)) return rest
  }
  return rest
}

/** Counts what `JSON.stringify` is about to write: of arrays behind a Proxy, and of what `toJSON` and getters make. */
const counter = (limit: number) => {
  let room = limit
  return function(this: unknown, key: string, value: unknown): unknown {
    const isElement = Array.isArray(this)
    if (!isElement && isUnwritten(value)) return value
    room -= (typeof value === "string" ? value.length + 2 : 1) + (isElement ? 1 : key.length)
    if (room < 0) throw new TooLong()
    return value
  }
}

/**
 * `JSON.stringify` of at most so many characters, or a little more. Throws {@link TooLong}, and what the value throws. The ordinary case,
 * plain data, goes without a replacer, which makes it three times as slow.
 */
export const stringify = (value: unknown, limit: number): string | undefined => {
  if (typeof value === "string" && value.length + 2 > limit) throw new TooLong()
  if (typeof value !== "object" || value === null) return JSON.stringify(value)
  const rest = Result.getOrElse(Result.try(() => left(value, limit)), () => Number.NaN)
  if (rest < 0) throw new TooLong()
  return Number.isNaN(rest) ? JSON.stringify(value, counter(limit)) : JSON.stringify(value)
}

/** More elements than any JSON that can be stored has: see `maxJsonBytes` of JobQueue. */
const maxElements = 4 * 1024 * 1024
/** How many objects are looked at. */
const maxLooked = 1_000
/** Through how many getters in a row. */
const maxGetters = 100

/**
 * Which parts of a value a schema reads: `"fields"` that it knows, `"arrays"` of any length as well, or `"anything"` that is there, which
 * `Json`, `Unknown` and `Any` do.
 */
export type Reach = "fields" | "arrays" | "anything"

/** In elements. Two bytes of a buffer take two characters or more, however they are written. */
const lengthOf = (object: object): number =>
  Array.isArray(object) ? object.length : ArrayBuffer.isView(object) ? object.byteLength / 2 : 0

interface Reached {
  readonly object: object
  /** How many getters or traps made it. */
  readonly getters: number
}

/** The objects that are an object's own properties. Getters are asked where the schema would ask them, too. */
const partsOf = ({ getters, object }: Reached, reach: Reach): ReadonlyArray<Reached> => {
  const parts: Array<Reached> = []
  const isProxy = types.isProxy(object)
  const add = (part: unknown, isData: boolean) => {
    if (typeof part === "object" && part !== null) parts.push({ object: part, getters: isData ? 0 : getters + 1 })
  }
  if (Array.isArray(object)) {
    for (let index = 0; index < Math.min(object.length, maxLooked); index++) add(object[index], !isProxy)
    return parts
  }
  for (const key of Object.keys(object).slice(0, maxLooked)) {
    const own = isProxy ? undefined : Reflect.getOwnPropertyDescriptor(object, key)
    const isData = own !== undefined && own.get === undefined
    if (isData || reach === "anything") add(isData ? own.value : Reflect.get(object, key), isData)
  }
  return parts
}

/**
 * Whether a schema of that reach would go on in a value without an end: through an array of more elements than can be stored, or through
 * getters that make ever more objects. Looks at the first objects only, deepest first, and throws what they throw.
 */
export const isEndless = (value: unknown, reach: Reach): boolean => {
  if (reach === "fields" || typeof value !== "object" || value === null) return false
  const known = new Set<object>([value])
  const waiting: Array<Reached> = [{ object: value, getters: 0 }]
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    const { getters, object } = next
    if (getters > maxGetters || lengthOf(object) > maxElements) return true
    if (known.size >= maxLooked || ArrayBuffer.isView(object)) continue
    for (const part of partsOf(next, reach)) {
      if (known.has(part.object)) continue
      known.add(part.object)
      waiting.push(part)
    }
  }
  return false
}

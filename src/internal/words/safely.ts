/**
 * Reads of foreign values: whatever a program throws, fails with or returns. Each is total and bounded, for a value may throw at every touch
 * (a revoked Proxy, a getter), may not end (an iterator, an array of 2^32 elements behind a Proxy), or may be huge.
 *
 * One bound is missing: a getter, a trap or a `toString` that does not return blocks its process, as any code of a handler can.
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Redactable from "effect/Redactable"
import * as Result from "effect/Result"
import { types } from "node:util"

/** What a read answers; `undefined` where it throws. */
export const read = <A>(get: () => A): A | undefined => Result.getOrElse(Result.try(get), () => undefined)

/** Whether a check answers `true`; one that throws does not. */
export const holds = (check: () => boolean): boolean => read(check) === true

const isObject = (value: unknown): value is object =>
  (typeof value === "object" && value !== null) || typeof value === "function"

/** The property of a value, own or inherited; `undefined` where there is none, or where reading it throws. */
export const property = (value: unknown, key: PropertyKey): unknown =>
  isObject(value) ? read((): unknown => Reflect.get(value, key)) : undefined

/** The same where it is text. */
export const textOf = (value: unknown, key: PropertyKey): string | undefined => {
  const text = property(value, key)
  return typeof text === "string" ? text : undefined
}

/**
 * The stack of an error. The engine writes it when it is read first, and makes texts of name and message for it: not where they are none, for
 * the text of an array behind a Proxy may take minutes.
 */
export const stackOf = (error: unknown): string | undefined => {
  const isText = (key: string) => ["string", "undefined"].includes(typeof property(error, key))
  return isText("name") && isText("message") ? textOf(error, "stack") : undefined
}

/** `instanceof`, which asks a Proxy for its prototype. */
export const isA = <A>(value: unknown, type: abstract new(..._: ReadonlyArray<never>) => A): value is A =>
  holds(() => value instanceof type)

/** Whether neither the class nor any property of a value can be read. */
export const isOpaque = (value: unknown): boolean =>
  isObject(value) && Result.isFailure(Result.try(() => Reflect.getPrototypeOf(value)))

/** A type guard that is safe of any value. */
export const guard = <A>(is: (value: unknown) => value is A) => (value: unknown): value is A => holds(() => is(value))

/**
 * At most so many characters, well-formed. What is cut off is a text of its own: a part that shares the memory of the whole would keep 50 MB
 * for a message of 8 kB.
 */
export const cut = (text: string, maxLength: number): string =>
  text.length <= maxLength ? text : Buffer.from(text.slice(0, maxLength)).toString()

/** How many values of a structure are described, and how deep. */
const maxNodes = 1_000
const maxDepth = 20
/** The digits of a larger one take long to find. */
const maxBigInt = 2n ** 1024n

const keyText = (key: PropertyKey): string => typeof key === "string" ? JSON.stringify(cut(key, 200)) : String(key)

/**
 * Any value in about so many characters, as `Formatter.format` writes it: JSON where it has any, and redacted where it wants to be. It never
 * asks a value for its iterator.
 */
export const describe = (value: unknown, maxLength: number): string => {
  let nodes = maxNodes
  let room = maxLength
  const ancestors = new Set<object>()

  const leaf = (text: string): string => {
    const part = cut(text, Math.max(room, 0))
    room -= part.length
    return part
  }

  const list = (length: unknown, part: (index: number) => string): string => {
    const count = typeof length === "number" ? length : 0
    const parts: Array<string> = []
    for (let index = 0; index < count; index++) {
      if (room <= 0 || nodes <= 0) {
        parts.push("...")
        break
      }
      parts.push(part(index))
      room--
    }
    return parts.join(",")
  }

  const field = (owner: object, key: PropertyKey): string =>
    Result.match(Result.try((): unknown => Reflect.get(owner, key)), {
      onFailure: () => leaf("[property access threw]"),
      onSuccess: inner
    })

  const named = (owner: object, body: string): string => {
    const name = textOf(property(owner, "constructor"), "name")
    return name === undefined || name === "" || name === "Object" ? body : `${cut(name, 200)}(${body})`
  }

  /** As `Error.prototype.toString` has it, which makes a text of any message. */
  const errorText = (error: object): string => {
    const name = textOf(error, "name") ?? "Error"
    const message = property(error, "message")
    return [name, typeof message === "string" ? message : inner(message)].filter((part) => part !== "").join(": ")
  }

  const own = (owner: object): string | undefined => {
    const toString = property(owner, "toString")
    if (
      typeof toString !== "function" || toString === Object.prototype.toString || toString === Array.prototype.toString
    ) return undefined
    const text: unknown = toString === Error.prototype.toString
      ? errorText(owner)
      : read((): unknown => Reflect.apply(toString, owner, []))
    const said = leaf(typeof text === "string" ? text : "[toString threw]")
    const cause = isA(owner, Error) ? property(owner, "cause") : undefined
    return cause === undefined ? said : `${said} (cause: ${inner(cause)})`
  }

  const structure = (owner: object): string => {
    if (Redactable.isRedactable(owner)) return inner(Redactable.redact(owner))
    if (Array.isArray(owner)) return `[${list(owner.length, (index) => field(owner, index))}]`
    if (types.isDate(owner)) {
      const text: unknown = read(() => owner.toISOString())
      return leaf(typeof text === "string" ? text : "Invalid Date")
    }
    if (ArrayBuffer.isView(owner) && owner.byteLength > maxLength) return named(owner, `${owner.byteLength} bytes`)
    const said = own(owner)
    if (said !== undefined) return said
    if (types.isMap(owner) || types.isSet(owner)) {
      // Of the built-in kind, whatever `Symbol.iterator` of this one is.
      const elements = types.isMap(owner)
        ? Map.prototype.entries.call(owner)
        : Set.prototype.values.call(owner)
      return named(owner, `[${list(owner.size, () => inner(elements.next().value))}]`)
    }
    const keys = Reflect.ownKeys(owner)
    const fields = list(keys.length, (index) => {
      const key = keys[index] ?? ""
      return `${leaf(keyText(key))}:${field(owner, key)}`
    })
    return named(owner, `{${fields}}`)
  }

  const inner = (value: unknown): string => {
    nodes--
    if (typeof value === "string") return leaf(JSON.stringify(cut(value, Math.max(room, 0))))
    if (typeof value === "bigint") return leaf(value < maxBigInt && value > -maxBigInt ? `${value}n` : "[BigInt]")
    if (!isObject(value)) return leaf(String(value))
    if (ancestors.has(value)) return leaf("[Circular]")
    if (ancestors.size >= maxDepth) return leaf("...")
    ancestors.add(value)
    const text = Result.getOrElse(Result.try(() => structure(value)), () => leaf("[inspection threw]"))
    ancestors.delete(value)
    return text
  }

  return inner(value)
}

/** Of a message or a stack that goes to a log or a trace. */
const maxText = 8_000
/** How many causes of causes are shown. */
const maxCauses = 5

/**
 * An error that says the same as a foreign one and can be inspected by anything: name, message, stack and causes are plain texts. For logs
 * and traces, whose formatters read whatever they find.
 */
export const inspectable = (error: unknown, depth = maxCauses): Error => {
  const message = typeof error === "string"
    ? error
    : textOf(error, "message") ?? (isOpaque(error) ? opaque : describe(error, maxText))
  const name = cut(textOf(error, "name") ?? "Error", 200)
  const cause = property(error, "cause")
  const brief = cut(message, maxText)
  const copy = new Error(brief, cause === undefined || depth === 0 ? {} : { cause: inspectable(cause, depth - 1) })
  const stack = stackOf(error)
  return Object.defineProperties(copy, {
    name: { value: name, configurable: true, writable: true },
    stack: {
      value: stack === undefined ? `${name}: ${brief}` : cut(stack, maxText),
      configurable: true,
      writable: true
    }
  })
}

/** What is said of a value of which nothing can be read. */
export const opaque = "a value that throws when it is inspected, such as a revoked Proxy"

const inspectableReason = (reason: Cause.Reason<unknown>): Cause.Reason<Error> =>
  Cause.isInterruptReason(reason)
    ? reason
    : (Cause.isFailReason(reason)
      ? Cause.makeFailReason(inspectable(reason.error))
      : Cause.makeDieReason(inspectable(reason.defect))).annotate(Context.makeUnsafe(reason.annotations))

/** A cause of errors that anything can inspect, see {@link inspectable}. */
export const inspectableCause = (cause: Cause.Cause<unknown>): Cause.Cause<Error> =>
  Cause.fromReasons(cause.reasons.map(inspectableReason))

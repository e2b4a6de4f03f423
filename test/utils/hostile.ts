/**
 * Values that a handler may throw, fail with or return, and that cannot be looked at like others: they throw, do not end, or are huge.
 */
import { Discard, JobTimeout, Snooze } from "../../src/JobError.ts"

/** One of them. `make` makes it anew, for some count how often they were touched. */
export interface Hostile {
  readonly name: string
  readonly make: () => unknown
}

/** Everything that can be done to an object. */
const operations = [
  "apply",
  "construct",
  "defineProperty",
  "deleteProperty",
  "get",
  "getOwnPropertyDescriptor",
  "getPrototypeOf",
  "has",
  "isExtensible",
  "ownKeys",
  "preventExtensions",
  "set",
  "setPrototypeOf"
] as const

type Operation = (typeof operations)[number]

const revoked = (target: object = {}): unknown => {
  const { proxy, revoke } = Proxy.revocable(target, {})
  revoke()
  return proxy
}

const throws = (): never => {
  throw new Error("the value's own")
}

/** A Proxy that works `touches` times, and then throws what `thrown` makes. */
const throwsLater = (
  target: object,
  touches: number,
  thrown: () => unknown,
  only: ReadonlyArray<Operation> = operations
): unknown => {
  let count = 0
  const trap = (operation: Operation) => (...args: ReadonlyArray<unknown>): unknown => {
    if (count++ >= touches) throw thrown()
    return Reflect.apply(Reflect[operation], Reflect, args)
  }
  return new Proxy(target, Object.fromEntries(only.map((operation) => [operation, trap(operation)])))
}

/** What logs, traces and the judgement read of an error. */
const fields = ["message", "stack", "name", "_tag", "errorClass", "retryAfter", "cause", "toString", "toJSON"] as const

const errorWith = (field: PropertyKey, descriptor: PropertyDescriptor): Error =>
  Object.defineProperty(new Error("an error"), field, { configurable: true, enumerable: true, ...descriptor })

/** Of the length that an array can have, behind a Proxy that has an element everywhere. */
export const endlessArray = (): unknown =>
  new Proxy([], {
    get: (target, key) =>
      key === "length" ? 2 ** 32 - 2 : typeof key === "string" && /^\d/.test(key) ? 1 : Reflect.get(target, key),
    has: () => true
  })

const endlessIterator = () => ({
  *[Symbol.iterator](): Generator<number> {
    for (let count = 0;; count++) {
      // Whoever goes through it is found out by its memory otherwise.
      if (count > 1_000_000) throw new Error("somebody iterates without an end")
      yield count
    }
  }
})

const endlessGetters = (): object => ({
  get next() {
    return endlessGetters()
  }
})

const endlessJson = (): object => ({ toJSON: () => ({ next: endlessJson() }) })

const cyclic = (): object => {
  const value: Record<string, unknown> = { text: "round" }
  value["self"] = value
  return value
}

/** The same array ten times in itself, and so on: small in memory, 10^12 elements as text. */
const laughing = (): unknown => {
  let value: unknown = ["ha"]
  for (let depth = 0; depth < 12; depth++) value = Array.from({ length: 10 }, () => value)
  return value
}

/** Says yes to whatever it is asked. */
const agreeing = (): unknown => {
  const answer = (): unknown => proxy
  const proxy: unknown = new Proxy(function() {}, {
    apply: answer,
    construct: () => ({}),
    get: answer,
    getPrototypeOf: () => Error.prototype,
    has: () => true
  })
  return proxy
}

/** Its prototype's chain has no end. */
const descendant = (): unknown => {
  const proxy: object = new Proxy({}, { getPrototypeOf: () => Object.create(proxy) })
  return throwsLater(proxy, 10_000, () => new Error("somebody climbs without an end"))
}

const manyErrors = Array.from({ length: 100_000 }, (_, index) => new Error(`${index}`))

/** Those that somebody has thought of. */
export const knownHostile: ReadonlyArray<Hostile> = [
  { name: "a revoked Proxy", make: () => revoked() },
  { name: "a revoked Proxy of a function", make: () => revoked(() => 1) },
  { name: "a revoked Proxy of an array", make: () => revoked([]) },
  { name: "a revoked Proxy of an error", make: () => revoked(new Error("gone")) },
  { name: "a Proxy that agrees to everything", make: agreeing },
  { name: "a Proxy of an endless prototype chain", make: descendant },
  { name: "an endless array", make: endlessArray },
  { name: "an endless array in an object", make: () => ({ items: endlessArray() }) },
  { name: "a sparse array", make: () => Object.assign([], { length: 2 ** 32 - 2 }) },
  { name: "an endless iterator", make: endlessIterator },
  { name: "a Set with an endless iterator", make: () => Object.assign(new Set([1]), endlessIterator()) },
  { name: "endless getters", make: endlessGetters },
  { name: "endless toJSON", make: endlessJson },
  { name: "a cyclic object", make: cyclic },
  { name: "a cyclic array", make: () => [cyclic(), cyclic()] },
  { name: "an array of the same arrays", make: laughing },
  { name: "a text of 50 MB", make: () => "x".repeat(50_000_000) },
  { name: "an error of 50 MB", make: () => new Error("x".repeat(50_000_000)) },
  { name: "an object of 50 MB", make: () => ({ message: "x".repeat(50_000_000), _tag: "y".repeat(50_000_000) }) },
  { name: "a Buffer of 50 MB", make: () => Buffer.alloc(50_000_000) },
  { name: "a text of half pairs and NULs", make: () => "\ud800\0\udc00".repeat(10_000) },
  { name: "an error of half pairs and NULs", make: () => new Error("\ud83d\0\ude00\ud83d".repeat(10_000)) },
  { name: "a symbol", make: () => Symbol("a symbol") },
  { name: "a function", make: () => () => 1 },
  { name: "a BigInt", make: () => 10n },
  { name: "a huge BigInt", make: () => 2n ** 100_000n },
  { name: "NaN", make: () => Number.NaN },
  { name: "undefined", make: () => undefined },
  { name: "null", make: () => null },
  { name: "an object without a prototype", make: () => Object.create(null) },
  { name: "a toStringTag that throws", make: () => Object.defineProperty({}, Symbol.toStringTag, { get: throws }) },
  {
    name: "conversions that throw",
    make: () => ({ toString: throws, toJSON: throws, valueOf: throws, [Symbol.toPrimitive]: throws })
  },
  { name: "an iterator that throws", make: () => ({ [Symbol.iterator]: throws }) },
  { name: "an invalid Date", make: () => new Date(Number.NaN) },
  { name: "a Promise", make: () => Promise.resolve() },
  {
    name: "100,000 errors",
    make: () => new AggregateError(manyErrors, "many")
  },
  { name: "an error of a revoked cause", make: () => new Error("an error", { cause: revoked() }) },
  {
    name: "a Snooze whose delay throws",
    make: () => throwsLater(new Snooze({ delay: "1 hour" }), 3, () => new Error("no delay"), ["get"])
  },
  { name: "a Snooze without a delay", make: () => Object.create(Snooze.prototype) },
  { name: "a Discard that does not say why", make: () => Object.create(Discard.prototype) },
  ...fields.flatMap((field): ReadonlyArray<Hostile> => [
    { name: `an error whose ${field} throws`, make: () => errorWith(field, { get: throws }) },
    {
      name: `an error whose ${field} throws a revoked Proxy`,
      make: () =>
        errorWith(field, {
          get: () => {
            throw revoked()
          }
        })
    },
    { name: `an error whose ${field} is a revoked Proxy`, make: () => errorWith(field, { value: revoked() }) },
    { name: `an error whose ${field} is an endless array`, make: () => errorWith(field, { value: endlessArray() }) },
    { name: `an object whose ${field} is a function that throws`, make: () => ({ [field]: throws }) }
  ])
]

/** Random numbers in [0, 1) of a seed (mulberry32). */
const random = (seed: number) => {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
  }
}

/** As many more as are asked for: Proxies of anything that throw anything, at some touch of some kind. */
export const fuzzed = (seed: number, count: number): ReadonlyArray<Hostile> => {
  const next = random(seed)
  const oneOf = <A>(choices: ReadonlyArray<A>): A => {
    const choice = choices[Math.floor(next() * choices.length)]
    if (choice === undefined) throw new RangeError("no choices")
    return choice
  }
  return Array.from({ length: count }, (_, index) => {
    const [kind, target] = oneOf<readonly [string, () => object]>([
      ["an object", () => ({ a: 1, b: [1, 2] })],
      ["an error", () => new Error("an error", { cause: new Error("its cause") })],
      ["an array", () => [1, [2, { a: 3 }]]],
      ["a function", () => () => 1],
      ["a Map", () => new Map([[1, 2]])],
      ["a Date", () => new Date(0)],
      ["a tagged object", () => ({ _tag: "Tagged", message: "tagged", retryAfter: 1, errorClass: "Transient" })],
      ["a timeout", () => new JobTimeout({ timeoutMs: 1 })]
    ])
    const touches = Math.floor(next() ** 2 * 30)
    const [what, thrown] = oneOf<readonly [string, () => unknown]>([
      ["an error", () => new Error("at a touch")],
      ["a revoked Proxy", () => revoked()],
      ["undefined", () => undefined],
      ["a text", () => "at a touch"]
    ])
    const only = next() < 0.5 ? operations : [oneOf(operations), oneOf(operations)]
    return {
      name: `${index}: ${kind} that throws ${what} after ${touches} of ${
        only === operations ? "all" : only.join(", ")
      }`,
      make: () => throwsLater(target(), touches, thrown, only)
    }
  })
}

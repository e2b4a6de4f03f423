import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Formatter from "effect/Formatter"
import * as Redacted from "effect/Redacted"
import { inspect } from "node:util"
import { toFailure } from "../../src/internal/words/failure.ts"
import * as Safely from "../../src/internal/words/safely.ts"
import { endlessArray, fuzzed, knownHostile } from "../utils/hostile.ts"

const hostile = [...knownHostile, ...fuzzed(7, 300)]

describe("a foreign value", () => {
  it("is described as Effect's Formatter does, where it is ordinary", () => {
    class Point {
      readonly x = 1
      readonly at = [2, { z: 3n }]
    }
    for (
      const value of [
        1,
        "a \"text\"",
        null,
        undefined,
        Symbol("s"),
        [1, [2, "three"], {}],
        { a: { b: true }, [Symbol("key")]: 1 },
        new Point(),
        new Map([["key", { value: 1 }]]),
        new Set([1, 2]),
        new Date(0),
        /pattern/g,
        new TypeError("wrong", { cause: new Error("inner") }),
        new URL("https://example.org/"),
        Redacted.make("secret")
      ]
    ) assert.strictEqual(Safely.describe(value, 1_000), Formatter.format(value))
  })

  it("is described in about as many characters as there is room for, whatever it is", () => {
    for (const { make, name } of hostile) assert.isAtMost(Safely.describe(make(), 500).length, 3_000, name)
  })

  it("is stored as a failure of bounded size, whatever it is", () => {
    for (const { make, name } of hostile) {
      const failure = toFailure(make(), { class: "System" })
      assert.deepStrictEqual(JSON.parse(JSON.stringify(failure)), failure, name)
      assert.isAtMost(JSON.stringify(failure).length, 60_000, name)
      assert.isTrue(failure.message.isWellFormed() && !failure.message.includes("\0"), name)
    }
  })

  it("is logged as an error that every formatter can read, whatever it is", () => {
    for (const { make, name } of hostile) {
      const cause = Safely.inspectableCause(
        Cause.fromReasons([Cause.makeInterruptReason(1), Cause.makeDieReason(make())])
      )
      assert.isTrue(Cause.hasInterrupts(cause), name)
      for (const error of Cause.prettyErrors(cause)) assert.isAtMost(inspect(error).length, 200_000, name)
      assert.isAtMost(Cause.pretty(cause).length, 200_000, name)
    }
  })

  it("keeps name, message, stack and cause in the error that is logged", () => {
    const error = new TypeError("wrong", { cause: new RangeError("inner") })
    const copy = Safely.inspectable(error)
    assert.strictEqual(copy.stack, error.stack)
    assert.strictEqual(String(copy), "TypeError: wrong")
    assert.strictEqual(String(copy.cause), "RangeError: inner")
    assert.strictEqual(Cause.pretty(Safely.inspectableCause(Cause.die(error))), Cause.pretty(Cause.die(error)))
  })

  it("does not have its stack read where the engine would write an endless message into it", () => {
    const error = Object.assign(new Error("an error"), { message: endlessArray() })
    assert.isUndefined(Safely.stackOf(error))
    assert.isString(Safely.stackOf(new Error("an error")))
  })

  it("shares no memory with the text that is cut from it, and half pairs become whole characters", () => {
    assert.strictEqual(Safely.cut("ab\ud83d\ude00", 3), "ab\ufffd")
    assert.strictEqual(Safely.cut("short", 8), "short")
  })
})

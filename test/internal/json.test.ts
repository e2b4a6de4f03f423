import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import { reachOf } from "../../src/internal/words/issue.ts"
import { isEndless, stringify, TooLong } from "../../src/internal/words/json.ts"
import { endlessArray, knownHostile } from "../utils/hostile.ts"

const made = (name: string): unknown => (knownHostile.find((one) => one.name === name) ?? assert.fail(name)).make()

describe("JSON of a foreign value", () => {
  it("is that of JSON.stringify, up to the very limit", () => {
    const values: ReadonlyArray<unknown> = [
      null,
      1,
      "text",
      [],
      {},
      [1, 2, 3],
      [undefined, () => 1, Symbol("s")],
      { a: undefined, b: () => 1, c: "three", d: [{}, [[]]] },
      new Date(0),
      { at: new Date(0), list: [1, "2"] },
      new Proxy([1, "2", { three: 3 }], {}),
      Object.assign(Object.create({ inherited: "not written" }), { own: 1 }),
      Buffer.from("abc")
    ]
    for (const value of values) {
      const text = JSON.stringify(value)
      assert.strictEqual(stringify(value, text.length), text)
    }
    assert.isUndefined(stringify(undefined, 10))
  })

  it("stops at the limit, however the value gets there", () => {
    const values: ReadonlyArray<unknown> = [
      "x".repeat(1_000),
      ["x".repeat(1_000)],
      { ["x".repeat(1_000)]: 1 },
      Array.from({ length: 1_000 }, () => 1),
      Object.assign([], { length: 2 ** 32 - 2 }),
      new Proxy({ text: "x".repeat(1_000) }, {}),
      Buffer.alloc(50_000_000),
      made("an array of the same arrays")
    ]
    for (const value of values) assert.throws(() => stringify(value, 100), TooLong)
    // The engine refuses these by their length.
    for (const value of [endlessArray(), { toJSON: endlessArray }]) assert.throws(() => stringify(value, 100))
  })

  it("is not begun of a value that would not end", () => {
    for (const name of ["an endless array", "an endless array in an object", "a sparse array", "endless getters"]) {
      assert.isTrue(isEndless(made(name), "anything"), name)
    }
    const deep = Array.from({ length: 5_000 }).reduce<unknown>((inner) => ({ inner }), undefined)
    for (const value of [deep, made("a cyclic array"), [1], { a: [] }, "text", null]) {
      assert.isFalse(isEndless(value, "anything"))
    }
  })

  it("asks no getter that the schema would not ask", () => {
    const value = {
      get lazy(): never {
        throw new Error("asked")
      }
    }
    assert.strictEqual(reachOf(Schema.toCodecJson(Schema.Struct({ id: Schema.Int }))), "fields")
    assert.strictEqual(reachOf(Schema.toCodecJson(Schema.Array(Schema.Int))), "arrays")
    assert.strictEqual(reachOf(Schema.toCodecJson(Schema.Struct({ any: Schema.Json }))), "anything")
    assert.isFalse(isEndless(value, "fields"))
    assert.isFalse(isEndless(value, "arrays"))
    assert.throws(() => isEndless(value, "anything"), "asked")
  })
})

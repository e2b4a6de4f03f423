/**
 * What the log tells of handlers that get no connection: its begin and its end, each once.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Shortages from "../../src/internal/shortages.ts"
import { recordLog } from "../utils/logged.ts"

/** What is told of looks that come every two seconds: whether each finds it. */
const toldOf = (...looks: ReadonlyArray<boolean>) =>
  Effect.gen(function*() {
    const log = recordLog()
    let at = 0
    const { tell } = Shortages.make(() => at)
    for (const isShort of looks) {
      at += 2_000
      yield* Effect.provide(tell(isShort ? "handlers wait" : undefined), log.layer)
    }
    return log.lines.map(({ level, text }) => `${level}: ${text}`)
  })

const begin = "Warn: Handlers wait"

describe("a shortage of connections", () => {
  it.effect("is told of when two looks have found it, and when it has been over for ten seconds", () =>
    Effect.gen(function*() {
      const over = [false, false, false, false, false]
      assert.deepStrictEqual(yield* toldOf(true), [])
      assert.deepStrictEqual(yield* toldOf(true, true, true, true), [begin])
      assert.deepStrictEqual(yield* toldOf(true, true, true, ...over), [
        begin,
        "Info: Handlers get connections again, after 4s"
      ])
      assert.deepStrictEqual(yield* toldOf(true, true, ...over, ...over, true, true), [
        begin,
        "Info: Handlers get connections again, after 2s",
        begin
      ])
    }))

  it.effect("that comes and goes is told of once; one that a single look has found, never", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* toldOf(true, true, false, true, false, false, true, false), [begin])
      assert.deepStrictEqual(yield* toldOf(true, false, true, false, true, false), [])
    }))
})

/**
 * What becomes of a job whose handler failed, where the program names a delay that is none: the job goes on, and the log says what was wrong.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Schema from "effect/Schema"
import { judge } from "../../src/internal/judgement.ts"
import * as Job from "../../src/Job.ts"
import { JobHandlers, layer } from "../../src/JobHandlers.ts"
import * as RetryPolicy from "../../src/RetryPolicy.ts"

class Busy extends Schema.TaggedError<Busy>()("Busy", { retryAfter: Schema.Any }) {}

/** What is decided of a `Busy`, and what was logged. */
const judged = (retryAfter: unknown, retry: RetryPolicy.RetryPolicy = RetryPolicy.fixed(7, { maxAttempts: 2 })) =>
  Effect.gen(function*() {
    const logged: Array<string> = []
    const logger = Logger.make(({ cause, message }) => {
      logged.push([message, ...cause.reasons.length === 0 ? [] : [Cause.pretty(cause)]].flat().join(" "))
    })
    class Task extends Job.make("Task", { error: Busy, retry }) {}
    const { get } = yield* JobHandlers
    const { decision } = yield* Effect.suspend(() =>
      judge(Cause.fail(new Busy({ retryAfter })), get("Task") ?? assert.fail("no handler"), 1)
    ).pipe(
      Effect.provide(Layer.merge(Task.toLayer(() => Effect.void), Logger.layer([logger])))
    )
    return { decision, logged }
  }).pipe(Effect.provide(layer))

describe("a failure", () => {
  it.effect("that asks for a delay which is none is tried again as its policy says, and that is told", () =>
    Effect.gen(function*() {
      for (const retryAfter of ["10 secs", -1, {}, true, Infinity]) {
        const { decision, logged } = yield* judged(retryAfter)
        assert.deepStrictEqual(decision, { _tag: "Retry", delayMs: 7 })
        assert.strictEqual(logged.length, 1)
        assert.match(
          logged[0] ?? "",
          /Busy.*retryAfter: expected a duration that is finite and not negative, such as "10 seconds" or milliseconds, received /
        )
      }
      assert.include((yield* judged("10 secs")).logged[0], "received \"10 secs\"")
    }))

  it.effect("that asks for a delay in any form gets it, and one that asks for nothing goes by its policy", () =>
    Effect.gen(function*() {
      for (const retryAfter of [2_000, "2 seconds", Duration.seconds(2), { seconds: 2 }]) {
        assert.deepStrictEqual(yield* judged(retryAfter), { decision: { _tag: "Retry", delayMs: 2_000 }, logged: [] })
      }
      for (const retryAfter of [undefined, null]) {
        assert.deepStrictEqual(yield* judged(retryAfter), { decision: { _tag: "Retry", delayMs: 7 }, logged: [] })
      }
    }))

  it.effect("whose own policy names a delay that is none makes a dead letter of its job, and the log says why", () =>
    Effect.gen(function*() {
      const policy = RetryPolicy.custom(() => "10 secs" as never, { maxAttempts: 5 })
      const { decision, logged } = yield* judged(undefined, policy)
      assert.deepStrictEqual(decision, { _tag: "DeadLetter" })
      assert.match(logged.join("\n"), /custom retry policy died.*next: expected it to return .*received "10 secs"/s)
    }))
})

import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import { pipe } from "effect/Function"
import * as Schema from "effect/Schema"
import { ErrorClass } from "../src/JobError.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"

/** A failure of class Business, in the middle of the jitter. */
const ask = (policy: RetryPolicy.RetryPolicy, rest: Partial<RetryPolicy.Question> = {}): RetryPolicy.Decision =>
  RetryPolicy.decide({
    policy,
    attempt: 1,
    class: "Business",
    error: undefined,
    retryAfterMs: undefined,
    asked: undefined,
    jitter: 0.5,
    ...rest
  })

/** The delays of one attempt after the other, until the job is given up. */
const delaysOf = (policy: RetryPolicy.RetryPolicy, rest: Partial<RetryPolicy.Question> = {}): ReadonlyArray<number> => {
  const delays: Array<number> = []
  for (let attempt = 1; attempt <= 100; attempt++) {
    const decision = ask(policy, { attempt, ...rest })
    if (decision._tag !== "Retry") break
    delays.push(decision.delayMs)
  }
  return delays
}

describe("RetryPolicy", () => {
  it("by default five attempts, the pause doubling from a second on", () => {
    assert.deepStrictEqual(delaysOf(RetryPolicy.exponential()), [1000, 2000, 4000, 8000])
  })

  it("an exponential pause ends at its cap, also after thousands of attempts", () => {
    const policy = RetryPolicy.exponential({ maxAttempts: 32_000, base: "1 second", factor: 10, cap: "30 seconds" })
    assert.deepStrictEqual(delaysOf(policy).slice(0, 4), [1000, 10_000, 30_000, 30_000])
    assert.deepStrictEqual(ask(policy, { attempt: 31_999 }), { _tag: "Retry", delayMs: 30_000 })
  })

  it("jobs that failed together do not come back together: the pause is spread to both sides", () => {
    const policy = RetryPolicy.exponential({ base: "10 seconds", jitter: 0.2 })
    assert.deepStrictEqual(delaysOf(policy, { jitter: 0 })[0], 8000)
    assert.isAtMost(delaysOf(policy, { jitter: 0.999_999 })[0] ?? 0, 12_000)
    assert.deepStrictEqual(delaysOf(RetryPolicy.exponential({ jitter: 0 }), { jitter: 0 })[0], 1000)
  })

  it("explicit delays make one attempt more than there are delays", () => {
    assert.deepStrictEqual(
      delaysOf(RetryPolicy.delays(["1 second", "5 seconds", "30 seconds"])),
      [1000, 5000, 30_000]
    )
    assert.deepStrictEqual(delaysOf(RetryPolicy.delays([])), [])
  })

  it("a fixed delay stays the same, and none is none", () => {
    assert.deepStrictEqual(delaysOf(RetryPolicy.fixed("2 seconds", { maxAttempts: 4 })), [2000, 2000, 2000])
    assert.deepStrictEqual(delaysOf(RetryPolicy.none), [])
  })

  it("a custom policy sees what failed, and gives up by naming no delay", () => {
    const seen: Array<RetryPolicy.Failure> = []
    const policy = RetryPolicy.custom((failure) => {
      seen.push(failure)
      return failure.attempt < 3 ? Duration.seconds(failure.attempt) : undefined
    }, { maxAttempts: 10 })
    assert.deepStrictEqual(delaysOf(policy, { error: "why" }), [1000, 2000])
    assert.deepStrictEqual(seen.map(({ attempt, error }) => ({ attempt, error })), [
      { attempt: 1, error: "why" },
      { attempt: 2, error: "why" },
      { attempt: 3, error: "why" }
    ])
  })

  it("what cannot get better is not tried again, unless its class has a policy of its own", () => {
    const policy = RetryPolicy.exponential()
    const kept = ErrorClass.literals.filter((name) => ask(policy, { class: name })._tag === "Retry")
    assert.deepStrictEqual(kept, ["Transient", "Timeout", "Business", "System"])
    const stubborn = RetryPolicy.forClass(policy, "Permanent", RetryPolicy.fixed("1 minute", { maxAttempts: 2 }))
    assert.deepStrictEqual(delaysOf(stubborn, { class: "Permanent" }), [60_000])
    assert.deepStrictEqual(ask(stubborn, { class: "Validation" }), { _tag: "DeadLetter" })
  })

  it("a class's own policy replaces the number of attempts too, in both directions", () => {
    const policy = pipe(
      RetryPolicy.exponential({ maxAttempts: 3, jitter: 0 }),
      RetryPolicy.forClass("Timeout", RetryPolicy.none),
      RetryPolicy.forClass("Transient", RetryPolicy.fixed("1 second", { maxAttempts: 6 }))
    )
    assert.deepStrictEqual(delaysOf(policy, { class: "Timeout" }), [])
    assert.strictEqual(delaysOf(policy, { class: "Transient" }).length, 5)
    assert.strictEqual(delaysOf(policy).length, 2)
  })

  it("an error's own wish wins over the delay, not over the number of attempts", () => {
    const policy = RetryPolicy.fixed("1 second", { maxAttempts: 2 })
    assert.deepStrictEqual(ask(policy, { retryAfterMs: 90_000 }), { _tag: "Retry", delayMs: 90_000 })
    assert.deepStrictEqual(ask(policy, { retryAfterMs: 90_000, attempt: 2 }), { _tag: "DeadLetter" })
    assert.deepStrictEqual(ask(policy, { retryAfterMs: 0 }), { _tag: "Retry", delayMs: 0 })
    assert.deepStrictEqual(ask(policy, { retryAfterMs: 1, class: "Permanent" }), { _tag: "DeadLetter" })
  })

  it("what the handler asks for is done, whatever the policy says", () => {
    const late = { attempt: 99, class: "Permanent" } as const
    assert.deepStrictEqual(ask(RetryPolicy.none, { ...late, asked: { snoozeMs: 5000 } }), {
      _tag: "Snooze",
      delayMs: 5000
    })
    assert.deepStrictEqual(ask(RetryPolicy.none, { ...late, asked: { discard: "no longer wanted" } }), {
      _tag: "Discard",
      because: "no longer wanted"
    })
  })

  it("no delay is beyond what a store can hold: such a settlement would be refused for ever", () => {
    const century = 3_155_760_000_000
    const custom = (delay: Duration.Input) => ask(RetryPolicy.custom(() => delay, { maxAttempts: 2 }))
    assert.deepStrictEqual(custom(Duration.infinity), { _tag: "Retry", delayMs: century })
    assert.deepStrictEqual(custom(-5), { _tag: "Retry", delayMs: 0 })
    assert.deepStrictEqual(custom(Duration.micros(1500n)), { _tag: "Retry", delayMs: 2 })
    assert.deepStrictEqual(ask(RetryPolicy.none, { asked: { snoozeMs: Infinity } }), {
      _tag: "Snooze",
      delayMs: century
    })
    const none = RetryPolicy.exponential({ base: 0, maxAttempts: 32_000 })
    assert.deepStrictEqual(ask(none, { attempt: 30_000 }), { _tag: "Retry", delayMs: 0 })
  })

  it("a number of attempts that cannot be is refused where it is written, naming the field", () => {
    for (const maxAttempts of [0, -1, 1.5, NaN, 32_001]) {
      assert.throws(() => RetryPolicy.exponential({ maxAttempts }), RangeError, "maxAttempts")
      assert.throws(() => RetryPolicy.fixed("1 second", { maxAttempts }), RangeError, "maxAttempts")
    }
  })

  it.prop(
    "every question has an answer, and no job is tried more often than its policy says",
    {
      maxAttempts: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 32_000 })),
      attempt: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 32_000 })),
      class: ErrorClass,
      base: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 100_000 })),
      factor: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 100 })),
      jitter: Schema.Finite.check(Schema.isBetween({ minimum: 0, maximum: 0.999 }))
    },
    ({ attempt, base, class: errorClass, factor, jitter, maxAttempts }) => {
      const policy = RetryPolicy.exponential({ maxAttempts, base, factor, jitter: 1 })
      const decision = ask(policy, { attempt, class: errorClass, jitter })
      if (attempt >= maxAttempts) return decision._tag === "DeadLetter"
      return decision._tag === "DeadLetter" ||
        (decision._tag === "Retry" && Number.isInteger(decision.delayMs) && decision.delayMs >= 0 &&
          decision.delayMs <= 120_000)
    }
  )
})

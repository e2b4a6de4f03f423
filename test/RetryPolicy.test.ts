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
    for (const none of ["7 dayz", NaN, { second: 1 }]) {
      assert.throws(
        () => custom(none as Duration.Input),
        RangeError,
        "RetryPolicy.custom: next: expected it to return undefined or a duration, such as \"10 seconds\" or milliseconds, received "
      )
    }
    assert.deepStrictEqual(ask(RetryPolicy.none, { asked: { snoozeMs: Infinity } }), {
      _tag: "Snooze",
      delayMs: century
    })
    const none = RetryPolicy.exponential({ base: 0, maxAttempts: 32_000 })
    assert.deepStrictEqual(ask(none, { attempt: 30_000 }), { _tag: "Retry", delayMs: 0 })
  })

  it("a number of attempts that cannot be is refused where it is written, naming the field", () => {
    for (const maxAttempts of [0, -1, 1.5, NaN, 32_001]) {
      const words = `: maxAttempts: expected an integer from 1 to 32000, received ${maxAttempts}`
      assert.throws(() => RetryPolicy.exponential({ maxAttempts }), RangeError, `RetryPolicy.exponential${words}`)
      assert.throws(() => RetryPolicy.fixed("1 second", { maxAttempts }), RangeError, `RetryPolicy.fixed${words}`)
      assert.throws(() => RetryPolicy.custom(() => 1, { maxAttempts }), RangeError, `RetryPolicy.custom${words}`)
    }
  })

  it("what callers without types get wrong is refused where it is written, naming the field", () => {
    const exponential = (options: object) => () => RetryPolicy.exponential(options)
    assert.throws(
      exponential({ factor: "2" }),
      RangeError,
      "RetryPolicy.exponential: factor: expected a finite number above 0, received \"2\""
    )
    for (const factor of [0, -2, NaN, Infinity]) {
      assert.throws(exponential({ factor }), RangeError, "exponential: factor: expected")
    }
    for (const jitter of [-0.1, 20, NaN, "0.2"]) {
      assert.throws(exponential({ jitter }), RangeError, "exponential: jitter: expected a number from 0 to 1")
    }
    for (const pause of ["soon", -1, NaN, {}, { second: 1 }, true]) {
      assert.throws(
        exponential({ base: pause }),
        RangeError,
        "exponential: base: expected a duration that is not negative"
      )
      assert.throws(
        exponential({ cap: pause }),
        RangeError,
        "exponential: cap: expected a duration that is not negative"
      )
      assert.throws(
        () => RetryPolicy.fixed(pause as never, { maxAttempts: 2 }),
        RangeError,
        "fixed: delay: expected a duration that is not negative, such as \"10 seconds\" or milliseconds, received "
      )
      assert.throws(
        () => RetryPolicy.delays([1, pause as never]),
        RangeError,
        "RetryPolicy.delays: list[1]: expected a duration"
      )
    }
    assert.throws(
      exponential({ maxAttempt: 3 }),
      RangeError,
      "RetryPolicy.exponential: maxAttempt: expected no such field, only maxAttempts, base, factor, cap, jitter, received 3"
    )
    assert.throws(exponential([]), RangeError, "RetryPolicy.exponential: options: expected an object")
    assert.throws(
      () => RetryPolicy.fixed("1 second", undefined as never),
      RangeError,
      "RetryPolicy.fixed: options: expected an object"
    )
    assert.throws(() => RetryPolicy.delays([]), RangeError, "RetryPolicy.delays: list: expected 1 to 31999 delays")
    assert.throws(
      () => RetryPolicy.delays("1 second" as never),
      RangeError,
      "RetryPolicy.delays: list: expected 1 to 31999 delays"
    )
    assert.throws(
      () => RetryPolicy.custom(5 as never, { maxAttempts: 2 }),
      RangeError,
      "RetryPolicy.custom: next: expected a function"
    )
    assert.throws(
      () => RetryPolicy.forClass(RetryPolicy.none, "Fatal" as never, RetryPolicy.none),
      RangeError,
      "RetryPolicy.forClass: errorClass: expected one of Transient, Permanent, Timeout"
    )
    assert.throws(
      () => RetryPolicy.forClass(RetryPolicy.none, "Timeout", 3 as never),
      RangeError,
      "RetryPolicy.forClass: policy: expected a policy of RetryPolicy"
    )
  })

  it("every policy is one", () => {
    const custom = RetryPolicy.custom(() => 1, { maxAttempts: 2 })
    for (const policy of [RetryPolicy.none, RetryPolicy.exponential(), RetryPolicy.delays([1]), custom]) {
      assert.isTrue(RetryPolicy.isRetryPolicy(policy))
    }
    for (const other of [undefined, null, 3, {}, { maxAttempts: 3 }, { ...custom, maxAttempts: 0 }]) {
      assert.isFalse(RetryPolicy.isRetryPolicy(other))
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

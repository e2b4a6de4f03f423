import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Schema from "effect/Schema"
import * as JobError from "../src/JobError.ts"

describe("JobError", () => {
  it("a submission says whether sending it again can help", () => {
    const of = (reason: JobError.SubmitError["reason"]) => new JobError.SubmitError({ reason })
    assert.isTrue(of(new JobError.StoreUnavailable({ operation: "submit" })).isRetryable)
    assert.isTrue(of(new JobError.DedupeKeyBusy({})).isRetryable)
    assert.isFalse(of(new JobError.EmptyBatch({})).isRetryable)
    const field = new JobError.InvalidField({ field: "[3].priority", expected: "0 to 100", received: "101" })
    assert.isFalse(of(field).isRetryable)
    assert.strictEqual(of(field).message, "[3].priority: expected 0 to 100, received 101")
  })

  it("a refused submission can travel: reason and retryability survive JSON", () => {
    const codec = Schema.toCodecJson(JobError.SubmitError)
    const error = new JobError.SubmitError({
      reason: new JobError.UnknownQueue({ field: "queue", queue: "mial", known: ["mail", "default"] })
    })
    const json = JSON.parse(JSON.stringify(Schema.encodeSync(codec)(error)))
    const decoded = Schema.decodeUnknownSync(codec)(json)
    assert.instanceOf(decoded, JobError.SubmitError)
    assert.strictEqual(decoded.reason._tag, "UnknownQueue")
    assert.strictEqual(decoded.message, error.message)
    assert.isFalse(decoded.isRetryable)
  })

  it("a class that an error names itself counts, a word that is no class does not", () => {
    assert.strictEqual(JobError.errorClassOf({ errorClass: "Transient" }), "Transient")
    assert.strictEqual(JobError.errorClassOf(new JobError.ParseError({ issue: "no" })), "Validation")
    for (const error of [{ errorClass: "Fatal" }, { errorClass: 1 }, {}, null, undefined, "Transient"]) {
      assert.strictEqual(JobError.errorClassOf(error), undefined)
    }
  })

  it("a failure is told whatever the error is: one that cannot be told would never be settled", () => {
    const cyclic: Record<string, unknown> = { n: 1n }
    cyclic["self"] = cyclic
    const throwing = {
      get(): never {
        throw new Error("the error's own")
      }
    }
    const errors = [
      cyclic,
      Object.create(null),
      Object.defineProperties({}, { _tag: throwing, toString: throwing, toJSON: throwing }),
      Object.defineProperties(new Error(), { name: throwing, message: throwing, stack: throwing, _tag: throwing }),
      Object.assign(new Error(), { message: cyclic, name: 5 })
    ]
    for (const error of errors) {
      const failure = JobError.toFailure(error, { class: "System" })
      assert.deepStrictEqual(JSON.parse(JSON.stringify(failure)), failure)
      assert.strictEqual(failure.tag, "UnknownError")
    }
  })

  it("a Snooze takes any duration, and says of what is none what was expected", () => {
    for (const delay of [5000, "5 seconds", { seconds: 5 }, Duration.seconds(5)] as const) {
      const snooze = new JobError.Snooze({ delay })
      assert.deepStrictEqual([snooze._tag, Duration.toMillis(snooze.delay)], ["Snooze", 5000])
      assert.strictEqual(snooze.message, "snoozed for 5s")
    }
    for (
      const [delay, shown] of [["10 secs", "\"10 secs\""], [undefined, "undefined"], [{}, "{}"], [NaN, "NaN"]] as const
    ) {
      assert.throws(
        () => new JobError.Snooze({ delay: delay as Duration.Input }),
        RangeError,
        `new Snooze: delay: expected a duration, such as "10 seconds" or milliseconds, received ${shown}`
      )
    }
    const codec = Schema.toCodecJson(JobError.Snooze)
    const json = JSON.parse(JSON.stringify(Schema.encodeSync(codec)(new JobError.Snooze({ delay: "5 seconds" }))))
    const decoded = Schema.decodeUnknownSync(codec)(json)
    assert.instanceOf(decoded, JobError.Snooze)
    assert.strictEqual(Duration.toMillis(decoded.delay), 5000)
  })

  it("a retryAfter is taken as milliseconds or a Duration; nonsense never makes a delay", () => {
    const after = (retryAfter: unknown) => JobError.retryAfterOf({ retryAfter })
    assert.strictEqual(after(1500), 1500)
    assert.strictEqual(after(Duration.seconds(2)), 2000)
    assert.strictEqual(after(0), 0)
    assert.strictEqual(after("2 seconds"), 2000)
    assert.strictEqual(after({ seconds: 2 }), 2000)
    for (const nonsense of [-1, Infinity, Duration.infinity, "soon", null, {}, undefined]) {
      assert.strictEqual(after(nonsense), undefined)
    }
    assert.strictEqual(JobError.retryAfterOf(undefined), undefined)
  })
})

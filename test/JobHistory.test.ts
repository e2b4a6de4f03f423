import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as JobHistory from "../src/JobHistory.ts"
import { transitions } from "../src/JobState.ts"
import { attempted, failure, noted, t0 } from "./utils/storeFixture.ts"

const numbersOf = (history: ReadonlyArray<JobHistory.Entry>) =>
  history.map((entry) => entry.kind === "attempt" ? entry.attempt : entry.kind)

const ofAttempts = (count: number) =>
  Array.from({ length: count }, (_, index) => attempted(index + 1, "retried"))
    .reduce<ReadonlyArray<JobHistory.Entry>>(JobHistory.append, [])

const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, index) => from + index)

describe("JobHistory.append", () => {
  it("forty entries are all kept", () => {
    assert.deepStrictEqual(numbersOf(ofAttempts(40)), range(1, 40))
  })

  it("of more, the first twenty and the last twenty", () => {
    assert.deepStrictEqual(numbersOf(ofAttempts(41)), [...range(1, 20), ...range(22, 41)])
    assert.deepStrictEqual(numbersOf(ofAttempts(1000)), [...range(1, 20), ...range(981, 1000)])
  })

  it("never changes what it was given", () => {
    const before = Object.freeze(ofAttempts(40))
    JobHistory.append(before, noted("replayed"))
    assert.deepStrictEqual(numbersOf(before), range(1, 40))
  })
})

describe("JobHistory.transitions", () => {
  const submitted = { createdAt: t0, scheduledFor: undefined, history: [] }

  it("begins with the submission, which says when a scheduled job was to start", () => {
    assert.deepStrictEqual(JobHistory.transitions(submitted), [{ move: "submitted", to: "queued", at: t0 }])
    assert.deepStrictEqual(JobHistory.transitions({ ...submitted, scheduledFor: t0 + 5 }), [
      { move: "submitted", to: "scheduled", at: t0, dueAt: t0 + 5 }
    ])
  })

  it("tells of a failed attempt when, where and why, and when the next one is due", () => {
    const entry: JobHistory.Attempt = {
      ...attempted(1, "retried"),
      traceId: "t",
      spanId: "s",
      dueAt: t0 + 1000,
      failure
    }
    const where = { attempt: 1, runner: "here", traceId: "t", spanId: "s" }
    assert.deepStrictEqual(JobHistory.transitions({ ...submitted, history: [entry] }).slice(1), [
      { move: "started", to: "running", at: entry.startedAt, ...where },
      { move: "retried", to: "retrying", at: entry.endedAt, ...where, dueAt: t0 + 1000, failure }
    ])
  })

  it("tells who replayed and who cancelled", () => {
    const history = [noted("replayed"), noted("cancelled")]
    assert.deepStrictEqual(JobHistory.transitions({ ...submitted, history }).slice(1), [
      { move: "replayed", to: "queued", at: t0, by: "ada" },
      { move: "cancelled", to: "cancelled", at: t0, by: "ada" }
    ])
  })

  it("every move it can tell of is in the table of states", () => {
    const outcomes = JobHistory.Attempt.fields.outcome.literals
    const kinds = JobHistory.Note.fields.kind.literals
    const history = [...outcomes.map((outcome) => attempted(1, outcome)), ...kinds.map(noted)]
    for (const { move, to } of JobHistory.transitions({ ...submitted, history })) {
      assert.isTrue(transitions.some((one) => one.move === move && one.to === to), `${move} -> ${to}`)
    }
  })
})

describe("JobHistory.Entry", () => {
  it.prop("what is stored as JSON comes back as it was", [JobHistory.Entry], ([entry]) => {
    const codec = Schema.toCodecJson(JobHistory.Entry)
    const json = JSON.stringify(Schema.encodeSync(codec)(entry))
    assert.deepStrictEqual(Schema.decodeUnknownSync(codec)(JSON.parse(json)), JSON.parse(JSON.stringify(entry)))
  })
})

import { assert, describe, it } from "@effect/vitest"
import * as JobState from "../src/JobState.ts"

const { canMove, finalStates, isFinal, transitions } = JobState

describe("JobState", () => {
  it("no job can get stuck: from every state a move leads on, or it is final", () => {
    for (const state of JobState.JobState.literals) {
      const moves = transitions.filter(({ from }) => from === state)
      assert.strictEqual(moves.length === 0, isFinal(state) && state !== "failed", state)
    }
  })

  it("every state can be reached, and from every live one an end", () => {
    const reach = (from: JobState.JobState | undefined) => {
      const reached = new Set<JobState.JobState>()
      const visit = (state: JobState.JobState | undefined): void => {
        for (const { from, to } of transitions) {
          if (from !== state || reached.has(to)) continue
          reached.add(to)
          visit(to)
        }
      }
      visit(from)
      return reached
    }
    assert.deepStrictEqual([...reach(undefined)].sort(), [...JobState.JobState.literals].sort())
    for (const state of JobState.JobState.literals) {
      if (!isFinal(state)) assert.isTrue(reach(state).has("completed"), state)
    }
  })

  it("what has ended stays ended: only a dead letter comes back, and only by replay", () => {
    assert.deepStrictEqual(transitions.filter(({ from }) => from !== undefined && isFinal(from)), [
      { from: "failed", move: "replayed", to: "queued" }
    ])
  })

  it("a job that waits for its time cannot be run, failed or expired before it is due", () => {
    for (const from of ["scheduled", "retrying"] as const) {
      for (const to of ["running", "completed", "failed", "expired"] as const) assert.isFalse(canMove(from, to))
      assert.isTrue(canMove(from, "queued"))
    }
  })

  it("the same move from the same state never leads to two states, but for the submission", () => {
    const seen = transitions.filter(({ from }) => from !== undefined).map(({ from, move }) => `${from} ${move}`)
    assert.strictEqual(new Set(seen).size, seen.length)
  })

  it("stored codes are distinct, and every state that is stored has one", () => {
    const live = Object.keys(JobState.liveCodes)
    const ended = Object.keys(JobState.outcomeCodes)
    assert.deepStrictEqual(
      [...live, ...ended, "running", "failed"].sort(),
      [...JobState.JobState.literals].sort()
    )
    for (const codes of [JobState.liveCodes, JobState.outcomeCodes]) {
      assert.deepStrictEqual(Object.values(codes), [0, 1, 2])
    }
    assert.deepStrictEqual(live.filter((state) => finalStates.some((final) => final === state)), [])
  })

  it("the diagram shows every move once", () => {
    const lines = JobState.diagram().split("\n")
    assert.strictEqual(lines[0], "stateDiagram-v2")
    assert.isTrue(lines.includes("  [*] --> queued: submitted"))
    assert.isTrue(lines.includes("  running --> retrying: retried"))
    assert.isTrue(lines.includes("  completed --> [*]"))
    assert.isFalse(lines.includes("  failed --> [*]"))
    assert.strictEqual(lines.length, 1 + transitions.length + finalStates.length - 1)
    assert.strictEqual(new Set(lines).size, lines.length)
  })
})

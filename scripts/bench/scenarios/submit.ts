/**
 * How fast jobs are stored: one at a time from many callers, and in batches.
 */
import * as Effect from "effect/Effect"
import { jobsFor } from "../Registry.ts"
import { Scale } from "../Scale.ts"
import { fresh, prepared, rate, type Scenario } from "../Scenario.ts"

const sample = (jobs: number, millis: number) => [
  { metric: "rate", value: rate(jobs, millis), unit: "jobs/s", isMoreBetter: true, jobs }
]

export const submit: Scenario = {
  name: "submit",
  what: "one submit at a time from 50 callers of one process, each answered after its commit",
  work: "noop",
  measure: (turn) =>
    Effect.gen(function*() {
      const scale = yield* Scale
      const jobs = jobsFor(turn.system, "submit", scale.jobs / 2)
      const connect = yield* fresh(turn, "noop")
      const millis = yield* prepared(turn.system, connect, ({ call }) => call("submit", { jobs, callers: 50 }))
      return sample(jobs, millis)
    })
}

export const submitBatch: Scenario = {
  name: "submitBatch",
  what: "batches of 1,000, two at once",
  work: "noop",
  measure: (turn) =>
    Effect.gen(function*() {
      const scale = yield* Scale
      const jobs = jobsFor(turn.system, "submitBatch", scale.jobs)
      const connect = yield* fresh(turn, "noop")
      const millis = yield* prepared(
        turn.system,
        connect,
        ({ call }) => call("submitBatch", { jobs, batch: 1_000, callers: 2 })
      )
      return sample(jobs, millis)
    })
}

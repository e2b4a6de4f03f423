/**
 * How fast jobs are stored: one at a time from many callers, and in batches.
 */
import * as Effect from "effect/Effect"
import { jobsFor } from "../Registry.ts"
import { Scale } from "../Scale.ts"
import { fresh, prepared, rate, type Scenario, type Turn, withCost } from "../Scenario.ts"
import type { Worker } from "../WorkerProcess.ts"

const measure = Effect.fnUntraced(function*<E, R>(
  turn: Turn,
  jobs: number,
  submit: (worker: Worker) => Effect.Effect<number, E, R>
) {
  const connect = yield* fresh(turn, "noop")
  const { extra, result: millis } = yield* prepared(
    turn.system,
    connect,
    (worker) => withCost(worker, connect.url, jobs, submit(worker))
  )
  return [{ metric: "rate", value: rate(jobs, millis), unit: "jobs/s", isMoreBetter: true, jobs, extra }]
})

export const submit: Scenario = {
  name: "submit",
  what: "one submit at a time from 50 callers of one process, each answered after its commit",
  work: "noop",
  measure: (turn) =>
    Effect.gen(function*() {
      const scale = yield* Scale
      const jobs = jobsFor(turn.system, "submit", scale.jobs / 2)
      return yield* measure(turn, jobs, ({ call }) => call("submit", { jobs, callers: 50 }))
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
      return yield* measure(turn, jobs, ({ call }) => call("submitBatch", { jobs, batch: 1_000, callers: 2 }))
    })
}

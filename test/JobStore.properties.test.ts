/**
 * Whatever happens to a queue, in whatever order: the rules hold, and PostgreSQL and the model tell the same story.
 */
import { assert, describe, it, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { canMove, isFinal } from "../src/JobState.ts"
import type { JobRecord } from "../src/JobStore.ts"
import * as MemoryJobStore from "../src/MemoryJobStore.ts"
import * as PgJobStore from "../src/PgJobStore.ts"
import { TestDatabase } from "./utils/database.ts"
import { Commands, live, type Step } from "./utils/storeCommands.ts"

/** A ready job may be running, which the store cannot know. */
const isAllowed = (from: JobRecord["state"], to: JobRecord["state"]) =>
  from === to || canMove(from, to) || (from === "queued" && canMove("running", to))

/** What of a live job cannot change unseen: its version tells (R2). */
const substance = ({ attempt, crashes, dueAt, history, lane, state }: JobRecord) =>
  JSON.stringify([state, attempt, crashes, dueAt, lane, history])

const checkStep = (before: ReadonlyArray<JobRecord | undefined>, { jobs }: Step) => {
  const holders = new Set<string>()
  jobs.forEach((job, index) => {
    assert.isDefined(job, "a stored job is never lost")
    if (job === undefined) return
    assert.isAtMost(job.history.length, 40)
    if (job.dedupeKey !== undefined && !isFinal(job.state)) {
      const key = `${job.tenant} ${job.dedupeKey}`
      assert.isFalse(holders.has(key), "one live job a key")
      holders.add(key)
    }
    assert.strictEqual(
      job.state === "scheduled" || job.state === "retrying",
      job.state !== "queued" && job.dueAt !== undefined
    )

    const was = before[index]
    if (was === undefined) return
    assert.isTrue(isAllowed(was.state, job.state), `${was.state} -> ${job.state}`)
    assert.isAtLeast(job.version, was.version, "a version never comes back")
    const isLive = !isFinal(was.state) && !isFinal(job.state)
    if (isLive && substance(was) !== substance(job)) {
      assert.isAbove(job.version, was.version, "every update raises the version")
    }
    if (was.state === "completed" || was.state === "cancelled" || was.state === "expired") {
      assert.deepStrictEqual(job, was)
    }
  })
}

describe("JobStore", () => {
  it.effect.prop(
    "no life of a queue loses a job, repeats a version or makes a move that is not in the table",
    [Commands],
    ([commands]) => {
      let before: Step["jobs"] = []
      return live(commands, (step) => {
        checkStep(before, step)
        before = step.jobs
      }).pipe(Effect.provide(MemoryJobStore.layer))
    },
    { arbitrary: { runs: 300 } }
  )
})

const onPostgres = Layer.provide(PgJobStore.layer(), TestDatabase.layer)

layer(onPostgres, { excludeTestServices: true, timeout: "60 seconds" })("JobStore on PostgreSQL", (it) => {
  it.effect.prop(
    "every life of a queue goes as it goes in the model",
    [Commands],
    ([commands]) =>
      Effect.gen(function*() {
        const model = yield* Effect.provide(live(commands), MemoryJobStore.layer)
        assert.deepStrictEqual(yield* live(commands), model)
      }),
    { arbitrary: { runs: 60 }, timeout: 60_000 }
  )
})

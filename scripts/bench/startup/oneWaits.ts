/**
 * Makes the tables and one job that waits.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Bench, database, First, JobRuntime, Jobs, tell } from "./task.ts"

NodeRuntime.runMain(
  Effect.gen(function*() {
    const jobs = yield* Jobs.Jobs
    yield* jobs.submit(First.request({ text: "x".repeat(85) }))
  }).pipe(
    Effect.provide(JobRuntime.layerClient({ queues: [Bench] }).pipe(Layer.provide(database()))),
    Effect.andThen(tell("submitted")),
    // Its connection to the parent would keep this process alive.
    Effect.andThen(Effect.sync(() => process.disconnect()))
  )
)

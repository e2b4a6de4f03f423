/**
 * A worker that tells its parent when its first handler begins.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Layer from "effect/Layer"
import { Bench, database, First, JobRuntime, tell } from "./task.ts"

NodeRuntime.runMain(Layer.launch(
  First.toLayer(() => tell("started")).pipe(
    Layer.provide(JobRuntime.layer({ queues: [Bench] })),
    Layer.provide(database())
  )
))

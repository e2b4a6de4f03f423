/**
 * A runner: a user's program on the public surface, with the handlers of handlers.ts and hostile.ts. Started, frozen and killed by run.ts.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { JobRuntime, Postgres } from "../../src/index.ts"
import { handlers } from "./handlers.ts"
import { hostileHandlers } from "./hostile.ts"
import { send } from "./runnerMessage.ts"
import { Starts } from "./Starts.ts"
import { queues } from "./work.ts"

/** What a runner is started with. */
export const RunnerOptions = Schema.Struct({
  url: Schema.String,
  runner: Schema.Int,
  incarnation: Schema.Int,
  runtime: Schema.Literals(["cluster", "single"]),
  /** Of `tx`. */
  partitions: Schema.Int,
  /** Where others reach it, and where it listens. */
  host: Schema.String,
  port: Schema.Int,
  listenHost: Schema.String,
  listenPort: Schema.Int
})
export type RunnerOptions = typeof RunnerOptions.Type

const all = (options: RunnerOptions) =>
  Layer.mergeAll(handlers, hostileHandlers).pipe(Layer.provide(Starts.layer(options)))

const program = (options: RunnerOptions) => {
  const database = Postgres.layer({ url: options.url, maxConnections: 30, applicationName: "chaos handlers" })
  const shared = { queues: queues(options.partitions), gracePeriod: "5 seconds" } as const
  const runtime = options.runtime === "single"
    ? JobRuntime.layer(shared)
    : JobRuntime.layerCluster({
      ...shared,
      host: options.host,
      port: options.port,
      listenHost: options.listenHost,
      listenPort: options.listenPort
    })
  return Effect.andThen(Effect.sync(() => process.send?.({ say: "ready" })), JobRuntime.run).pipe(
    Effect.provide(all(options).pipe(Layer.provideMerge(runtime), Layer.provideMerge(database)))
  )
}

/** Who stands still for longer may lose its locks, with no fault injected: the checker has to know. */
const watchMs = 250
const stoodMs = 2_000
let watchedAt = performance.now()
setInterval(() => {
  const forMs = Math.round(performance.now() - watchedAt) - watchMs
  watchedAt = performance.now()
  if (forMs > stoodMs) send({ stood: forMs })
}, watchMs).unref()

// Nobody survives the run that started it.
process.on("disconnect", () => process.exit(1))
NodeRuntime.runMain(
  program(Schema.decodeUnknownSync(Schema.fromJsonString(RunnerOptions))(process.env["CHAOS_OPTIONS"]))
)

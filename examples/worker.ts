/**
 * What does a worker look like? A runner of a cluster, its handlers, two probes, and `JobRuntime.run`: until SIGTERM, then it drains.
 *
 *   DATABASE_URL=postgres://... MILLRACE_RUNNER_HOST=10.0.0.7 node worker.ts
 *
 * The probes are at port 8080, or `PROBE_PORT`. In a program of yours import from "millrace". How to operate it: ../docs/operate.md.
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import { createServer } from "node:http"
import { Health, JobRuntime, Postgres } from "../src/index.ts"
import { Computing, CountPrimesLive } from "./cpu.ts"

/** 200 or 503, and why. */
const probe = (path: "/ready" | "/live", isGood: (status: Health.Status) => boolean) =>
  HttpRouter.add(
    "GET",
    path,
    Effect.gen(function*() {
      const status = yield* (yield* Health.Health).status
      return HttpServerResponse.jsonUnsafe(status, { status: isGood(status) ? 200 : 503 })
    })
  )

const ProbesLive = HttpRouter.serve(
  Layer.mergeAll(probe("/ready", ({ isReady }) => isReady), probe("/live", ({ isLive }) => isLive)),
  { disableLogger: true }
).pipe(
  Layer.provide(NodeHttpServer.layerConfig(createServer, {
    port: Config.withDefault(Config.Port("PROBE_PORT"), 8080)
  }))
)

const WorkerLive = Layer.mergeAll(CountPrimesLive, ProbesLive).pipe(
  Layer.provideMerge(JobRuntime.layerCluster({ queues: [Computing] })),
  Layer.provideMerge(Postgres.layer())
)

JobRuntime.run.pipe(Effect.provide(WorkerLive), NodeRuntime.runMain)

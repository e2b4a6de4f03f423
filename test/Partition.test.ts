/**
 * Hazards of a partition's owner: one job, one tenant or one subscriber must not hold up the others.
 */
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import * as CurrentJob from "../src/CurrentJob.ts"
import * as EventBus from "../src/EventBus.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as Jobs from "../src/Jobs.ts"
import * as RequestContext from "../src/RequestContext.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { layerMemory, layerPostgres, Partitions } from "./utils/partitions.ts"
import { listen, makeStops, until } from "./utils/runtime.ts"

const Flood = JobQueue.make("flood", { concurrency: 1 })
const Wide = JobQueue.make("wide", { concurrency: 10 })

layer(layerMemory({ queues: [Flood] }), { excludeTestServices: true })("guarantee 6", (it) => {
  it.effect("a tenant that comes after another one's flood gets its turn, also when the flood fills the mailbox", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const partitions = yield* Partitions
      const stops = yield* makeStops
      const starts: Array<string | undefined> = []
      yield* JobHandlers.register("gate", () => stops.stop("gate"))
      yield* JobHandlers.register(
        "turn",
        () => Effect.flatMap(CurrentJob.CurrentJob, ({ request }) => Effect.sync(() => starts.push(request.tenantId)))
      )
      yield* jobs.submit({ type: "gate", queue: Flood })
      yield* stops.arrived("gate")
      const submit = (tenantId: string, length: number) =>
        RequestContext.provide(
          jobs.submit(Array.from({ length }, () => ({ type: "turn", queue: Flood }))),
          { tenantId }
        )
      const { lanes: empty } = partitions.of(Flood).snapshot()
      yield* submit("a", 3_000)
      yield* until(Effect.sync(() => {
        const { lanes } = partitions.of(Flood).snapshot()
        return (lanes[2]?.room ?? 0) < (empty[2]?.room ?? 0) / 2
      }))
      const { jobIds } = yield* submit("b", 1)
      yield* until(Effect.sync(() => jobIds.every((id) => partitions.of(Flood).view(id) !== undefined)))
      yield* stops.releaseAll
      yield* Effect.forEach(jobIds, (id) => jobs.await(id))
      const place = starts.indexOf("b") + 1
      assert.isAtMost(place, 2, `b started as number ${place}`)
    }))
})

layer(layerPostgres({ queues: [Wide] }), { excludeTestServices: true })("an owner", (it) => {
  it.effect("a job that waits to run alone can be cancelled, and the queue goes on beside the long run it waited for", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* SqlClient
      const { of } = yield* Partitions
      const stops = yield* makeStops
      yield* JobHandlers.register("long", () => stops.stop("long"))
      yield* JobHandlers.register("short", () => Effect.void)
      yield* jobs.submit({ type: "long", queue: Wide })
      yield* stops.arrived("long")
      const suspect = yield* jobs.submit({ type: "short", queue: Wide, delay: "100 millis" })
      yield* sql`update millrace.jobs set crashes = 2 where id = ${suspect}`
      yield* until(Effect.sync(() => of(Wide).view(suspect)?.isRunning === false))
      yield* jobs.cancel(suspect)
      assert.strictEqual((yield* jobs.status(suspect)).state, "cancelled")
      yield* jobs.await(yield* jobs.submit({ type: "short", queue: Wide }))
      yield* stops.releaseAll
    }))

  it.effect("cancelling a job that its owner has not read yet is told like any other cancellation", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const { of } = yield* Partitions
      const stops = yield* makeStops
      yield* JobHandlers.register("gates", (payload) => stops.stop(String(payload)))
      yield* JobHandlers.register("far", () => Effect.void)
      yield* jobs.submit(Array.from({ length: 10 }, (_, payload) => ({ type: "gates", payload, queue: Wide })))
      yield* Effect.forEach(Array.from({ length: 10 }, (_, n) => String(n)), stops.arrived)
      const { jobIds } = yield* jobs.submit(Array.from({ length: 2_000 }, () => ({ type: "far", queue: Wide })))
      const last = jobIds.at(-1)
      assert(last !== undefined)
      assert.isUndefined(of(Wide).view(last))
      const { heard: events } = yield* listen({ jobId: last }, () => true)
      yield* jobs.cancel(last)
      assert.deepStrictEqual((yield* events).map(({ _tag }) => _tag), ["JobCancelled"])
      yield* stops.releaseAll
    }))
})

const layerFailingBus = Layer.succeed(
  EventBus.EventBus,
  EventBus.EventBus.of({
    publish: () => Effect.die(new Error("the bus is broken")),
    stream: () => Stream.never,
    subscribe: () => Effect.succeed(Stream.never)
  })
)

layer(layerMemory({ queues: [Wide], eventBus: layerFailingBus }), { excludeTestServices: true })(
  "with a bus that fails",
  (it) => {
    it.effect("no job runs twice at a time, none is lost, and submitters are not told of it", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        let running = 0
        let most = 0
        let runs = 0
        yield* JobHandlers.register("flaky", () =>
          Effect.suspend(() => {
            most = Math.max(most, ++running)
            return Effect.ensuring(
              Effect.andThen(Effect.yieldNow, ++runs < 3 ? Effect.fail("again") : Effect.void),
              Effect.sync(() => running--)
            )
          }), { transaction: "none", retry: RetryPolicy.fixed("1 millis", { maxAttempts: 3 }) })
        const id = yield* jobs.submit({ type: "flaky", queue: Wide })
        yield* jobs.await(id)
        assert.deepStrictEqual({ most, runs }, { most: 1, runs: 3 })
      }))
  }
)

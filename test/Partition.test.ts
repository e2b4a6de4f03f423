/**
 * Hazards of a partition's owner: one job, one tenant or one subscriber must not hold up the others.
 */
import { assert, layer } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import * as CurrentJob from "../src/CurrentJob.ts"
import * as EventBus from "../src/EventBus.ts"
import * as Moves from "../src/internal/moves.ts"
import * as Partition from "../src/internal/partition.ts"
import * as RunWatch from "../src/internal/runWatch.ts"
import * as Supervisor from "../src/internal/supervisor.ts"
import * as Suspects from "../src/internal/suspects.ts"
import * as Unwritten from "../src/internal/unwritten.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import type { JobId } from "../src/JobId.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as Jobs from "../src/Jobs.ts"
import { JobStore } from "../src/JobStore.ts"
import * as RequestContext from "../src/RequestContext.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { layerMemory, layerPostgres, Partitions } from "./utils/partitions.ts"
import { listen, makeStops, until } from "./utils/runtime.ts"
import { newJob } from "./utils/storeFixture.ts"

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

const First = JobQueue.make("first")
const Second = JobQueue.make("second")
/** A clock for suspects, that the test moves; and a lock of the first queue, that it loses. */
let suspectsNow = 0
const together = Suspects.make(() => suspectsNow)
let endings = 0
const lock = { isLost: false, lost: Deferred.makeUnsafe<void>() }
const twoQueues = layerPostgres({
  queues: [First, Second],
  suspects: {
    get isActive() {
      return together.isActive
    },
    ended: () => {
      endings++
      together.ended()
    },
    join: together.join
  },
  locks: {
    first: { isHeld: () => !lock.isLost, lost: Deferred.await(lock.lost), giveUp: () => {} }
  }
})

layer(twoQueues, { excludeTestServices: true })("of several queues in one process", (it) => {
  /** A job that has been there when its process died, twice. */
  const submitSuspect = (queue: JobQueue.JobQueue, type: string, payload?: string) =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const sql = yield* SqlClient
      return yield* sql.withTransaction(Effect.gen(function*() {
        const id = yield* jobs.submit({ type, queue, payload: payload ?? null })
        yield* sql`update millrace.jobs set crashes = 2 where id = ${id}`
        return id
      }))
    })

  const untilHeld = (queue: JobQueue.JobQueue, id: JobId) =>
    Effect.flatMap(
      Partitions,
      (partitions) => until(Effect.sync(() => partitions.of(queue).view(id)?.isRunning === false))
    )

  it.effect("a suspect starts when the last attempt of the other queue has ended, and nothing starts beside it", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      const order: Array<string> = []
      yield* JobHandlers.register(
        "step",
        (payload) =>
          Effect.andThen(Effect.sync(() => order.push(`${String(payload)} starts`)), stops.stop(String(payload))).pipe(
            Effect.andThen(Effect.sync(() => order.push(`${String(payload)} ends`)))
          )
      )
      const long = yield* jobs.submit({ type: "step", queue: Second, payload: "long" })
      yield* stops.arrived("long")
      const suspect = yield* submitSuspect(First, "step", "suspect")
      yield* untilHeld(First, suspect)
      const late = yield* jobs.submit({ type: "step", queue: Second, payload: "late" })
      const beside = yield* jobs.submit({ type: "step", queue: First, payload: "beside" })
      yield* untilHeld(Second, late)
      yield* untilHeld(First, beside)
      const before = endings
      yield* stops.release("long")
      yield* stops.arrived("suspect")
      yield* jobs.await(long)
      assert.deepStrictEqual(order, ["long starts", "long ends", "suspect starts"])
      // The other queue has told it, and a turn of the notes has not found it out.
      assert.isAbove(endings, before)
      yield* stops.releaseAll
      yield* Effect.forEach([suspect, late, beside], (id) => jobs.await(id))
      assert.deepStrictEqual(order.slice(3, 4), ["suspect ends"])
    }))

  it.effect("two suspects of two queues do not run beside each other", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      const running = new Set<string>()
      let most = 0
      yield* JobHandlers.register("alone", (payload) =>
        Effect.suspend(() => {
          most = Math.max(most, running.add(String(payload)).size)
          return Effect.ensuring(stops.stop(String(payload)), Effect.sync(() => running.delete(String(payload))))
        }))
      const one = yield* submitSuspect(First, "alone", "one")
      yield* stops.arrived("one")
      const two = yield* submitSuspect(Second, "alone", "two")
      yield* untilHeld(Second, two)
      yield* stops.release("one")
      yield* jobs.await(one)
      // The others' time, as long as they were held back.
      suspectsNow += Suspects.patienceMs
      yield* stops.arrived("two")
      yield* stops.releaseAll
      yield* jobs.await(two)
      assert.strictEqual(most, 1)
    }))

  it.effect("a suspect that does not end holds back the other queue for its time only", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      yield* JobHandlers.register("endless", () => stops.stop("endless"))
      yield* JobHandlers.register("quick", () => Effect.void)
      suspectsNow += 2 * Suspects.patienceMs
      const suspect = yield* submitSuspect(First, "endless")
      yield* stops.arrived("endless")
      const other = yield* jobs.submit({ type: "quick", queue: Second })
      yield* untilHeld(Second, other)
      suspectsNow += Suspects.patienceMs
      yield* jobs.await(other)
      yield* stops.releaseAll
      yield* jobs.await(suspect)
    }))

  it.effect("a suspect whose handler goes while it waits holds back nobody any more", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      yield* JobHandlers.register("slow", () => stops.stop("slow"))
      yield* JobHandlers.register("soon", () => Effect.void)
      suspectsNow += 2 * Suspects.patienceMs
      yield* jobs.submit({ type: "slow", queue: Second })
      yield* stops.arrived("slow")
      const suspect = yield* Effect.scoped(Effect.gen(function*() {
        yield* JobHandlers.register("going", () => Effect.void)
        const suspect = yield* submitSuspect(First, "going")
        yield* untilHeld(First, suspect)
        const other = yield* jobs.submit({ type: "soon", queue: Second })
        yield* untilHeld(Second, other)
        return suspect
      }))
      yield* jobs.await(yield* jobs.submit({ type: "soon", queue: Second }))
      yield* jobs.cancel(suspect)
      yield* stops.releaseAll
    }))

  it.effect("a suspect without a handler holds back nobody", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      yield* JobHandlers.register("long run", () => stops.stop("long run"))
      yield* JobHandlers.register("now", () => Effect.void)
      yield* jobs.submit({ type: "long run", queue: Second })
      yield* stops.arrived("long run")
      const suspect = yield* submitSuspect(First, "nobody's")
      yield* untilHeld(First, suspect)
      yield* jobs.await(yield* jobs.submit({ type: "now", queue: Second }))
      yield* jobs.await(yield* jobs.submit({ type: "now", queue: First }))
      yield* stops.releaseAll
    }))

  it.effect("a suspect whose partition closes while it waits holds back nobody any more, also while running jobs have their grace", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const store = yield* JobStore
      const sql = yield* SqlClient
      const stops = yield* makeStops
      yield* JobHandlers.register("has grace", () => stops.stop("has grace"))
      yield* JobHandlers.register("right away", () => Effect.void)
      suspectsNow += 2 * Suspects.patienceMs
      const { queueId } = yield* store.declareQueue("closing")
      const [long, suspect] = [newJob({ queueId, type: "has grace" }), newJob({ queueId, type: "right away" })]
      yield* store.submit([long, suspect], { batchId: undefined, now: yield* store.now })
      yield* sql`update millrace.jobs set crashes = 2 where id = ${suspect.id}`
      const scope = yield* Scope.fork(yield* Effect.scope)
      const closing = yield* Partition.make({
        store,
        handlers: yield* JobHandlers.JobHandlers,
        bus: yield* EventBus.EventBus,
        queue: JobQueue.make("closing"),
        queueId,
        partition: 0,
        position: { runner: "test", shard: "default:1", entity: "closing/0" },
        incarnation: "test",
        services: yield* Effect.context(),
        graceMs: 600_000,
        abandonAfterMs: 5_000,
        handlerGraceMs: 60_000,
        lock: Supervisor.always,
        suspects: together,
        unwritten: Unwritten.make(),
        moves: Moves.none,
        runWatch: RunWatch.make()
      }).pipe(Scope.provide(scope))
      yield* stops.arrived("has grace")
      yield* until(Effect.sync(() => closing.view(suspect.id)?.isRunning === false))
      const other = yield* jobs.submit({ type: "right away", queue: Second })
      yield* untilHeld(Second, other)
      const closed = yield* Effect.forkChild(Scope.close(scope, Exit.void))
      yield* jobs.await(other)
      assert.strictEqual(closing.view(long.id)?.isRunning, true)
      yield* stops.releaseAll
      yield* Fiber.join(closed)
    }))

  // The last one: the first queue has no owner any more.
  it.effect("a suspect whose partition loses its lock while it waits holds back nobody any more", () =>
    Effect.gen(function*() {
      const jobs = yield* Jobs.Jobs
      const stops = yield* makeStops
      yield* JobHandlers.register("runs on", () => stops.stop("runs on"))
      yield* JobHandlers.register("at once", () => Effect.void)
      suspectsNow += 2 * Suspects.patienceMs
      yield* jobs.submit({ type: "runs on", queue: Second })
      yield* stops.arrived("runs on")
      const suspect = yield* submitSuspect(First, "at once")
      yield* untilHeld(First, suspect)
      const other = yield* jobs.submit({ type: "at once", queue: Second })
      yield* untilHeld(Second, other)
      lock.isLost = true
      Deferred.doneUnsafe(lock.lost, Effect.void)
      yield* jobs.await(other)
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

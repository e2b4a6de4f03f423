/**
 * What prefetching and batching must not change: serial queues, limits, lanes, tenants, order, and what is told of a job whose handler has
 * ended while its outcome still waits to be written. The store's answers are held, nothing is timed.
 */
import { assert, layer } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
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
import { JobStore, type ReadyJob, tenantKey } from "../src/JobStore.ts"
import * as RequestContext from "../src/RequestContext.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { layerMemory, layerPostgres, Partitions } from "./utils/partitions.ts"
import { failureOf, makeStops, until, untilState } from "./utils/runtime.ts"
import { newJob } from "./utils/storeFixture.ts"

const Serial = JobQueue.make("serial", { concurrency: 1 })
const Four = JobQueue.make("four", { concurrency: 4 })
const Ten = JobQueue.make("ten", { concurrency: 10 })
const Other = JobQueue.make("other", { concurrency: 1 })
const queues = [Serial, Four, Ten, Other]

const register = <R>(
  type: string,
  handler: (payload: unknown) => Effect.Effect<unknown, unknown, R>,
  options?: JobHandlers.Options
) => JobHandlers.register(type, handler, { retry: RetryPolicy.none, ...options })

const many = (length: number, type: string, queue: JobQueue.JobQueue) =>
  Array.from({ length }, (_, payload) => ({ type, payload, queue }))

type OnIntake = (jobs: ReadonlyArray<ReadyJob>) => void
const noIntake: OnIntake = () => {}

/** A store whose settlements of all queues but `other` wait while `gate` is closed, and which says what it is asked. */
const makeHeld = () => {
  const gate = Latch.makeUnsafe(true)
  const reading = Latch.makeUnsafe(true)
  let other: number | undefined
  const seen = { settlements: 0, onSubmitted: () => {}, onIntake: noIntake }
  const change = (store: JobStore["Service"]): JobStore["Service"] => ({
    ...store,
    declareQueue: (name, wanted) =>
      Effect.tap(store.declareQueue(name, wanted), ({ queueId }) =>
        Effect.sync(() => {
          if (name === Other.name) other = queueId
        })),
    submit: (jobs, options) => Effect.tap(store.submit(jobs, options), () => Effect.sync(() => seen.onSubmitted())),
    intake: (owner, demand) =>
      Effect.tap(
        owner.queueId === other
          ? store.intake(owner, demand)
          : Effect.andThen(reading.await, store.intake(owner, demand)),
        ({ jobs }) => Effect.sync(() => seen.onIntake(jobs))
      ),
    settle: (owner, settlements, now) => {
      if (owner.queueId === other) return store.settle(owner, settlements, now)
      seen.settlements += settlements.length
      return Effect.andThen(gate.await, store.settle(owner, settlements, now))
    }
  })
  /** Closed until it is opened, or the test is over. */
  const close = Effect.acquireRelease(gate.close, () => gate.open)
  const closeReading = Effect.acquireRelease(reading.close, () => reading.open)
  return { gate, close, reading, closeReading, seen, change }
}

/** Whatever was to happen meanwhile has had its chance: other jobs have gone all their way, several times. */
const aWhile = Effect.gen(function*() {
  const jobs = yield* Jobs.Jobs
  const type = `a while ${yield* Effect.sync(() => ++whiles)}`
  yield* register(type, () => Effect.void)
  for (let turn = 0; turn < 5; turn++) yield* jobs.await(yield* jobs.submit({ type, queue: Other }))
}).pipe(Effect.scoped)
let whiles = 0

const stateOf = (id: JobId) =>
  Effect.flatMap(JobStore, (store) => Effect.map(store.find(id), (found) => Option.getOrThrow(found).state))

/** Owns a queue of the test's own, in which so many jobs of this type wait. */
const own = Effect.fnUntraced(function*(queue: JobQueue.JobQueue, graceMs: number, type: string, count: number) {
  const store = yield* JobStore
  const { queueId } = yield* store.declareQueue(`own ${type}`)
  const jobs = Array.from({ length: count }, () => newJob({ queueId, type }))
  const stored = yield* store.submit(jobs, { batchId: undefined, now: yield* store.now })
  const scope = yield* Scope.fork(yield* Effect.scope)
  const partition = yield* Partition.make({
    store,
    handlers: yield* JobHandlers.JobHandlers,
    bus: yield* EventBus.EventBus,
    queue,
    queueId,
    partition: 0,
    position: { runner: "test", shard: "default:1", entity: `own ${type}/0` },
    incarnation: "test",
    services: yield* Effect.context(),
    graceMs,
    abandonAfterMs: 5_000,
    handlerGraceMs: 60_000,
    lock: Supervisor.always,
    suspects: Suspects.make(),
    unwritten: Unwritten.make(),
    moves: Moves.none,
    runWatch: RunWatch.make()
  }).pipe(Scope.provide(scope))
  return { ids: jobs.map(({ id }) => id), partition, queueId, scope, seqs: stored.map(({ seq }) => seq), store }
})

for (const [name, layerOf] of [["memory", layerMemory], ["PostgreSQL", layerPostgres]] as const) {
  const held = makeHeld()
  layer(layerOf({ queues, changeStore: held.change }), { excludeTestServices: true })(`on ${name}`, (it) => {
    it.effect("a serial queue starts no handler before the outcome of the one before is in the table, with hundreds prefetched", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const partitions = yield* Partitions
        const started: Array<JobId> = []
        let running = 0
        let most = 0
        const early: Array<string> = []
        yield* register("serial", (payload) =>
          Effect.gen(function*() {
            const { jobId } = yield* CurrentJob.CurrentJob
            const before = started.at(-1)
            started.push(jobId)
            most = Math.max(most, ++running)
            if (before !== undefined && (yield* stateOf(before)) !== "completed") early.push(before)
            // Some settle in their own transaction, the others with whoever settles at the same time; some never give way.
            const sql = yield* Effect.serviceOption(SqlClient)
            if (Number(payload) % 3 === 1 && Option.isSome(sql)) yield* sql.value`select 1`
            if (Number(payload) % 3 === 2) yield* Effect.yieldNow
            running--
          }))
        yield* held.close
        const { jobIds } = yield* jobs.submit(many(300, "serial", Serial))
        yield* until(Effect.sync(() => held.seen.settlements > 0))
        yield* aWhile
        assert.isAtLeast(jobIds.filter((id) => partitions.of(Serial).view(id) !== undefined).length, 250)
        assert.deepStrictEqual(started, jobIds.slice(0, 1))
        yield* held.gate.open
        yield* Effect.forEach(jobIds, (id) => jobs.await(id), { concurrency: 20 })
        assert.deepStrictEqual({ most, early }, { most: 1, early: [] })
        assert.deepStrictEqual(started, jobIds)
      }))

    it.effect("a serial queue waits for the outcome of a handler that failed, too", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const started: Array<unknown> = []
        yield* register("serial failing", (payload) =>
          Effect.suspend(() => {
            started.push(payload)
            return Effect.fail("no")
          }))
        const before = held.seen.settlements
        yield* held.close
        const { jobIds } = yield* jobs.submit(many(50, "serial failing", Serial))
        yield* until(Effect.sync(() => held.seen.settlements > before))
        yield* aWhile
        assert.deepStrictEqual(started, [0])
        yield* held.gate.open
        yield* Effect.forEach(jobIds, (id) => failureOf(jobs.await(id)), { concurrency: 20 })
        assert.strictEqual(started.length, 50)
      }))

    it.effect("a queue of concurrency 4 never has five handlers under way, and starts no more once enough outcomes are not written", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const partitions = yield* Partitions
        let running = 0
        let most = 0
        let started = 0
        yield* register("four", (payload) =>
          Effect.gen(function*() {
            started++
            most = Math.max(most, ++running)
            assert.isAtMost(partitions.of(Four).snapshot().running.length, 4)
            if (Number(payload) % 2 === 1) yield* Effect.yieldNow
            running--
          }))
        yield* held.close
        const { jobIds } = yield* jobs.submit(many(500, "four", Four))
        yield* until(Effect.sync(() => started >= 64 && running === 0))
        yield* aWhile
        // The limit, and those that were under way when it was reached.
        assert.isAtMost(started, 64 + 3)
        assert.strictEqual(yield* stateOf(jobIds[0]!), "queued")
        yield* held.gate.open
        yield* Effect.forEach(jobIds, (id) => jobs.await(id), { concurrency: 20 })
        assert.deepStrictEqual({ most, started }, { most: 4, started: 500 })
      }))

    // ------------------------------------------------------------------------------------------------ guarantee 6

    for (const way of ["by hand-over", "by intake"] as const) {
      it.effect(`guarantee 6: among thousands of low jobs prefetched and running a critical one starts within its bound, ${way}`, () =>
        Effect.gen(function*() {
          const jobs = yield* Jobs.Jobs
          const starts: Array<string> = []
          const type = `lanes ${way}`
          let known: number | undefined
          yield* register(type, (payload) =>
            Effect.gen(function*() {
              starts.push((payload as { readonly lane: string }).lane)
              if (starts.length % 2 === 0) yield* Effect.yieldNow
            }))
          const { jobIds } = yield* jobs.submit(
            Array.from({ length: 3_000 }, () => ({ type, payload: { lane: "low" }, queue: Ten })),
            { priority: "low" }
          )
          for (let round = 0; round < 5; round++) {
            const at = starts.length
            yield* until(Effect.sync(() => starts.length > at + 100))
            const lane = `critical ${round}`
            known = undefined
            const note = () => known ??= starts.length
            held.seen.onSubmitted = way === "by hand-over" ? note : () => {}
            const before = new Set<string>(jobIds)
            held.seen.onIntake = (read) => {
              if (way === "by intake" && read.some(({ id }) => !before.has(id))) note()
            }
            // Of many their owner reads as many as it has room for.
            const count = way === "by hand-over" ? 1 : 65
            const { jobIds: [first] } = yield* jobs.submit(
              Array.from({ length: count }, () => ({ type, payload: { lane }, queue: Ten })),
              { priority: "critical" }
            )
            yield* jobs.await(first!)
            assert(known !== undefined)
            // W - w + 1
            assert.isAtMost(starts.indexOf(lane) - known, 8)
            yield* until(Effect.sync(() => starts.filter((one) => one === lane).length === count))
          }
          held.seen.onSubmitted = () => {}
          held.seen.onIntake = noIntake
          assert.isBelow(starts.filter((one) => one === "low").length, 3_000)
          yield* until(Effect.sync(() => starts.filter((one) => one === "low").length === 3_000))
        }))
    }

    it.effect("guarantee 6: a tenant's job starts in its turn although another one's flood was prefetched and is running", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const starts: Array<string | undefined> = []
        yield* register("turns", () =>
          Effect.gen(function*() {
            starts.push((yield* CurrentJob.CurrentJob).request.tenantId)
            yield* Effect.yieldNow
          }))
        yield* RequestContext.provide(jobs.submit(many(3_000, "turns", Ten)), { tenantId: "flood" })
        for (let round = 0; round < 5; round++) {
          const at = starts.length
          yield* until(Effect.sync(() => starts.length > at + 100))
          const tenantId = `guest ${round}`
          // Known when it is handed over, or when it is read.
          let known: number | undefined
          held.seen.onSubmitted = () => known = starts.length
          held.seen.onIntake = (read) => {
            if (read.some(({ tenant }) => tenant === tenantKey(tenantId))) known = starts.length
          }
          const id = yield* RequestContext.provide(jobs.submit({ type: "turns", queue: Ten }), { tenantId })
          yield* RequestContext.provide(jobs.await(id), { tenantId })
          assert(known !== undefined)
          assert.isAtMost(starts.indexOf(tenantId) - known, 2)
          assert.isBelow(starts.length, 3_000)
        }
        held.seen.onSubmitted = () => {}
        held.seen.onIntake = noIntake
        yield* until(Effect.sync(() => starts.length === 3_005))
      }))

    // ------------------------------------------------------------------------------------------------ hand-over

    it.effect("a job in its submitter's hand does not pass an older one of its line that still waits in the table", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const stops = yield* makeStops
        const starts: Array<unknown> = []
        yield* register("line gate", () => stops.stop("line"))
        yield* register("line", (payload) => Effect.sync(() => starts.push(payload)))
        yield* jobs.submit({ type: "line gate", queue: Serial })
        yield* stops.arrived("line")
        // More than the mailbox holds.
        yield* jobs.submit(many(1_500, "line", Serial))
        yield* aWhile
        const last: Array<JobId> = []
        for (let payload = 1_500; payload < 1_520; payload++) {
          last.push(yield* jobs.submit({ type: "line", payload, queue: Serial }))
        }
        yield* stops.releaseAll
        yield* Effect.forEach(last, (id) => jobs.await(id), { concurrency: "unbounded" })
        assert.deepStrictEqual(starts, Array.from({ length: 1_520 }, (_, n) => n))
      }))

    it.effect("a job in its submitter's hand does not pass older ones that are just being read", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const starts: Array<unknown> = []
        yield* register("reading", (payload) => Effect.sync(() => starts.push(payload)))
        yield* jobs.await(yield* jobs.submit({ type: "reading", payload: -1, queue: Serial }))
        yield* aWhile
        yield* held.closeReading
        yield* jobs.submit(many(65, "reading", Serial))
        const last = yield* jobs.submit({ type: "reading", payload: 65, queue: Serial })
        yield* aWhile
        assert.deepStrictEqual(starts, [-1])
        yield* held.reading.open
        yield* jobs.await(last)
        assert.deepStrictEqual(starts, Array.from({ length: 67 }, (_, n) => n - 1))
      }))

    it.effect("of a batch with a large job between small ones all are found at once, and run in their order", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const starts: Array<unknown> = []
        yield* register("mixed", (payload) => Effect.sync(() => starts.push((payload as { readonly n: number }).n)))
        // Everything before is read.
        yield* jobs.await(yield* jobs.submit({ type: "mixed", payload: { n: -1 }, queue: Serial }))
        yield* aWhile
        const request = (n: number, size = 0) => ({
          type: "mixed",
          payload: { n, text: "x".repeat(size) },
          queue: Serial
        })
        yield* jobs.submit([request(0), request(1, 9_000), request(2)])
        yield* jobs.await(yield* jobs.submit(request(3)))
        assert.deepStrictEqual(starts, [-1, 0, 1, 2, 3])
      }))

    it.effect("submissions that expire, are due later, are large, or meet a live key are started as if they had been read", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        const stops = yield* makeStops
        const starts: Array<unknown> = []
        yield* register("kinds gate", () => stops.stop("kinds"))
        yield* register("kinds", (payload) => Effect.sync(() => starts.push(payload)))
        const gate = yield* jobs.submit({ type: "kinds gate", queue: Serial })
        yield* stops.arrived("kinds")
        const submit = (payload: unknown, options = {}) =>
          jobs.submit({ type: "kinds", payload, queue: Serial, ...options })
        const expired = yield* submit("expired", { expiresIn: 0 })
        const late = yield* submit("late", { delay: "1 day" })
        const past = yield* submit("past", { runAt: 0 })
        const large = yield* submit("x".repeat(20_000))
        const first = yield* submit("first", { dedupeKey: "key" })
        assert.strictEqual(yield* submit("second", { dedupeKey: "key" }), first)
        const keyed = yield* jobs.submit([
          { type: "kinds", payload: "third", dedupeKey: "key", queue: Serial },
          { type: "kinds", payload: "fourth", dedupeKey: "other key", queue: Serial },
          { type: "kinds", payload: "fifth", dedupeKey: "other key", queue: Serial }
        ])
        assert.strictEqual(keyed.jobIds[0], first)
        yield* stops.releaseAll
        yield* Effect.forEach([gate, past, large, first, ...keyed.jobIds], (id) => jobs.await(id))
        yield* untilState(expired, "expired")
        assert.strictEqual((yield* jobs.status(late)).state, "scheduled")
        yield* aWhile
        assert.deepStrictEqual(starts, ["past", "x".repeat(20_000), "first", "fourth"])
        yield* jobs.cancel(late)
      }))

    // ------------------------------------------------------------------------------------------------ ended, not written

    it.effect("cancelling a job whose handler has ended but whose outcome is not written yet says what it became; until then it is running", () =>
      Effect.gen(function*() {
        const jobs = yield* Jobs.Jobs
        let runs = 0
        const ended = yield* Deferred.make<void>()
        yield* register("ended", () => Deferred.succeed(ended, undefined))
        yield* held.close
        const before = held.seen.settlements
        const jobId = yield* jobs.submit({ type: "ended", queue: Four })
        yield* until(Effect.sync(() => held.seen.settlements > before))
        assert.strictEqual((yield* jobs.status(jobId)).state, "running")
        const cancelling = yield* Effect.forkScoped(failureOf(jobs.cancel(jobId)), { startImmediately: true })
        yield* aWhile
        assert.isUndefined(cancelling.pollUnsafe())
        yield* held.gate.open
        assert.deepInclude(yield* Fiber.join(cancelling), { _tag: "JobAlreadyFinal", jobState: "completed" })
        assert.strictEqual((yield* jobs.status(jobId)).state, "completed")

        // One that is to run again is cancelled, once that is written, and does not.
        yield* register("ended again", () =>
          Effect.suspend(() => {
            runs++
            return Effect.fail("again")
          }), { retry: RetryPolicy.fixed("1 day", { maxAttempts: 3 }) })
        yield* held.close
        const again = yield* jobs.submit({ type: "ended again", queue: Four })
        yield* until(Effect.sync(() => runs === 1))
        const cancelled = yield* Effect.forkScoped(jobs.cancel(again), { startImmediately: true })
        yield* aWhile
        yield* held.gate.open
        yield* Fiber.join(cancelled)
        const { attempts, state } = yield* jobs.status(again)
        assert.deepStrictEqual({ attempts, runs, state }, { attempts: 1, runs: 1, state: "cancelled" })
      }))

    it.effect("guarantee 10: an owner that ends waits, within its grace, until the outcomes of ended handlers are written", () =>
      Effect.gen(function*() {
        const { ids, scope } = yield* own(Four, 20_000, "leaving", 40)
        let runs = 0
        yield* held.close
        yield* register("leaving", () => Effect.sync(() => runs++))
        yield* until(Effect.sync(() => runs === 40))
        const leaving = yield* Effect.forkScoped(Scope.close(scope, Exit.void), { startImmediately: true })
        yield* aWhile
        assert.isUndefined(leaving.pollUnsafe())
        yield* held.gate.open
        yield* Fiber.join(leaving)
        for (const id of ids) assert.strictEqual(yield* stateOf(id), "completed")
        assert.strictEqual(runs, 40)
      }))
  })
}

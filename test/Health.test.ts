/**
 * What probes are told of a process: ready when it can be given work, live as long as a restart would not help.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import * as PgConnection from "@effect/sql-pg/PgConnection"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import * as Health from "../src/Health.ts"
import { type Signs, statusOf } from "../src/internal/healthState.ts"
import * as Server from "../src/internal/postgres/server.ts"
import * as Unserved from "../src/internal/unserved.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import * as Jobs from "../src/Jobs.ts"
import { noShortage } from "../src/JobStore.ts"
import * as Postgres from "../src/Postgres.ts"
import { databaseUrl, TestDatabase, TestServer } from "./utils/database.ts"
import { recordLog } from "./utils/logged.ts"
import { startProgram } from "./utils/programs.ts"
import { makeStops, until } from "./utils/runtime.ts"

/** A process of its own, as far as the database can tell. */
const processOf = <A, E, R>(url: string, runtime: Layer.Layer<A, E, R>) =>
  Layer.build(Layer.fresh(runtime.pipe(Layer.provide(Postgres.layer({ url })))))

const healthOf = (context: Context.Context<JobRuntime.Services>) => Context.get(context, Health.Health)

/** The first status that is so. */
const untilState = ({ changes }: Health.Health["Service"], state: Health.State) =>
  Effect.map(
    Stream.runCollect(Stream.takeUntil(changes, (status) => status.state === state)),
    (seen) => ({ seen: seen.map(({ state }) => state), last: seen.at(-1) })
  )

/** The first status with a reason that says so. */
const untilReason = ({ changes }: Health.Health["Service"], words: string) =>
  Effect.map(
    Stream.runCollect(Stream.takeUntil(changes, ({ reasons }) => reasons.some((reason) => reason.includes(words)))),
    (seen) => seen.at(-1)
  )

/** The runtime tells at length what it waits for; here that is what is meant to happen. */
const quiet = Effect.provideService(References.MinimumLogLevel, "None")

describe("Health", () => {
  it.live(
    "a worker starts, runs, and drains; one beside it stands by, ready too, and runs when the first has left",
    () =>
      Effect.gen(function*() {
        const url = yield* databaseUrl
        const worker = JobRuntime.layer({ gracePeriod: 0 })
        const scope = yield* Scope.make()
        const first = yield* Scope.provide(processOf(url, worker), scope)
        const early = yield* healthOf(first).status
        assert.deepInclude(early, { state: "starting", isReady: false, isLive: true })
        assert.isNotEmpty(early.reasons)
        const running = (yield* untilState(healthOf(first), "running")).last
        assert.deepStrictEqual(running, {
          state: "running",
          isReady: true,
          isLive: true,
          reasons: [],
          owned: 1,
          declared: 1
        })

        const second = yield* processOf(url, worker)
        const standby = (yield* untilState(healthOf(second), "standby")).last
        assert.deepInclude(standby, { isReady: true, isLive: true, owned: 0, declared: 1 })

        yield* Context.get(first, JobRuntime.Runner).drain
        assert.deepInclude(yield* healthOf(first).status, { state: "draining", isReady: false, isLive: true })
        yield* Scope.close(scope, Exit.void)
        yield* untilState(healthOf(second), "running")
      }).pipe(Effect.scoped, quiet, Effect.provide(TestDatabase.layerDatabase)),
    60_000
  )

  it.live(
    "without its database a process is in trouble and not ready, but live, and is ready again by itself; one that only submits too",
    () =>
      Effect.gen(function*() {
        const server = yield* TestServer
        const worker = healthOf(yield* processOf(server.url, JobRuntime.layer({ gracePeriod: 0 })))
        const client = healthOf(yield* processOf(server.url, JobRuntime.layerClient()))
        yield* untilState(worker, "running")
        const ready = (yield* untilState(client, "running")).last
        assert.deepInclude(ready, { isReady: true, owned: 0, declared: 1 })
        yield* server.stop("fast")
        for (const health of [worker, client]) {
          const troubled = (yield* untilState(health, "troubled")).last
          assert.deepInclude(troubled, { isReady: false, isLive: true })
          assert.include(troubled?.reasons[0], "database")
        }
        yield* server.start
        yield* untilState(client, "running")
        yield* untilState(worker, "running")
      }).pipe(Effect.scoped, quiet, Effect.provide(TestServer.layer)),
    60_000
  )
})

/** A worker whose handlers have a pool of this size, and a type of job that needs a connection of it. */
const working = Effect.fnUntraced(function*(url: string, maxConnections: number) {
  const database = Postgres.layer({ url, maxConnections, applicationName: "handlers" })
  const context = yield* Layer.build(
    Layer.fresh(JobRuntime.layer({ gracePeriod: 0 }).pipe(Layer.provideMerge(database)))
  )
  yield* JobHandlers.register("needs one", () => Effect.flatMap(SqlClient, (sql) => sql`select 1`)).pipe(
    Effect.provide(context)
  )
  const health = healthOf(context)
  yield* untilState(health, "running")
  return { health, jobs: Context.get(context, Jobs.Jobs), sql: Context.get(context, PgClient) }
})

describe("a worker whose handlers get no connection is in trouble and not ready, and is ready again by itself", () => {
  it.live(
    "where somebody keeps those of the pool",
    () =>
      Effect.gen(function*() {
        const stops = yield* makeStops
        const log = recordLog()
        const { health, jobs, sql } = yield* Effect.provide(working(yield* databaseUrl, 1), log.layer)
        yield* Effect.forkScoped(sql.withTransaction(Effect.andThen(sql`select 1`, stops.stop("keeps it"))))
        yield* stops.arrived("keeps it")
        const id = yield* jobs.submit({ type: "needs one" })
        const troubled = yield* untilReason(health, "waited for a connection")
        assert.deepInclude(troubled, { state: "troubled", isReady: false, isLive: true, owned: 1 })
        assert.match(String(troubled?.reasons), /Raise maxConnections.*lower the concurrency/)
        yield* until(Effect.sync(() => log.of("Handlers have waited for a connection").length > 0))
        yield* stops.releaseAll
        yield* jobs.await(id)
        assert.deepInclude(yield* health.status, { state: "running", isReady: true })
        yield* untilState(health, "running")
      }).pipe(Effect.scoped, Effect.provide(TestDatabase.layerDatabase)),
    60_000
  )

  it.live(
    "where the server has none left",
    () =>
      Effect.gen(function*() {
        const server = yield* TestServer
        const { health, jobs, sql } = yield* working(server.url, 2)
        yield* jobs.await(yield* jobs.submit({ type: "needs one" }))
        const crowd = yield* Scope.make()
        yield* PgConnection.make({ url: Redacted.make(server.url) }).pipe(
          Scope.provide(crowd),
          Effect.forever,
          Effect.flip
        )
        // The pool has one connection, and is refused a second.
        const keeping = yield* sql.reserve
        const id = yield* jobs.submit({ type: "needs one" })
        const troubled = yield* untilReason(health, "too many clients")
        assert.deepInclude(troubled, { state: "troubled", isReady: false, isLive: true, owned: 1 })
        assert.match(String(troubled?.reasons), /max_connections/)
        assert.strictEqual((yield* jobs.status(id)).attempts, 0)
        yield* keeping.executeUnprepared("select 1", [], undefined)
        yield* Scope.close(crowd, Exit.void)
        yield* jobs.await(id)
        assert.strictEqual((yield* jobs.status(id)).attempts, 1)
        yield* untilState(health, "running")
      }).pipe(Effect.scoped, quiet, Effect.provide(TestServer.layerWith({ max_connections: "30" }))),
    60_000
  )
})

/** A runner in this process, which looks so often that a test can wait for it: its health, and the warnings that it has logged. */
const runner = Effect.fnUntraced(function*(options: JobRuntime.ClusterOptions) {
  const { layer: log, lines } = recordLog()
  const runtime = JobRuntime.layerCluster({ host: "127.0.0.1", port: 0, gracePeriod: 0, ...options }).pipe(
    Layer.provideMerge(log),
    Layer.provideMerge(Layer.succeed(Unserved.LookEvery, "200 millis"))
  )
  const { context, jobs, stop } = yield* startProgram(runtime)
  const warnings = () => lines.flatMap(({ level, text }) => level === "Warn" ? [text] : [])
  return { health: healthOf(context), jobs, stop, warnings }
})

/** The first status that is as wanted. */
const untilSo = ({ changes }: Health.Health["Service"], isSo: (status: Health.Status) => boolean) =>
  Effect.map(Stream.runHead(Stream.filter(changes, isSo)), Option.getOrThrow)

describe("a runner counts the partitions of the groups that it hosts, and says whose jobs nobody runs", () => {
  const Pictures = JobQueue.make("pictures", { partitions: 4, group: "gpu" })
  const Letters = JobQueue.make("letters", { partitions: 4 })
  const queues = [Pictures, Letters]

  it.live(
    "a queue in a group without a runner: warned of once, until one has come and gone again",
    () =>
      Effect.gen(function*() {
        const { health, warnings } = yield* runner({ queues })
        const isUnhosted = ({ reasons }: Health.Status) => reasons.some((reason) => reason.includes(`group "gpu"`))
        const alone = yield* untilSo(health, (status) => status.owned === 5 && isUnhosted(status))
        assert.deepInclude(alone, { state: "running", isReady: true, declared: 5 })
        assert.match(alone.reasons.join(), /queue "pictures".*MILLRACE_RUNNER_GROUPS/)
        assert.lengthOf(warnings().filter((warning) => warning.includes(`group "gpu"`)), 1)

        const studio = yield* runner({ queues, groups: ["gpu"] })
        const painting = yield* untilSo(studio.health, ({ owned }) => owned === 4)
        assert.deepInclude(painting, { state: "running", isReady: true, declared: 4 })
        yield* untilSo(health, (status) => !isUnhosted(status))
        assert.deepStrictEqual((yield* health.status).reasons, [])

        yield* studio.stop
        yield* untilSo(health, isUnhosted)
        assert.lengthOf(warnings().filter((warning) => warning.includes(`group "gpu"`)), 2)
        assert.deepStrictEqual(studio.warnings().filter((warning) => warning.includes("hosts the group")), [])
      }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)),
    60_000
  )

  it.live(
    "a queue that it does not declare, once jobs wait in it; and groups that it alone has heard of",
    () =>
      Effect.gen(function*() {
        const stranger = yield* runner({ queues: [], groups: ["default", "gpuu"] })
        assert.match(stranger.warnings().join(), /hosts the group "gpuu"/)
        const client = yield* startProgram(JobRuntime.layerClient({ queues: [Letters] }))
        yield* client.jobs.submit({ type: "note", queue: Letters })
        const status = yield* untilSo(stranger.health, ({ reasons }) =>
          /queue "letters".*does not declare it.*MILLRACE_RUNNER_GROUPS/.test(reasons.join()))
        assert.deepInclude(status, { state: "running", isReady: true, owned: 1, declared: 1 })
        assert.lengthOf(
          stranger.warnings().filter((warning) =>
            warning.includes("letters")
          ),
          1
        )

        const lost = yield* runner({ queues, groups: ["gpuu"] })
        const useless = yield* untilSo(lost.health, ({ state }) => state === "running")
        assert.deepInclude(useless, { isReady: true, owned: 0, declared: 0 })
        assert.match(useless.reasons.join(), /hosts no group/)
      }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)),
    60_000
  )

  it.live(
    "others that do not reach it: it says so, and so does the runner that asks it; who has left is not told of",
    () =>
      Effect.gen(function*() {
        const declared = { queues: [Letters] }
        const one = yield* runner(declared)
        /** One that listens elsewhere than it says. */
        const lose = Effect.gen(function*() {
          const port = yield* Server.freePort
          const lost = yield* runner({ ...declared, port, listenPort: 0 })
          const at = `127.0.0.1:${port}`
          const status = yield* untilSo(lost.health, ({ reasons }) => reasons.some((reason) => reason.includes(at)))
          return { ...lost, at, status }
        })
        const lost = yield* lose
        assert.deepInclude(lost.status, { state: "running", isReady: true, owned: 0 })
        assert.match(lost.status.reasons.join(), /get no answer.*MILLRACE_RUNNER_HOST.*MILLRACE_RUNNER_TRANSPORT/)

        const leaver = yield* runner(declared)
        yield* untilSo(leaver.health, ({ owned }) => owned > 0)
        yield* leaver.stop
        // All are asked again.
        const next = yield* lose
        yield* untilSo(one.health, ({ owned }) => owned === 5)
        for (const { at, warnings } of [lost, next]) {
          assert.lengthOf(warnings().filter((warning) => warning.startsWith("Runners that ask")), 1)
          const told = [one, lost, next].flatMap(({ warnings }) => warnings().filter((warning) => warning.includes(at)))
          assert.isAtLeast(told.filter((warning) => warning.includes("does not answer")).length, 1)
        }
        for (const { warnings } of [one, lost, leaver, next]) {
          const told = warnings().filter((warning) => warning.includes("does not answer"))
          assert.deepStrictEqual(told.filter((warning) => ![lost, next].some(({ at }) => warning.includes(at))), [])
          assert.lengthOf(new Set(told), told.length)
        }
      }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)),
    60_000
  )

  it.live(
    "partitions that others own: one that has none of its own says so",
    () =>
      Effect.gen(function*() {
        const one = yield* runner({})
        yield* untilSo(one.health, ({ owned }) => owned === 1)
        const other = yield* runner({})
        const without = yield* Effect.raceFirst(
          untilSo(one.health, ({ reasons }) => reasons.length > 0),
          untilSo(other.health, ({ state, reasons }) => state === "running" && reasons.length > 0)
        )
        assert.deepInclude(without, { state: "running", isReady: true, owned: 0, declared: 1 })
        assert.deepStrictEqual(without.reasons, ["other runners own all of 1 partitions"])
      }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer)),
    60_000
  )
})

describe("what the signs of a process mean", () => {
  const signs: Signs = {
    kind: "single",
    isAnswering: true,
    isDraining: false,
    hasOwned: true,
    sinceStartMs: 60_000,
    sinceWatchMs: 1_000,
    owned: 2,
    declared: 2,
    isShared: true,
    unserved: [],
    runs: [],
    isStuck: false,
    shortage: noShortage
  }
  const unserved = ["no runner that is alive hosts the group"]
  const refused = { forMs: 5_000, because: "too many clients" }
  const cases: ReadonlyArray<readonly [string, Partial<Signs>, Health.State, boolean]> = [
    ["a worker that owns its queues", {}, "running", true],
    ["one that has not asked the database", { isAnswering: undefined }, "starting", false],
    ["one that has just begun", { owned: 0, hasOwned: false, sinceStartMs: 1_000 }, "starting", false],
    ["one whose database is away from the start", { isAnswering: false, owned: 0, hasOwned: false }, "troubled", false],
    ["one beside the owner", { owned: 0, hasOwned: false }, "standby", true],
    ["one that has lost its queues", { owned: 0, sinceStartMs: 1_000 }, "standby", true],
    ["one runner of many, with nothing to own", { kind: "cluster", owned: 0, hasOwned: false }, "running", true],
    ["a runner that owns a part", { kind: "cluster", owned: 1 }, "running", true],
    ["a process that only submits", { kind: "client", owned: 0, hasOwned: false, sinceStartMs: 0 }, "running", true],
    ["one whose handlers wait for connections", { shortage: { ...noShortage, waitedMs: 5_000 } }, "troubled", false],
    ["one whose handlers take turns", { shortage: { ...noShortage, waitedMs: 4_999 } }, "running", true],
    ["one that is refused further connections", { shortage: { ...noShortage, refused } }, "troubled", false],
    [
      "one that was refused a connection for a moment",
      { shortage: { ...noShortage, refused: { ...refused, forMs: 4_999 } } },
      "running",
      true
    ],
    [
      "a runner with nothing to own, beside others that wait",
      { kind: "cluster", owned: 0, shortage: { waitedMs: 60_000, refused } },
      "running",
      true
    ],
    ["a runner whose groups none of its queues is in", { kind: "cluster", owned: 0, declared: 0 }, "running", true],
    ["one that knows of jobs that nobody runs", { kind: "cluster", unserved }, "running", true],
    ["one that leaves while the database is away", { isDraining: true, isAnswering: false }, "draining", false]
  ]
  for (const [who, some, state, isReady] of cases) {
    it(`${who}: ${state}`, () => {
      const status = statusOf({ ...signs, ...some })
      assert.deepInclude(status, { state, isReady, isLive: true })
      assert.strictEqual(
        status.reasons.length === 0,
        state === "running" && status.owned + Number(some.kind === "client") > 0 && some.unserved === undefined
      )
    })
  }

  const reasonsOf = (some: Partial<Signs>) => statusOf({ ...signs, kind: "cluster", ...some }).reasons

  it("that other runners own all partitions is said only where others may own each of them", () => {
    assert.deepStrictEqual(reasonsOf({ owned: 0 }), ["other runners own all of 2 partitions"])
    assert.deepStrictEqual(reasonsOf({ owned: 0, isShared: false }), [
      "it owns none of 2 partitions yet: locks are being acquired"
    ])
    assert.match(reasonsOf({ owned: 0, declared: 0 }).join(), /MILLRACE_RUNNER_GROUPS/)
  })

  it("whose jobs nobody runs is told by one that works, beside what else there is; one that does not has other worries", () => {
    assert.deepStrictEqual(reasonsOf({ unserved }), unserved)
    assert.deepStrictEqual(reasonsOf({ owned: 0, unserved }), ["other runners own all of 2 partitions", ...unserved])
    assert.notIncludeMembers([...reasonsOf({ isAnswering: false, unserved })], unserved)
  })

  it("one whose own watch does not come round any more is not live, and so not ready either; nothing else makes it so", () => {
    assert.deepInclude(statusOf({ ...signs, sinceWatchMs: 30_000 }), {
      state: "running",
      isReady: false,
      isLive: false
    })
    assert.isTrue(statusOf({ ...signs, isAnswering: false, sinceWatchMs: 29_999 }).isLive)
  })
})

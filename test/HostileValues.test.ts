/**
 * The end of an attempt, for values that throw at every touch, do not end, or are huge: thrown, failed with, or returned. Whatever the value, the
 * attempt counts, the job ends, and its queue goes on.
 */
import { assert, layer } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Schema from "effect/Schema"
import { SqlClient } from "effect/sql/SqlClient"
import * as Tracer from "effect/Tracer"
import { inspect } from "node:util"
import * as Job from "../src/Job.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import * as JobQueue from "../src/JobQueue.ts"
import * as Jobs from "../src/Jobs.ts"
import * as RetryPolicy from "../src/RetryPolicy.ts"
import { fuzzed, type Hostile, knownHostile } from "./utils/hostile.ts"
import { layerRuntime } from "./utils/runtime.ts"

const Work = JobQueue.make("work", { concurrency: 8 })

const retry = RetryPolicy.fixed(1, { maxAttempts: 2 })

/** A trace and a log that look at all there is, as exporters do. */
const inspecting = Layer.merge(
  Layer.succeed(
    Tracer.Tracer,
    Tracer.make({
      span: (options) => {
        const span = new Tracer.NativeSpan(options)
        const end = span.end.bind(span)
        span.end = (at, exit) => {
          if (Exit.isFailure(exit)) Cause.prettyErrors(exit.cause).forEach((error) => inspect(error))
          end(at, exit)
        }
        return span
      }
    })
  ),
  Logger.layer([Logger.make<unknown, void>(({ cause, message }) => {
    inspect(message)
    Cause.pretty(cause)
  })])
)

/** How a handler ends with a value. */
const ways: Readonly<Record<string, (value: unknown) => unknown>> = {
  "thrown": (value) => {
    throw value
  },
  "died of": (value) => Effect.die(value),
  "failed with": (value) => Effect.fail(value),
  "returned": (value) => Effect.succeed(value),
  "returned instead of an Effect": (value) => value
}

/** Definitions take what they are given: then it is the schema that looks at the value. */
const schemas = {
  any: Schema.Any,
  json: Schema.Json,
  tagged: Schema.Struct({ _tag: Schema.String, message: Schema.String })
}

const values: ReadonlyArray<Hostile> = [...knownHostile, ...fuzzed(20_261_201, 60)]

const isTransaction = (transaction: JobHandlers.Transaction) => transaction !== "none"

/** Runs a job for each value and way, and says what became of each. */
const outcomes = Effect.fnUntraced(function*(
  transaction: JobHandlers.Transaction,
  choose: (index: number) => boolean = () => true
) {
  const jobs = yield* Jobs.Jobs
  const runs = new Map<string, number>()
  /** Each writes first, so that there is a transaction to end. */
  const handle = (payload: unknown) => {
    const key = String(payload)
    const [way = "", index = ""] = key.split("/")
    runs.set(key, (runs.get(key) ?? 0) + 1)
    const value = values[Number(index)]?.make()
    const end = ways[way]
    const ended = () => end?.(value) as Effect.Effect<never>
    return way === "returned instead of an Effect" || way === "thrown" || !isTransaction(transaction)
      ? ended()
      : Effect.flatMap(SqlClient, (sql) => Effect.andThen(sql`select 1`, Effect.suspend(ended)))
  }
  const types: Array<string> = [`untyped ${transaction}`]
  yield* JobHandlers.register(`untyped ${transaction}`, handle, { retry, transaction })
  yield* JobHandlers.register(`good ${transaction}`, () => Effect.succeed("good"), { retry })
  for (const [name, schema] of Object.entries(schemas)) {
    const type = `${name} ${transaction}`
    types.push(type)
    class Typed extends Job.make(type, {
      payload: Schema.String,
      success: schema,
      error: schema,
      queue: Work,
      retry,
      transaction
    }) {}
    yield* Layer.build(Typed.toLayer<SqlClient>(handle as never))
  }
  const cases = types.flatMap((type) =>
    Object.keys(ways).flatMap((way) =>
      values.flatMap(({ name }, index) =>
        choose(index) && (type.startsWith("untyped") || index % 3 === 0)
          ? [{ type, way, name, payload: `${way}/${index}/${type}` }]
          : []
      )
    )
  )
  const { jobIds } = yield* jobs.submit(cases.map(({ payload, type }) => ({ type, queue: Work, payload })))
  const ended = yield* Effect.forEach(jobIds, (jobId, index) =>
    Effect.gen(function*() {
      yield* Effect.exit(jobs.await(jobId))
      const { attempts, failure, state } = yield* jobs.status(jobId)
      const { name, payload, type, way } = cases[index] ?? assert.fail("no case")
      return { what: `${name}, ${way}, ${type}`, attempts, failure, state, runs: runs.get(payload) ?? 0 }
    }), { concurrency: 100 })
  const good = yield* jobs.submit({ type: `good ${transaction}`, queue: Work })
  assert.strictEqual(yield* jobs.await(good), "good")
  return ended
}, Effect.scoped)

const check = (ended: Effect.Success<ReturnType<typeof outcomes>>) => {
  for (const { attempts, failure, runs, state, what } of ended) {
    assert.include(["failed", "completed"], state, what)
    assert.strictEqual(runs, attempts, what)
    assert.isAtMost(runs, 2, what)
    if (!/, returned,/.test(what)) assert.strictEqual(state, "failed", what)
    if (state === "completed") continue
    assert.ok(failure, what)
    assert.isAtMost(JSON.stringify(failure).length, 1_100_000, what)
    assert.isAtMost(failure.message.length, 8_000, what)
    assert.isAtMost(failure.stack?.length ?? 0, 8_000, what)
    assert.isAtMost(failure.tag.length, 200, what)
    assert.isTrue(`${failure.tag}${failure.message}${failure.stack ?? ""}`.isWellFormed(), what)
    if (failure.class === "System") assert.strictEqual(runs, 2, what)
  }
}

layer(Layer.provideMerge(layerRuntime({ queues: [Work] }), inspecting), {
  excludeTestServices: true,
  timeout: "120 seconds"
})("an attempt that ends with a hostile value", (it) => {
  it.effect("counts, and its queue goes on, in a transaction of its own", () =>
    Effect.gen(function*() {
      const ended = yield* outcomes("job")
      check(ended)
      const of = (what: string) => ended.find((one) => one.what === what) ?? assert.fail(what)
      assert.deepInclude(of("a revoked Proxy, thrown, untyped job").failure, {
        class: "System",
        tag: "UninspectableError"
      })
      assert.strictEqual(of("a revoked Proxy, returned instead of an Effect, any job").failure?.tag, "TypeError")
      assert.strictEqual(of("an endless array, returned, json job").failure?.tag, "ResultTooLarge")
      assert.strictEqual(of("a text of 50 MB, returned, untyped job").failure?.tag, "ResultTooLarge")
      assert.strictEqual(of("null, returned, untyped job").state, "completed")
    }), { timeout: 120_000 })

  it.effect("counts, and its queue goes on, without a transaction", () => Effect.map(outcomes("none"), check), {
    timeout: 120_000
  })

  it.effect(
    "counts, and its queue goes on, in a transaction that others share",
    () => Effect.map(outcomes("grouped", (index) => index % 4 === 0), check),
    { timeout: 120_000 }
  )
})

/**
 * Effect's own lines about the cluster: what only repeats what is told already is not shown, and nothing else is lost.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import { PersistenceError } from "effect/cluster/ClusterError"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as Socket from "effect/socket/Socket"
import * as ClusterLog from "../../src/internal/clusterLog.ts"
import * as Outage from "../../src/internal/outage.ts"
import * as Standstill from "../../src/internal/time/standstill.ts"
import { StoreError } from "../../src/JobStore.ts"
import { recordLog } from "../utils/logged.ts"

const refused = new StoreError({
  reason: "Unavailable",
  operation: "refresh",
  cause: new Error("connect ECONNREFUSED")
})
const lost = Cause.fail(new PersistenceError({ cause: refused }))
const mistake = Cause.fail(new PersistenceError({ cause: new Error("a mistake") }))

/** A log behind that of the cluster. */
const make = () => {
  const log = recordLog()
  const time = { now: 0 }
  const standstill = Standstill.make(100, () => time.now)
  const outage = Outage.make(() => time.now)
  const layer = ClusterLog.layer(standstill).pipe(
    Layer.provide(Layer.succeed(Outage.Outage, outage)),
    Layer.provide(log.layer)
  )
  return { ...log, time, standstill, outage, inside: Effect.provide(layer) }
}

/** What Effect says of an outage, and of a handler that does not end. */
const unhealthy = (cause: Cause.Cause<unknown>) => Effect.logError("Shard lock storage is unhealthy", cause)
const recovered = Effect.logInfo("Shard lock storage has recovered")
const pending = Effect.logWarning(
  "Forced shard release is still pending; reacquisition is blocked until release completes"
)
const broken = (cause: unknown) =>
  Effect.logError(
    "Unhandled error in SocketServer",
    Cause.fail(new Socket.SocketError({ reason: new Socket.SocketReadError({ cause }) }))
  )

describe("what the cluster logs", () => {
  it.effect("is not shown while an outage is told of that is its cause, nor right after it", () => {
    const { inside, lines, outage } = make()
    return Effect.gen(function*() {
      yield* Effect.provideService(outage.failed("reading", refused), References.MinimumLogLevel, "None")
      for (const say of [unhealthy(lost), unhealthy(lost), recovered]) yield* say
      yield* Effect.provideService(outage.worked("reading"), References.MinimumLogLevel, "None")
      yield* pending
      assert.deepStrictEqual(lines, [])
    }).pipe(inside)
  })

  it.effect("is shown with its cause when the outage is not told of, or when the cause is another one", () => {
    const { inside, lines, outage } = make()
    return Effect.gen(function*() {
      yield* unhealthy(lost)
      yield* recovered
      yield* pending
      yield* Effect.provideService(outage.failed("reading", refused), References.MinimumLogLevel, "None")
      yield* unhealthy(mistake)
      yield* recovered
      yield* Effect.logError("BUG: something new", lost)
      assert.deepStrictEqual(lines.map(({ hasStack, level }) => [level, hasStack]), [
        ["Error", true],
        ["Info", false],
        ["Warn", false],
        ["Error", true],
        ["Info", false],
        ["Error", true]
      ])
    }).pipe(inside)
  })

  it.effect("of connections to other runners is shown where they did not simply end", () => {
    const { inside, lines } = make()
    return Effect.gen(function*() {
      yield* broken(Object.assign(new Error("read ECONNRESET"), { code: "ECONNRESET" }))
      assert.deepStrictEqual(lines, [])
      yield* broken(new Error("what is this"))
      assert.strictEqual(lines.length, 1)
    }).pipe(inside)
  })

  it.effect("of a process that wakes up is not shown, also before it has noticed that it slept", () => {
    const { inside, lines, standstill, time } = make()
    return Effect.gen(function*() {
      const overdue = unhealthy(Cause.fail(new Cause.TimeoutError()))
      time.now = 20_000
      yield* overdue
      assert.strictEqual(standstill.tick(), 19_900)
      time.now = 20_100
      assert.strictEqual(standstill.tick(), 0)
      yield* overdue
      assert.deepStrictEqual(lines, [])
      time.now = 40_000
      for (let tick = 0; tick < 100; tick++) {
        time.now += 100
        standstill.tick()
      }
      yield* overdue
      assert.strictEqual(lines.length, 1)
    }).pipe(inside)
  })

  it.effect("is all there, as Debug, for whoever wants to see that", () => {
    const { inside, lines, outage } = make()
    return Effect.gen(function*() {
      yield* Effect.provideService(outage.failed("reading", refused), References.MinimumLogLevel, "None")
      yield* unhealthy(lost)
      assert.deepStrictEqual(lines.map(({ hasStack, level, text }) => [level, text, hasStack]), [
        ["Debug", "Shard lock storage is unhealthy", true]
      ])
    }).pipe(inside, Effect.provideService(References.MinimumLogLevel, "Debug"))
  })
})

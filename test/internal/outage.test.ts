/**
 * What is told of an outage: once when it begins, seldom while it lasts, once when it is over; and everything that nobody has foreseen.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import { PersistenceError } from "effect/cluster/ClusterError"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as Outage from "../../src/internal/outage.ts"
import { unanswered } from "../../src/internal/sql/unanswered.ts"
import { StoreError } from "../../src/JobStore.ts"
import { brokenLog, recordLog } from "../utils/logged.ts"

const refused = new StoreError({ reason: "Unavailable", operation: "intake", cause: new Error("connect ECONNREFUSED") })
const unknown = (message: string) =>
  new StoreError({ reason: "Refused", operation: "intake", cause: new Error(message) })

/** An outage by the test's clock. */
const make = () => {
  const log = recordLog()
  const time = { now: 0 }
  return { ...log, time, outage: Outage.make(() => time.now), logged: Effect.provide(log.layer) }
}

describe("of a database that is away", () => {
  it.effect("one line tells that it is waited for and why, and one that it is back, however many try", () => {
    const { lines, logged, outage, time } = make()
    return Effect.gen(function*() {
      for (time.now = 0; time.now < 8_000; time.now += 500) {
        for (const what of ["reading", "listening", "keeping"]) yield* outage.failed(what, refused)
      }
      for (const what of ["listening", "keeping", "another", "reading", "reading"]) yield* outage.worked(what)
      assert.deepStrictEqual(lines.map(({ hasStack, level, text }) => [level, text, hasStack]), [
        ["Warn", "reading: waiting for the database (connect ECONNREFUSED)", false],
        ["Info", "The database answers again, after 8s", false]
      ])
    }).pipe(logged)
  })

  it.effect("every half minute another line tells that it still is, and since when", () => {
    const { lines, logged, outage, time } = make()
    return Effect.gen(function*() {
      for (time.now = 0; time.now <= 65_000; time.now += 500) yield* outage.failed("reading", refused)
      assert.deepStrictEqual(lines.map(({ text }) => text.replace(/ \(.*/, "")), [
        "reading: waiting for the database",
        "reading: waiting for the database, for 30s",
        "reading: waiting for the database, for 1m"
      ])
    }).pipe(logged)
  })

  it.effect("it is not over while anything still fails, and is when that is not tried any more", () => {
    const { logged, of, outage } = make()
    return Effect.gen(function*() {
      const scope = yield* Scope.make()
      const partition = yield* outage.within(scope, "work/1")
      yield* partition.failed("reading", refused)
      yield* outage.failed("listening", refused)
      yield* outage.worked("listening")
      assert.deepStrictEqual(of("answers again"), [])
      assert.isTrue(outage.isTold())
      yield* Scope.close(scope, Exit.void)
      yield* partition.failed("reading", refused)
      yield* outage.worked("listening")
      assert.strictEqual(of("answers again").length, 1)
      assert.deepStrictEqual(of("waiting for"), ["reading of work/1: waiting for the database (connect ECONNREFUSED)"])
    }).pipe(logged)
  })

  it.effect("that comes and goes every second not every time is told of", () => {
    const { logged, of, outage, time } = make()
    return Effect.gen(function*() {
      for (time.now = 0; time.now < 25_000; time.now += 1_000) {
        yield* outage.failed("listening", refused)
        yield* outage.worked("listening")
      }
      assert.strictEqual(of("waiting for the database").length, 3)
      assert.strictEqual(of("answers again").length, 3)
    }).pipe(logged)
  })

  it.effect("goes on whatever the logger does: one that fails keeps nobody from trying again", () =>
    Effect.gen(function*() {
      const outage = Outage.make()
      yield* outage.failed("reading", refused)
      yield* outage.worked("reading")
      assert.isTrue(outage.isTold())
    }).pipe(Effect.provide(brokenLog)))

  it.effect("is told of in nobody's name: whoever met it first is not the only one", () => {
    const { lines, logged, outage } = make()
    return outage.failed("reading", refused).pipe(
      Effect.annotateLogs("queue", "work"),
      Effect.andThen(Effect.sync(() => assert.deepStrictEqual(lines[0]?.annotations, {}))),
      logged
    )
  })
})

describe("of a question that was given up", () => {
  const givenUp = new PersistenceError({ cause: Cause.squash(Cause.interrupt()) })

  it.effect("nothing is told: who gave it up says why", () => {
    const { lines, logged, outage } = make()
    return Effect.gen(function*() {
      yield* outage.failed("keeping", givenUp)
      yield* outage.failed("keeping", new PersistenceError({ cause: Cause.interrupt() }))
      yield* outage.worked("keeping")
      assert.deepStrictEqual(lines, [])
    }).pipe(logged)
  })

  it.effect("nothing more is told where an outage is told of; that one lasts for as long as it is asked again", () => {
    const { lines, logged, outage, time } = make()
    return Effect.gen(function*() {
      yield* outage.failed("keeping", refused)
      yield* outage.failed("reading", givenUp)
      time.now = 2_000
      yield* outage.worked("keeping")
      assert.strictEqual(lines.length, 1)
      yield* outage.worked("reading")
      assert.deepStrictEqual(lines.map(({ text }) => text), [
        "keeping: waiting for the database (connect ECONNREFUSED)",
        "The database answers again, after 2s"
      ])
    }).pipe(logged)
  })
})

describe("of what nobody has foreseen", () => {
  it.effect("each is shown with all that is known of it, during an outage too, and not again for half a minute", () => {
    const { lines, logged, outage, time } = make()
    return Effect.gen(function*() {
      yield* outage.failed("listening", refused)
      for (time.now = 0; time.now < 29_000; time.now += 500) {
        yield* outage.failed("reading", unknown("no such column"))
        yield* outage.failed("writing", unknown("division by zero"))
      }
      assert.deepStrictEqual(lines.slice(1).map(({ hasStack, text }) => [text, hasStack]), [
        ["reading: trying again", true],
        ["writing: trying again", true]
      ])
    }).pipe(logged)
  })

  it.effect("its end is not taken for the database's", () => {
    const { lines, logged, outage } = make()
    return Effect.gen(function*() {
      yield* outage.failed("reading", unknown("no such column"))
      yield* outage.worked("reading")
      assert.deepStrictEqual(lines.map(({ text }) => text), [
        "reading: trying again",
        "reading: works again, after less than 100ms"
      ])
    }).pipe(logged)
  })
})

describe("why the database did not answer", () => {
  it("is found however it is wrapped, and is not claimed of anything else", () => {
    const addresses = Object.assign(new AggregateError([]), { code: "ECONNREFUSED" })
    assert.strictEqual(unanswered(new PersistenceError({ cause: refused })), "connect ECONNREFUSED")
    assert.strictEqual(
      unanswered(Cause.die(new PersistenceError({ cause: new Cause.TimeoutError() }))),
      "no answer in time"
    )
    assert.strictEqual(
      unanswered(new StoreError({ reason: "Unavailable", operation: "x", cause: addresses })),
      "ECONNREFUSED"
    )
    assert.isUndefined(unanswered(new PersistenceError({ cause: new Error("a mistake") })))
    assert.isUndefined(unanswered(unknown("no such column")))
  })
})

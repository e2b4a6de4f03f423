/**
 * What is known of those who want a session of a pool: how long they have waited, and for how long there have been refusals.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Pool from "effect/Pool"
import { ConnectionError, SqlError } from "effect/sql/SqlError"
import { Lending, watched } from "../../src/internal/postgres/lending.ts"
import { noShortage } from "../../src/JobStore.ts"

const make = () => {
  let now = 1_000
  return { lending: new Lending(() => now), pass: (ms: number) => void (now += ms) }
}

const refusal = Exit.fail(
  new SqlError({ reason: new ConnectionError({ cause: new Error("sorry, too many clients already") }) })
)

/** One is refused. */
const refuse = (lending: Lending) => lending.ended(lending.begin(), refusal)

describe("the account of a pool", () => {
  it("says how long the one has waited that has waited longest, and nothing once all have got one or given up", () => {
    const { lending, pass } = make()
    const first = lending.begin()
    pass(300)
    const second = lending.begin()
    pass(200)
    assert.deepStrictEqual(lending.shortage, { ...noShortage, waitedMs: 500 })
    lending.served(first)
    assert.deepStrictEqual(lending.shortage, { ...noShortage, waitedMs: 200 })
    lending.ended(second, Exit.interrupt())
    assert.deepStrictEqual(lending.shortage, noShortage)
  })

  it("says for how long there have been refusals, up to the last one, until there were none for a while", () => {
    const { lending, pass } = make()
    refuse(lending)
    pass(4_000)
    const because = "sorry, too many clients already"
    // One alone may have been bad luck, however long ago it was.
    assert.deepStrictEqual(lending.shortage, { ...noShortage, refused: { forMs: 0, because } })
    refuse(lending)
    pass(2_000)
    // Others got one of those that are there.
    lending.served(lending.begin())
    assert.deepStrictEqual(lending.shortage, { ...noShortage, refused: { forMs: 4_000, because } })
    pass(10_001)
    assert.deepStrictEqual(lending.shortage, noShortage)
    refuse(lending)
    assert.deepStrictEqual(lending.shortage, { ...noShortage, refused: { forMs: 0, because } })
  })

  it("takes what fails later than that for no refusal", () => {
    const { lending } = make()
    const wait = lending.begin()
    lending.served(wait)
    lending.ended(wait, refusal)
    assert.deepStrictEqual(lending.shortage, noShortage)
  })

  it.live("is kept of whoever asks the pool, whichever way", () =>
    Effect.gen(function*() {
      const { lending, pass } = make()
      const pool = yield* Pool.make({ acquire: Effect.succeed("session"), size: 1 })
      const sessions = watched({ get: Pool.get(pool), reserve: Pool.get(pool), use: (f) => Pool.use(pool, f) }, lending)
      for (const ask of [sessions.get, sessions.reserve, sessions.use(Effect.succeed)]) {
        const waiting = yield* Effect.scoped(Effect.gen(function*() {
          yield* sessions.get
          const waiting = yield* Effect.forkDetach(Effect.scoped(ask), { startImmediately: true })
          pass(50)
          assert.strictEqual(lending.shortage.waitedMs, 50)
          return waiting
        }))
        yield* Fiber.join(waiting)
        assert.deepStrictEqual(lending.shortage, noShortage)
      }
      yield* sessions.use(() => {
        pass(50)
        return Effect.sync(() => assert.deepStrictEqual(lending.shortage, noShortage))
      })
    }).pipe(Effect.scoped))
})

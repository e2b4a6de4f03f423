/**
 * What is told of partitions that come and go: a rebalance reads otherwise than the end of the process.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Moves from "../../src/internal/moves.ts"
import { brokenLog, recordLog } from "../utils/logged.ts"
import { until } from "../utils/runtime.ts"

const member = (entity: string, running = 0): Moves.Member => ({ entity, running: () => running })

/** In a runtime of a cluster, with its log. */
const make = Effect.fnUntraced(function*(isClustered = true) {
  const log = recordLog()
  const moves = yield* Effect.provide(Moves.make({ graceMs: 25_000, isClustered }), log.layer)
  return { ...log, moves }
})

const told = () => true
const notTold = () => false

describe("partitions that move", () => {
  it.live("together are told of together, with what became of their jobs, after those that come", () =>
    Effect.gen(function*() {
      const { lines, moves } = yield* make()
      const [two, twelve] = [member("work/2"), member("work/12")]
      yield* moves.taken(twelve)
      yield* moves.taken(two)
      yield* moves.left(member("work/7"), { ended: 2, interrupted: 1 })
      yield* moves.left(member("work/3"), { ended: 0, interrupted: 0 })
      yield* until(Effect.sync(() => lines.length === 2))
      assert.deepStrictEqual(lines.map(({ text }) => text), [
        "Taken over: work/2, work/12",
        "Moved to other runners: work/3, work/7; 2 running jobs ended, 1 was interrupted and runs again there"
      ])
    }).pipe(Effect.scoped))

  it.live("away again as soon as they have come are no take-over, and no move but for the jobs that ran meanwhile", () =>
    Effect.gen(function*() {
      const { lines, moves } = yield* make()
      const [one, two, three] = [member("work/1"), member("work/2"), member("work/3")]
      yield* Effect.forEach([one, two, three], moves.taken)
      yield* moves.left(one, { ended: 0, interrupted: 0 })
      yield* moves.left(two, { ended: 1, interrupted: 0 })
      yield* until(Effect.sync(() => lines.length === 2))
      assert.deepStrictEqual(lines.map(({ text }) => text), [
        "Taken over: work/3",
        "Moved to other runners: work/2; 1 running job ended"
      ])
    }).pipe(Effect.scoped))
})

describe("a process that leaves", () => {
  it.live("says so at once when it was told to, and in the end what became of its jobs; its partitions are no moves", () =>
    Effect.gen(function*() {
      const { layer, lines, moves } = yield* make()
      const [one, two] = [member("work/1", 3), member("work/2", 1)]
      yield* moves.taken(one)
      yield* moves.taken(two)
      const end = Effect.gen(function*() {
        assert.isTrue(moves.isLeaving())
        assert.strictEqual(lines.at(-1)?.text.startsWith("Draining"), true)
        yield* moves.left(one, { ended: 2, interrupted: 1 })
        yield* moves.left(two, { ended: 0, interrupted: 1 })
      })
      yield* Effect.provide(moves.leaving(end, told), layer)
      assert.deepStrictEqual(lines.map(({ text }) => text), [
        "Taken over: work/1, work/2",
        "Draining: this process leaves and starts nothing more; 4 jobs may run on for up to 25s",
        "Drained in less than 100ms: 2 running jobs ended, 2 were interrupted and run again elsewhere"
      ])
    }).pipe(Effect.scoped))

  it.live("counts among those that ended what did so before its partition began to", () =>
    Effect.gen(function*() {
      const { layer, lines, moves } = yield* make(false)
      const one = member("work/1", 3)
      yield* moves.taken(one)
      yield* Effect.provide(moves.leaving(moves.left(one, { ended: 0, interrupted: 1 }), told), layer)
      assert.match(lines.at(-1)?.text ?? "", /: 2 running jobs ended, 1 was interrupted/)
    }).pipe(Effect.scoped))

  it.live("ends what it has, whatever the logger does", () =>
    Effect.gen(function*() {
      const moves = yield* Moves.make({ graceMs: 0, isClustered: true })
      yield* moves.taken(member("work/1"))
      let hasEnded = false
      yield* moves.leaving(
        Effect.sync(() => {
          hasEnded = true
        }),
        told
      )
      assert.isTrue(hasEnded)
    }).pipe(Effect.scoped, Effect.provide(brokenLog)))

  it.live("by itself, with nothing under way, says nothing; of interrupted jobs it does", () =>
    Effect.gen(function*() {
      const quiet = yield* make(false)
      yield* Effect.provide(quiet.moves.leaving(Effect.void, notTold), quiet.layer)
      assert.deepStrictEqual(quiet.lines, [])
      const { layer, lines, moves } = yield* make(false)
      const end = moves.left(member("work/0", 1), { ended: 0, interrupted: 1 })
      yield* Effect.provide(moves.leaving(end, notTold), layer)
      assert.deepStrictEqual(lines.map(({ text }) => text), [
        "Drained in less than 100ms: 0 running jobs ended, 1 was interrupted and runs again where it is owned next"
      ])
    }).pipe(Effect.scoped))
})

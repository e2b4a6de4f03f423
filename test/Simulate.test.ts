/**
 * The simulation of clusters: with a fixed seed tells the same story each time.
 */
import { assert, describe, it } from "@effect/vitest"
import { dice } from "../scripts/chaos/Seed.ts"
import { type Fault, simulate } from "../scripts/simulate/Cluster.ts"
import { load } from "../scripts/simulate/tables.ts"

const story = (fault?: Fault) =>
  simulate(
    {
      dice: dice(4, "test"),
      runners: 4,
      partitions: 16,
      concurrency: 160,
      rate: 400,
      handlerMs: 50,
      nodeMicros: 300,
      forMs: 20_000
    },
    fault === undefined ? [] : [{ at: 5_000, fault, runner: fault === "join" ? 4 : 1 }]
  )

const longest = ({ starts }: ReturnType<typeof story>) => Math.max(...starts.map(({ waited }) => waited))

describe("the simulation", () => {
  it("tells the same story with the same seed, and loses no job in any", () => {
    assert.deepStrictEqual(story("kill"), story("kill"))

    const quiet = story()
    assert.deepStrictEqual([quiet.backlog, quiet.crashed, quiet.stalls.length], [0, 0, 0])
    assert.isBelow(longest(quiet), 500)

    for (const fault of ["kill", "freeze"] as const) {
      const { backlog, crashed, stalls } = story(fault)
      assert.strictEqual(backlog, 0)
      assert.isAbove(crashed, 0)
      assert.isAbove(Math.max(...stalls), 500)
      assert.isBelow(Math.max(...stalls), 10_000)
    }

    for (const fault of ["stop", "join"] as const) {
      const { backlog, crashed, stalls } = story(fault)
      assert.deepStrictEqual([backlog, crashed], [0, 0])
      assert.isAbove(stalls.length, 0)
      assert.isBelow(Math.max(...stalls), 2_500)
    }
  })

  it("reckons what a thousand million jobs a day cost", () => {
    const { databaseCores, finishedGb, peakRate } = load(1e9, "own transaction", 3)
    assert.strictEqual(Math.round(peakRate), 34_722)
    assert.strictEqual(Math.round(databaseCores), 24)
    assert.strictEqual(Math.round(finishedGb), 4_431)
  })
})

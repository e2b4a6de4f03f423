/**
 * Who is told of as not answering: not who has left, and nobody again and again.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Runner from "effect/cluster/Runner"
import * as RunnerAddress from "effect/cluster/RunnerAddress"
import { RunnerStorage } from "effect/cluster/RunnerStorage"
import * as ShardingConfig from "effect/cluster/ShardingConfig"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Unanswering from "../../src/internal/unanswering.ts"
import { recordLog } from "../utils/logged.ts"

const addressOf = (port: number) => RunnerAddress.make("host", port)

/** The runner at port 1 checks others: `ask` says which of its three questions has an answer, if any. */
const checking = Effect.gen(function*() {
  const log = recordLog()
  const listed = new Set([1, 2, 3])
  let reads = 0
  const config = Layer.succeed(ShardingConfig.ShardingConfig, {
    ...ShardingConfig.defaults,
    runnerAddress: Option.some(addressOf(1))
  })
  const getRunners = Effect.sync(() => {
    reads++
    return Array.from(listed, (port): [Runner.Runner, boolean] => [
      Runner.make({ address: addressOf(port), groups: ["a00"], weight: 1 }),
      true
    ])
  })
  const storage = Layer.mock(RunnerStorage, { getRunners })
  const unanswering = yield* Unanswering.make("http").pipe(Effect.provide([config, storage]))
  const ask = (port: number, answeredAt = Infinity) =>
    Effect.gen(function*() {
      const check = unanswering.ask(addressOf(port))
      for (let question = 1; question <= 3 && question < answeredAt; question++) yield* check.failed
      yield* check.over(answeredAt <= 3)
    }).pipe(Effect.annotateLogs("fiber", "Runner health check"), Effect.provide(log.layer))
  return { ask, check: (port: number) => unanswering.ask(addressOf(port)), listed, log, reads: () => reads }
})

describe("a runner that does not answer", () => {
  it.effect("is named once, with what to look at, and again only when it has answered in between", () =>
    Effect.gen(function*() {
      const { ask, log, reads } = yield* checking
      yield* ask(2)
      yield* ask(2)
      assert.deepStrictEqual(log.lines.map(({ annotations, level }) => [level, annotations]), [["Warn", {}]])
      assert.match(log.of("host:2")[0]!, /does not answer.*MILLRACE_RUNNER_HOST.*TRANSPORT; here http/)
      assert.strictEqual(reads(), 1)
      yield* ask(3)
      assert.lengthOf(log.lines, 2)
      yield* ask(2, 2)
      assert.lengthOf(log.lines, 2)
      yield* ask(2)
      assert.lengthOf(log.of("host:2"), 2)
    }))

  it.effect("that has left is not told of; one that was on the list when it failed is, though its silence has ended that since", () =>
    Effect.gen(function*() {
      const { ask, check, listed, log } = yield* checking
      listed.delete(2)
      yield* ask(2)
      assert.lengthOf(log.lines, 0)
      const { failed, over } = check(3)
      yield* failed
      listed.delete(3)
      yield* Effect.andThen(failed, over(false)).pipe(Effect.provide(log.layer))
      assert.lengthOf(log.of("host:3"), 1)
    }))

  it.effect("at first, and does then, is not told of", () =>
    Effect.gen(function*() {
      const { ask, log } = yield* checking
      yield* ask(2, 3)
      assert.lengthOf(log.lines, 0)
    }))

  it.effect("is told of anew when another has come to its address", () =>
    Effect.gen(function*() {
      const { ask, listed, log } = yield* checking
      yield* ask(2)
      listed.delete(2)
      yield* ask(3)
      listed.add(2)
      yield* ask(2)
      assert.lengthOf(log.of("host:2"), 2)
    }))

  it.effect("to itself says so", () =>
    Effect.gen(function*() {
      const { ask, log } = yield* checking
      yield* ask(1)
      assert.lengthOf(log.of("This runner does not answer itself at host:1"), 1)
    }))
})

/**
 * Which handlers do not end, as the runtime sees it, by a clock of the test's own.
 */
import { assert, describe, it } from "@effect/vitest"
import * as RunWatch from "../../src/internal/runWatch.ts"
import { made } from "../../src/JobId.ts"

const second = 1_000
const minute = 60 * second
const hour = 60 * minute

const makeWatch = () => {
  const clock = { now: 0 }
  const watch = RunWatch.make(() => clock.now)
  const runs: Array<{
    readonly job: { readonly id: ReturnType<typeof made>; readonly type: string }
    readonly handler: { readonly timeoutMs: number | undefined }
    readonly startedLive: number
    isAttempting: boolean
  }> = []
  const leave = watch.join({ queue: "mails", concurrency: 2, runs: () => runs })
  const start = (type: string, timeoutMs?: number) => {
    const run = {
      job: { id: made(`${type} ${runs.length}`), type },
      handler: { timeoutMs },
      startedLive: clock.now,
      isAttempting: true
    }
    runs.push(run)
    return run
  }
  return { clock, leave, start, watch }
}

const job = (id: string, key?: string, tenant = "=") => ({
  id: made(id),
  type: "SendMail",
  tenant,
  ...(key === undefined ? {} : { standing: { key, isHead: true } })
})

describe("a handler without a timeout", () => {
  it("is a reason once it runs for ten times the slowest of its type's recent ones", () => {
    const { clock, start, watch } = makeWatch()
    for (const ms of [second, 7 * second, 2 * second]) watch.ended("SendMail", ms)
    start("SendMail")
    clock.now = 70 * second
    assert.deepStrictEqual(watch.reasons(), [])
    clock.now = 70 * second + 1
    assert.match(watch.reasons().join("\n"), /^SendMail has been running for 1 min, usually 5 s: /)
    clock.now = 2 * hour
    assert.match(watch.reasons().join("\n"), /^SendMail has been running for 2 h, usually 5 s: /)
  })

  it("is no reason before 30 seconds, however fast its type is", () => {
    const { clock, start, watch } = makeWatch()
    watch.ended("SendMail", 1)
    start("SendMail")
    clock.now = 30 * second - 1
    assert.deepStrictEqual(watch.reasons(), [])
    clock.now = 30 * second
    assert.strictEqual(watch.reasons().length, 1)
  })

  it("is a reason after an hour where its type was never seen to end", () => {
    const { clock, start, watch } = makeWatch()
    start("SendMail")
    clock.now = hour - 1
    assert.deepStrictEqual(watch.reasons(), [])
    clock.now = hour
    assert.match(watch.reasons().join("\n"), /SendMail has been running for 1 h, never seen to end here/)
  })

  it("has the same words for as long as they are roughly true, whatever ends meanwhile", () => {
    const { clock, start, watch } = makeWatch()
    watch.ended("SendMail", second)
    start("SendMail")
    const seen = new Set<string>()
    for (clock.now = 0; clock.now <= hour; clock.now += second) {
      if (clock.now % (5 * minute) === 0) watch.ended("SendMail", second + clock.now / 100)
      seen.add(watch.reasons().join("\n"))
    }
    assert.isAtMost(seen.size, 10)
  })

  it("is no reason once it has ended, has a timeout, or its partition has left", () => {
    const { clock, leave, start, watch } = makeWatch()
    watch.ended("SendMail", 1)
    const ended = start("SendMail")
    start("SendMail", 2 * hour)
    clock.now = hour
    ended.isAttempting = false
    assert.deepStrictEqual(watch.reasons(), [])
    start("SendMail")
    clock.now = 2 * hour
    assert.strictEqual(watch.reasons().length, 1)
    leave()
    assert.deepStrictEqual(watch.reasons(), [])
  })

  it("is compared with the recent ones of its type only", () => {
    const { clock, start, watch } = makeWatch()
    watch.ended("SendMail", hour)
    for (let count = 0; count < 32; count++) watch.ended("SendMail", second)
    start("SendMail")
    clock.now = minute
    assert.match(watch.reasons().join("\n"), /usually 1 s/)
  })
})

describe("abandoned runs", () => {
  it("make the process stuck from three times the concurrency of a queue on, until one ends", () => {
    const { watch } = makeWatch()
    const abandoned = Array.from({ length: 6 }, (_, index) => {
      assert.isFalse(watch.isStuck())
      return watch.abandon("mails", job(String(index)))
    })
    assert.isTrue(watch.isStuck())
    assert.strictEqual(abandoned[0]!.running(), 6)
    assert.match(watch.reasons().join("\n"), /6 abandoned handlers of SendMail of the queue mails/)
    abandoned[0]!.ended()
    assert.isFalse(watch.isStuck())
    for (const one of abandoned) one.ended()
    assert.deepStrictEqual(watch.reasons(), [])
  })

  it("are those of the same job, or of the same key of the same tenant and queue", () => {
    const { watch } = makeWatch()
    const one = watch.abandon("mails", job("a", "key", "@acme"))
    assert.strictEqual(watch.alongside("mails", job("b", "key", "@acme")), "a")
    assert.strictEqual(watch.alongside("mails", job("a")), "a")
    assert.isUndefined(watch.alongside("mails", job("b", "key", "@other")))
    assert.isUndefined(watch.alongside("letters", job("b", "key", "@acme")))
    assert.isUndefined(watch.alongside("mails", job("b")))
    one.ended()
    assert.isUndefined(watch.alongside("mails", job("b", "key", "@acme")))
  })
})

import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type { Prepared } from "../../src/internal/newJob.ts"
import * as SubmitCoalescer from "../../src/internal/submitCoalescer.ts"
import { JobStore, type NewJob, StoreError, type Submitted } from "../../src/JobStore.ts"
import * as MemoryJobStore from "../../src/MemoryJobStore.ts"
import { failureOf } from "../utils/runtime.ts"
import { newJob, times } from "../utils/storeFixture.ts"

interface Sending {
  readonly jobs: ReadonlyArray<NewJob>
  readonly now: number
  readonly answer: Deferred.Deferred<void, StoreError>
}

/** A coalescer over a store whose statements wait for the test's word. */
const held = Effect.gen(function*() {
  const sendings: Array<Sending> = []
  const store: JobStore["Service"] = {
    ...yield* JobStore,
    submit: (jobs, { now }) => {
      const answer = Deferred.makeUnsafe<void, StoreError>()
      sendings.push({ jobs, now, answer })
      return Effect.as(Deferred.await(answer), jobs.map(({ id }, seq): Submitted => ({ id, isNew: true, seq })))
    }
  }
  const submit = yield* SubmitCoalescer.make(store, () => Effect.void)
  const send = (bytes = 10, at = 0) => {
    const prepared: Prepared = { job: newJob({ queueId: 1 }), queue: "q", at, bytes }
    return Effect.forkScoped(submit(prepared), { startImmediately: true })
  }
  const untilSent = (count: number) => Effect.repeat(Effect.yieldNow, { until: () => sendings.length >= count })
  /** Two statements under way, so that what comes now waits. */
  const busy = Effect.gen(function*() {
    for (const count of [1, 2]) {
      yield* send()
      yield* untilSent(count)
    }
  })
  const answer = (index: number) => Deferred.succeed(sendings[index]!.answer, undefined)
  const fail = (index: number) =>
    Deferred.fail(
      sendings[index]!.answer,
      new StoreError({ reason: "Unavailable", operation: "submit", cause: new Error("down"), isUncertain: true })
    )
  return { sendings, send, untilSent, busy, answer, fail }
})

const test = (name: string, body: Effect.Effect<void, unknown, JobStore>) =>
  it.effect(name, () => Effect.provide(body, Layer.fresh(MemoryJobStore.layer)))

test(
  "who has waited out an outage is told that nothing was sent, who comes after it is tried",
  Effect.scoped(Effect.gen(function*() {
    const { answer, busy, fail, send, sendings, untilSent } = yield* held
    yield* busy
    const fibers = yield* Effect.forEach(times(600, (n) => n), () => send())
    yield* answer(0)
    yield* untilSent(3)
    const next = yield* send()
    yield* fail(2)
    yield* untilSent(4)
    yield* answer(3)
    yield* Fiber.join(next)
    const tags = yield* Effect.forEach(
      fibers,
      (fiber) => Effect.map(failureOf(Fiber.join(fiber)), ({ reason }) => reason._tag)
    )
    assert.deepStrictEqual(tags, times(600, (n) => n < 500 ? "OutcomeUnknown" : "StoreUnavailable"))
    assert.deepStrictEqual(sendings.map(({ jobs }) => jobs.length), [1, 1, 500, 1])
  }))
)

test(
  "a statement stays below a mebibyte, a larger job travels alone, and every job keeps its place",
  Effect.scoped(Effect.gen(function*() {
    const { answer, busy, send, sendings, untilSent } = yield* held
    yield* busy
    const fibers = yield* Effect.forEach([400_000, 400_000, 400_000, 3_000_000, 5, 5], (bytes) => send(bytes))
    yield* answer(0)
    for (const index of [2, 3, 4, 5]) {
      yield* untilSent(index + 1)
      yield* answer(index)
    }
    const ids = yield* Effect.forEach(fibers, Fiber.join)
    assert.deepStrictEqual(sendings.slice(2).map(({ jobs }) => jobs.length), [2, 1, 1, 2])
    assert.deepStrictEqual(sendings.slice(2).flatMap(({ jobs }) => jobs.map(({ id }) => id)), ids)
  }))
)

test(
  "a statement is made at the time of the first of its jobs, so that a short delay of any of them is one to the store",
  Effect.scoped(Effect.gen(function*() {
    const { answer, busy, send, sendings, untilSent } = yield* held
    yield* busy
    for (const at of [5, 7, 6]) yield* send(1, at)
    yield* answer(0)
    yield* untilSent(3)
    assert.strictEqual(sendings[2]?.now, 5)
  }))
)

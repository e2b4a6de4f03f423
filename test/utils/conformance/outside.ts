/**
 * What people and other processes do to a queue from outside.
 */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as JobEvent from "../../../src/JobEvent.ts"
import type { JobId } from "../../../src/JobId.ts"
import { inlinePayloadBytes, type Message, type Ready, tenantKey } from "../../../src/JobStore.ts"
import {
  attempted,
  bury,
  day,
  everything,
  failure,
  finish,
  fresh,
  newBatch,
  newId,
  noted,
  retry,
  t0,
  times
} from "../storeFixture.ts"
import type { Suite } from "./suite.ts"

export const outside = (it: Suite): void => {
  describe("cancel", () => {
    const cancelled = { entry: noted("cancelled"), now: t0 + 5, purgeAt: t0 + day }

    it.effect("a waiting job can be cancelled by anyone, once", () =>
      Effect.gen(function*() {
        const { get, owner, settle, store, stored } = yield* fresh
        const later = yield* stored({ dueAt: t0 + 10 })
        const retrying = yield* stored()
        yield* settle(owner, retry(retrying))
        for (const one of [later, { ...retrying, version: 1 }]) {
          const options = { ...cancelled, id: one.id, version: one.version, owner: undefined }
          const answers = yield* Effect.all(times(5, () => store.cancel(options)), { concurrency: "unbounded" })
          assert.strictEqual(answers.filter((answer) => answer).length, 1)
          const record = yield* get(one.id)
          assert.strictEqual(record.state, "cancelled")
          assert.strictEqual(record.endedAt, t0 + 5)
          assert.deepStrictEqual(record.history.at(-1), noted("cancelled"))
        }
        assert.strictEqual((yield* get(retrying.id)).attempt, 1)
        assert.deepStrictEqual(yield* store.promote(owner, t0 + 10_000, 10), [])
      }))

    it.effect("a ready job may be running: only its owner can cancel it", () =>
      Effect.gen(function*() {
        const { owner, readyIds, stateOf, store, stored } = yield* fresh
        const one = yield* stored()
        const by = { ...cancelled, id: one.id, version: 0 }
        assert.isFalse(yield* store.cancel({ ...by, owner: undefined }))
        assert.strictEqual(yield* stateOf(one.id), "queued")
        assert.isTrue(yield* store.cancel({ ...by, owner }))
        assert.strictEqual(yield* stateOf(one.id), "cancelled")
        assert.deepStrictEqual(yield* readyIds(), [])
      }))

    it.effect("a ready job whose partition nobody owns can be cancelled by anyone: before the first take-over, and after a hand-over", () =>
      Effect.gen(function*() {
        const { owner, stateOf, store, stored, takeOver } = yield* fresh
        const cancel = (one: { readonly id: JobId }) =>
          store.cancel({ ...cancelled, id: one.id, version: 0, owner: undefined })
        const unowned = yield* stored({ partition: 1 })
        assert.isTrue(yield* cancel(unowned))
        assert.strictEqual(yield* stateOf(unowned.id), "cancelled")
        assert.isFalse(yield* cancel(unowned))

        const [one, two] = [yield* stored(), yield* stored()]
        assert.isTrue(yield* store.handOver(owner))
        assert.isFalse(yield* store.cancel({ ...cancelled, id: one.id, version: 1, owner: undefined }))
        assert.isTrue(yield* cancel(one))
        yield* takeOver()
        assert.isFalse(yield* cancel(two))
        assert.strictEqual(yield* stateOf(two.id), "queued")
      }))

    it.effect("a job that has moved since it was read is not cancelled", () =>
      Effect.gen(function*() {
        const { owner, stateOf, store, stored } = yield* fresh
        const one = yield* stored({ dueAt: t0 + 10 })
        yield* store.promote(owner, t0 + 10, 10)
        assert.isFalse(yield* store.cancel({ ...cancelled, id: one.id, version: 0, owner }))
        assert.strictEqual(yield* stateOf(one.id), "queued")
        assert.isFalse(yield* store.cancel({ ...cancelled, id: newId(), version: 0, owner }))
      }))

    it.effect("a cancelled job's dedupe key is free", () =>
      Effect.gen(function*() {
        const { job, store, stored, submit } = yield* fresh
        const one = yield* stored({ dueAt: t0 + 10, dedupeKey: "a" })
        yield* store.cancel({ ...cancelled, id: one.id, version: 0, owner: undefined })
        assert.isTrue((yield* submit(job({ dedupeKey: "a" })))[0]!.isNew)
      }))
  })

  describe("what processes say", () => {
    it.effect("is heard by all that listen, in order, and by nobody later; a name that is too long for it costs only the name", () =>
      Effect.gen(function*() {
        const { queueId, store } = yield* fresh
        const cancel = (by: string | undefined) =>
          ({ _tag: "Cancel", queueId, partition: 1, jobId: newId(), by }) satisfies Message
        const messages = [cancel("ada"), cancel(undefined), cancel("a".repeat(8_000))]
        const both = yield* Effect.all([store.heard, store.heard])
        yield* store.say(messages)
        for (const heard of both) {
          const [first, second, third] = yield* Effect.all(times(3, () => Queue.take(heard)))
          assert.deepStrictEqual([first, second], messages.slice(0, 2))
          assert.deepInclude(third, { queueId, jobId: messages[2]!.jobId })
        }
        const later = yield* store.heard
        const last = cancel("bob")
        yield* store.say([last])
        assert.deepStrictEqual(yield* Queue.take(later), last)
        yield* store.say([])
      }).pipe(Effect.scoped))

    it.effect("events come as they were told, every kind of them", () =>
      Effect.gen(function*() {
        const { store } = yield* fresh
        const job = (tenantId?: string) => ({
          jobId: newId(),
          type: "Type \n \u{1f600}",
          queue: "queue",
          at: t0,
          ...(tenantId === undefined ? {} : { tenantId })
        })
        const short = { class: "Business", tag: "OutOfStock", message: "none left" } as const
        const events = [
          new JobEvent.JobSubmitted({ ...job("acme"), batchId: newBatch(), dueAt: t0 + 1 }),
          new JobEvent.JobStarted({ ...job(), attempt: 1 }),
          new JobEvent.JobProgressed({ ...job(""), attempt: 1, progress: 0.5, message: "half" }),
          new JobEvent.JobFailed({ ...job(), attempt: 1, failure: short }),
          new JobEvent.JobRetried({ ...job(), attempt: 1, dueAt: t0 + 5 }),
          new JobEvent.JobCompleted({ ...job(), attempt: 2 }),
          new JobEvent.JobDeadLettered({ ...job(), attempt: 3, failure: short }),
          new JobEvent.JobReplayed({ ...job(), by: "ada" }),
          new JobEvent.JobCancelled(job()),
          new JobEvent.JobExpired(job())
        ]
        const heard = yield* store.heard
        yield* store.say([{ _tag: "Events", from: "there", missed: 0, events: () => events }])
        const told = yield* Queue.take(heard)
        assert.deepStrictEqual(told._tag === "Events" ? told.events() : told, events)
        for (
          const message of [
            { _tag: "Interest", from: "there", interest: "ends" },
            { _tag: "Asking", from: "there" }
          ] satisfies ReadonlyArray<Message>
        ) {
          yield* store.say([message])
          assert.deepStrictEqual(yield* Queue.take(heard), message)
        }
      }).pipe(Effect.scoped))
  })

  describe("dead letters", () => {
    const acme = tenantKey("acme")
    const again = noted("replayed")

    it.effect("a dead letter keeps everything needed to understand and to replay it", () =>
      Effect.gen(function*() {
        const { get, owner, settle, store, stored } = yield* fresh
        const one = yield* stored({ lane: 1, dedupeKey: "a", context: "{\"userId\":\"ada\"}" })
        yield* settle(owner, retry(one))
        yield* settle(owner, bury({ id: one.id, version: 1 }, { entry: attempted(2, "dead-lettered") }))
        const record = yield* get(one.id)
        assert.strictEqual(record.state, "failed")
        assert.deepStrictEqual(record.failure, failure)
        assert.deepStrictEqual(record.payload, { name: "Ada" })
        assert.deepStrictEqual(record.context, { userId: "ada" })
        assert.deepStrictEqual(
          [record.lane, record.attempt, record.dedupeKey, record.endedAt, record.dueAt],
          [1, 2, "a", t0, undefined]
        )
        assert.deepStrictEqual(record.history, [attempted(1, "retried"), attempted(2, "dead-lettered")])
        assert.deepStrictEqual(yield* store.reread([one.id]), [])
      }))

    it.effect("a job that never found a handler has used no attempt", () =>
      Effect.gen(function*() {
        const { get, owner, settle, stored } = yield* fresh
        const one = yield* stored()
        yield* settle(owner, bury(one, { isAttempt: false, entry: noted("dead-lettered") }))
        assert.strictEqual((yield* get(one.id)).attempt, 0)
      }))

    it.effect("replay keeps id and history, starts attempts afresh, and no old attempt can touch the job", () =>
      Effect.gen(function*() {
        const { get, job, owner, queueId, settle, store, stored, submit } = yield* fresh
        const one = yield* stored({ lane: 1, expiresAt: t0 + 1, dedupeKey: "a" })
        yield* settle(owner, retry(one))
        yield* settle(owner, bury({ id: one.id, version: 1 }))
        const [later] = yield* submit(job({ lane: 1 }))

        const answer = yield* store.replay(one.id, acme, again)
        assert.isTrue(answer !== "taken" && Option.isSome(answer))
        const ready: Ready = answer === "taken" ? assert.fail("taken") : Option.getOrThrow(answer)
        assert.deepStrictEqual({ ...ready, seq: 0 }, { queueId, partition: 0, lane: 1, tenant: acme, seq: 0 })
        assert.isAbove(ready.seq, later!.seq)

        const record = yield* get(one.id)
        assert.strictEqual(record.state, "queued")
        assert.strictEqual(record.createdAt, t0)
        assert.deepStrictEqual([record.attempt, record.crashes, record.failure, record.endedAt], [
          0,
          0,
          undefined,
          undefined
        ])
        assert.deepStrictEqual(record.history, [attempted(1, "retried"), attempted(1, "dead-lettered"), again])
        assert.isAbove(record.version, 1)
        for (const version of [0, 1]) {
          assert.deepStrictEqual(yield* settle(owner, finish({ id: one.id, version })), [])
        }
        const { jobs } = yield* store.intake(owner, everything())
        assert.deepStrictEqual(jobs.map(({ id }) => id), [later!.id, one.id])
        // It has been waiting past its time already: it would expire at once.
        assert.strictEqual(jobs[1]?.expiresAt, undefined)
      }))

    it.effect("a large payload is not read ahead after its replay either", () =>
      Effect.gen(function*() {
        const { owner, settle, store, stored } = yield* fresh
        const large = yield* stored({ payload: JSON.stringify({ text: "x".repeat(inlinePayloadBytes) }) })
        const small = yield* stored()
        yield* settle(owner, bury(large), bury(small))
        yield* store.replay(large.id, acme, again)
        yield* store.replay(small.id, acme, again)
        const { jobs } = yield* store.intake(owner, everything())
        assert.deepStrictEqual(jobs.map(({ id, isLarge }) => ({ id, isLarge })), [
          { id: large.id, isLarge: true },
          { id: small.id, isLarge: false }
        ])
      }))

    it.effect("two replays at the same time put it back once", () =>
      Effect.gen(function*() {
        const { owner, readyIds, settle, store, stored } = yield* fresh
        const one = yield* stored()
        yield* settle(owner, bury(one))
        const answers = yield* Effect.all(times(10, () => store.replay(one.id, acme, again)), {
          concurrency: "unbounded"
        })
        assert.strictEqual(answers.filter((answer) => answer !== "taken" && Option.isSome(answer)).length, 1)
        assert.deepStrictEqual(yield* readyIds(), [one.id])
      }))

    it.effect("a live job that holds the key keeps the dead letter where it is", () =>
      Effect.gen(function*() {
        const { get, owner, settle, store, stored } = yield* fresh
        const one = yield* stored({ dedupeKey: "a" })
        yield* settle(owner, bury(one))
        const holder = yield* stored({ dedupeKey: "a" })
        assert.strictEqual(yield* store.replay(one.id, acme, again), "taken")
        const record = yield* get(one.id)
        assert.deepStrictEqual([record.state, record.history.length], ["failed", 1])
        yield* settle(owner, finish(holder))
        const answer = yield* store.replay(one.id, acme, again)
        assert.isTrue(answer !== "taken" && Option.isSome(answer))
      }))

    it.effect("another tenant cannot replay it, nor learn that its key is taken", () =>
      Effect.gen(function*() {
        const { owner, settle, stateOf, store, stored } = yield* fresh
        const one = yield* stored({ dedupeKey: "a" })
        yield* settle(owner, bury(one))
        yield* stored({ dedupeKey: "a" })
        for (const tenant of [tenantKey("zeta"), tenantKey(undefined), tenantKey("")]) {
          assert.deepStrictEqual(yield* store.replay(one.id, tenant, again), Option.none())
        }
        assert.strictEqual(yield* stateOf(one.id), "failed")
      }))

    it.effect("a job that is live, finished or unknown is no dead letter", () =>
      Effect.gen(function*() {
        const { owner, settle, store, stored } = yield* fresh
        const [live, done] = [yield* stored(), yield* stored()]
        yield* settle(owner, finish(done))
        for (const id of [live.id, done.id, newId()]) {
          assert.deepStrictEqual(yield* store.replay(id, acme, again), Option.none())
        }
      }))
  })

  describe("announcements", () => {
    it.effect("every listener hears of ready rows, also of more than fit into one message", () =>
      Effect.gen(function*() {
        const { queueId, store } = yield* fresh
        const ready = times(300, (index): Ready => ({
          queueId,
          partition: 0,
          lane: index % 4,
          tenant: tenantKey(`tenant-${index}-${"x".repeat(40)}`),
          seq: index + 1
        }))
        const listeners = yield* Effect.all([store.announcements, store.announcements])
        const hears = yield* Effect.forkChild(Effect.all(
          listeners.map((listener) =>
            Effect.gen(function*() {
              const heard = new Map<string, Ready>()
              while (heard.size < ready.length) {
                for (const one of yield* Queue.take(listener)) if (one.queueId === queueId) heard.set(one.tenant, one)
              }
              return ready.map(({ tenant }) => heard.get(tenant))
            })
          ),
          { concurrency: "unbounded" }
        ))
        yield* store.announce([])
        yield* store.announce(ready)
        const heard = yield* Effect.timeout(Fiber.join(hears), "10 seconds")
        assert.deepStrictEqual(heard, [ready, ready])
      }).pipe(Effect.scoped))

    it.effect("what is to be done after the commit is done at once where there is no transaction", () =>
      Effect.gen(function*() {
        const { store } = yield* fresh
        let isDone = false
        yield* store.afterCommit(Effect.sync(() => {
          isDone = true
        }))
        assert.isTrue(isDone)
      }))
  })

  describe("depth and purge", () => {
    it.effect("depth counts ready rows by lane, and no further than asked", () =>
      Effect.gen(function*() {
        const { job, owner, queueId, settle, store, stored, submit } = yield* fresh
        yield* submit(...times(5, () => job()), job({ lane: 0 }), job({ lane: 3, partition: 1 }))
        yield* stored({ dueAt: t0 + 1 })
        yield* settle(owner, retry(yield* stored()))
        assert.deepStrictEqual(yield* store.depth({ queueId, partition: 0 }, 100), [1, 0, 5, 0])
        assert.deepStrictEqual(yield* store.depth({ queueId, partition: 0 }, 3), [1, 0, 3, 0])
        assert.deepStrictEqual(yield* store.depth({ queueId, partition: 1 }, 3), [0, 0, 0, 1])
      }))

    it.effect("purge drops days that are over: no row goes before its retention has passed", () =>
      Effect.gen(function*() {
        const { owner, settle, stateOf, store, stored } = yield* fresh
        // Long before every other test's rows, which must survive.
        const today = Date.UTC(2020, 5, 15, 23, 59)
        const purgeAll = Effect.gen(function*() {
          while ((yield* store.purge(today)) > 0) { /* bounded steps */ }
        })
        const [due, yesterday, dueToday, tomorrow, dead, live] = [
          yield* stored(),
          yield* stored(),
          yield* stored(),
          yield* stored(),
          yield* stored(),
          yield* stored()
        ]
        yield* settle(
          owner,
          finish(due, { purgeAt: today - 10 * day }),
          finish(yesterday, { purgeAt: Date.UTC(2020, 5, 15) - 1 }),
          finish(dueToday, { purgeAt: Date.UTC(2020, 5, 15) }),
          finish(tomorrow, { purgeAt: Date.UTC(2020, 5, 16) }),
          bury(dead)
        )
        yield* purgeAll
        assert.deepStrictEqual(
          yield* Effect.all([due, yesterday, dueToday, tomorrow, dead, live].map(({ id }) => stateOf(id))),
          [undefined, undefined, "completed", "completed", "failed", "queued"]
        )
        yield* purgeAll
        // The days that were dropped can come back: a slow clock or a short retention.
        const late = yield* stored()
        assert.deepStrictEqual(yield* settle(owner, finish(late, { purgeAt: today - 10 * day })), [late.id])
      }))
  })
}

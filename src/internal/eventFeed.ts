/**
 * Carries job events between processes: sent, batched, only while another process has said that it wants them.
 *
 * Promise: publishing never waits and never fails; memory is bounded. Nothing is stored: what a crash, an outage or a flood swallows is
 * told as `Missed` where that can be known.
 */
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Queue from "effect/Queue"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { randomUUID } from "node:crypto"
import { type Interest, isOf, type JobEvent, Missed, type Told } from "../JobEvent.ts"
import type { JobStore, Message } from "../JobStore.ts"
import { monotonicMillis, onLiveClock } from "./time/liveClock.ts"

/** The way to the other processes and back. */
export interface EventFeed {
  /** Whether another process wants such an event; without a tag, any. */
  readonly isWanted: (tag?: JobEvent["_tag"]) => boolean
  /** Sends it to those that want it, soon. */
  readonly publish: (event: JobEvent) => void
  /** Until the scope closes somebody here wants to hear of others' events. */
  readonly want: (interest: Interest) => Effect.Effect<void, never, Scope.Scope>
}

/** How many events wait to be sent at most: older ones are missed. */
const capacity = 4_096
/** At most so many in one statement, and a pause after the last: they travel together. */
const batchSize = 500
const pause = "50 millis"
/** How often an interest is said again, and how long it is taken for one. */
const repeat = "10 seconds"
const validMs = 25_000

/** A feed over what the store hears. `deliver` tells subscribers here of what happened elsewhere. */
export const make = (
  store: JobStore["Service"],
  deliver: (told: Told) => Effect.Effect<unknown>
): Effect.Effect<EventFeed, never, Scope.Scope> =>
  Effect.gen(function*() {
    const from = randomUUID()
    // A process that neither publishes nor subscribes needs no connection to listen on.
    const isUsed = yield* Latch.make(false)

    // -------------------------------------------------------------------------------------------- what we want

    const counts = { ends: 0, all: 0 }
    const ours = (): Interest | undefined => counts.all > 0 ? "all" : counts.ends > 0 ? "ends" : undefined
    let said: Interest | undefined
    const sayDue = yield* Latch.make(false)

    const sayInterest = Effect.suspend(() => {
      said = ours()
      return said === undefined ? Effect.void : store.say([{ _tag: "Interest", from, interest: said }])
    })

    const keepInterest = Effect.gen(function*() {
      yield* said === undefined ? sayDue.await : Effect.raceFirst(sayDue.await, Effect.sleep(repeat))
      sayDue.closeUnsafe()
      // Not said now, it is said when the database can be listened to again.
      yield* Effect.ignore(sayInterest)
    }).pipe(Effect.forever)

    const want = (interest: Interest) =>
      Effect.acquireRelease(
        Effect.sync(() => {
          counts[interest]++
          isUsed.openUnsafe()
          if (said !== "all" && said !== interest) sayDue.openUnsafe()
        }),
        () => Effect.sync(() => counts[interest]--)
      )

    // -------------------------------------------------------------------------------------------- what others want

    const others = new Map<string, { readonly interest: Interest; readonly until: number }>()

    const isWanted = (tag?: JobEvent["_tag"]): boolean => {
      isUsed.openUnsafe()
      if (others.size === 0) return false
      const now = monotonicMillis()
      for (const { interest, until } of others.values()) {
        if (until > now && (tag === undefined || isOf(interest, tag))) return true
      }
      return false
    }

    const remember = (process: string, interest: Interest) => {
      const now = monotonicMillis()
      for (const [other, { until }] of others) if (until <= now) others.delete(other)
      others.set(process, { interest, until: now + validMs })
    }

    // -------------------------------------------------------------------------------------------- sending

    const waiting: Array<JobEvent> = []
    let missed = 0
    const sendDue = yield* Latch.make(false)

    const publish = (event: JobEvent): void => {
      if (!isWanted(event._tag)) return
      waiting.push(event)
      if (waiting.length > capacity) {
        waiting.shift()
        missed++
      }
      sendDue.openUnsafe()
    }

    const send = Effect.gen(function*() {
      while (waiting.length > 0 || missed > 0) {
        const events = waiting.splice(0, batchSize)
        const before = missed
        missed = 0
        // Not sent again: an answer that was lost may have been a yes.
        yield* store.say([{ _tag: "Events", from, missed: before, events: () => events }]).pipe(
          Effect.onError(() => Effect.sync(() => missed += before + events.length))
        )
      }
    })

    const sendTurn = Effect.gen(function*() {
      yield* sendDue.await
      // Woken in the midst of a publisher's work: what it publishes now goes along.
      yield* Effect.yieldNow
      sendDue.closeUnsafe()
      yield* Effect.retry(send, Schedule.spaced("1 second"))
      yield* Effect.sleep(pause)
    }).pipe(Effect.forever)

    // -------------------------------------------------------------------------------------------- hearing

    const hear = (message: Message): Effect.Effect<void> => {
      if (message._tag === "Cancel" || message.from === from) return Effect.void
      switch (message._tag) {
        case "Interest":
          return Effect.sync(() => remember(message.from, message.interest))
        case "Asking":
          return Effect.sync(() => ours() === undefined ? undefined : sayDue.openUnsafe())
        case "Events": {
          if (ours() === undefined) return Effect.void
          const told: ReadonlyArray<Told> = message.missed === 0
            ? message.events()
            : [new Missed({ count: message.missed }), ...message.events()]
          return Effect.forEach(told, deliver, { discard: true })
        }
      }
    }

    let hasListened = false
    const listen = Effect.gen(function*() {
      const heard = yield* store.heard
      if (hasListened) yield* deliver(new Missed({}))
      hasListened = true
      yield* store.say([{ _tag: "Asking", from }])
      yield* sayInterest
      while (true) yield* hear(yield* Queue.take(heard))
    }).pipe(
      Effect.scoped,
      Effect.tapError((error) => Effect.logDebug("Not listening to events of other processes: trying again", error)),
      Effect.retry(Schedule.spaced("1 second"))
    )

    for (const loop of [keepInterest, sendTurn, Effect.andThen(isUsed.await, listen)]) {
      yield* loop.pipe(onLiveClock, Effect.withTracerEnabled(false), Effect.forkScoped)
    }
    // The last ones, of jobs that ended at a shutdown.
    yield* Effect.addFinalizer(() =>
      Effect.ignore(send).pipe(
        Effect.timeoutOption("1 second"),
        Effect.interruptible,
        onLiveClock,
        Effect.withTracerEnabled(false)
      )
    )
    return { isWanted, publish, want }
  })

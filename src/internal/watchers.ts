/**
 * What a runtime does beside its queues: passes on what other processes announce, drops finished days, says that it stands by.
 *
 * Nothing depends on them: a crash leaves nothing behind, and what is missed is found by sweeps.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Schedule from "effect/Schedule"
import { JobStore } from "../JobStore.ts"
import { Outage } from "./outage.ts"
import { Owners } from "./owners.ts"
import { partitionsOf, Queues } from "./queues.ts"
import { unanswered } from "./sql/unanswered.ts"
import { onLiveClock } from "./time/liveClock.ts"

const listening = "Listening for submitters"

/** Passes on what submitters in other processes announce. Of several runners that hear it only the owner acts. */
export const listener = Layer.effectDiscard(Effect.gen(function*() {
  const store = yield* JobStore
  const owners = yield* Owners
  const queues = yield* Queues
  const outage = yield* Outage
  yield* Effect.gen(function*() {
    const announcements = yield* outage.watch(listening)(store.announcements)
    while (true) {
      for (const ready of yield* Queue.take(announcements)) {
        // What is announced does not say when it is due.
        const heard = [ready, { ...ready, dueAt: 0 }]
        if (owners.tell(ready.queueId, ready.partition, heard)) continue
        const known = queues.declared.find(({ row }) => row.queueId === ready.queueId)
        if (known === undefined) continue
        const to = { queue: known.row.name, partition: ready.partition }
        if (owners.reach(to) === "here") yield* owners.wake(to, heard)
      }
    }
  }).pipe(
    Effect.scoped,
    Effect.tapError((error) => outage.failed(listening, error)),
    Effect.retry(Schedule.spaced("1 second")),
    onLiveClock,
    Effect.withTracerEnabled(false),
    Effect.forkScoped
  )
}))

/** Prepares the days ahead and drops those that are over, once an hour. */
export const retention = Layer.effectDiscard(Effect.gen(function*() {
  const store = yield* JobStore
  yield* Effect.flatMap(store.now, store.purge).pipe(
    // It is not tried again soon, and no outage of its own.
    Effect.tapError((error) =>
      Effect.logWarning(`Could not purge finished jobs: again in an hour`, unanswered(error) ?? error)
    ),
    Effect.ignore,
    Effect.repeat(Schedule.spaced("1 hour")),
    onLiveClock,
    Effect.withTracerEnabled(false),
    Effect.forkScoped
  )
}))

/** Of a runtime of one process: says so when it does not own its queues. Another does, or runners of a cluster. */
export const standby = Layer.effectDiscard(Effect.gen(function*() {
  const owners = yield* Owners
  const { declared } = yield* Queues
  const isOwner = () => declared.flatMap(partitionsOf).every((address) => owners.reach(address) === "here")
  yield* Effect.gen(function*() {
    yield* Effect.sleep("3 seconds")
    if (isOwner()) return
    yield* Effect.logInfo(
      "Other processes own these queues: standing by. Programs that do not share their queues need a `schema` each, or a `group` each and " +
        "JobRuntime.layerCluster"
    )
    yield* Effect.sync(isOwner).pipe(
      Effect.repeat({ until: (isOwner) => isOwner, schedule: Schedule.spaced("1 second") })
    )
    yield* Effect.logInfo("The others are gone: taken over")
  }).pipe(onLiveClock, Effect.forkScoped)
}))

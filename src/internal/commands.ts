/**
 * Hears what other processes ask of the owners in this one, through the database: for callers that cannot reach them otherwise.
 *
 * A word that gets lost, here or on its way, is repeated by whoever waits for what comes of it.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Schedule from "effect/Schedule"
import type { JobId } from "../JobId.ts"
import { JobStore, type Message } from "../JobStore.ts"
import { Owners } from "./owners.ts"
import { onLiveClock } from "./time/liveClock.ts"

/** Listens for as long as the scope is open. */
export const layer: Layer.Layer<never, never, JobStore | Owners> = Layer.effectDiscard(Effect.gen(function*() {
  const store = yield* JobStore
  const owners = yield* Owners
  const scope = yield* Effect.scope
  const services = yield* Effect.context()
  // Ending a handler takes as long as it takes, and its caller repeats itself meanwhile.
  const underWay = new Set<JobId>()

  const obey = (message: Message): Effect.Effect<void> => {
    if (message._tag !== "Cancel") return Effect.void
    const { by, jobId, partition, queueId } = message
    const cancel = underWay.has(jobId) ? undefined : owners.cancelHere(queueId, partition, jobId, by)
    if (cancel === undefined) return Effect.void
    underWay.add(jobId)
    return cancel.pipe(
      Effect.ensuring(Effect.sync(() => underWay.delete(jobId))),
      Effect.setContext(services),
      Effect.forkIn(scope),
      Effect.asVoid
    )
  }

  const listen = Effect.gen(function*() {
    const heard = yield* store.heard
    while (true) yield* obey(yield* Queue.take(heard))
  })
  yield* Effect.scoped(listen).pipe(
    Effect.tapError((error) => Effect.logDebug("Not listening to other processes: trying again", error)),
    Effect.retry(Schedule.spaced("1 second")),
    onLiveClock,
    Effect.withTracerEnabled(false),
    Effect.forkScoped
  )
}))

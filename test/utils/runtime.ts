/**
 * What the tests of the runtime share: a runtime on a database of the test's own, handlers that stop where a test wants them to, and
 * short words for waiting until something has happened. Nothing here sleeps for a time: it waits for events or for a condition.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { inspect } from "node:util"
import * as EventBus from "../../src/EventBus.ts"
import { onLiveClock } from "../../src/internal/time/liveClock.ts"
import type * as JobEvent from "../../src/JobEvent.ts"
import type { JobId } from "../../src/JobId.ts"
import * as JobRuntime from "../../src/JobRuntime.ts"
import * as Jobs from "../../src/Jobs.ts"
import type { JobState } from "../../src/JobState.ts"
import { TestDatabase } from "./database.ts"

/** A runtime on a fresh database. Handlers get no grace, so that a test which leaves one behind does not hold up the others. */
export const layerRuntime = (options: JobRuntime.Options = {}) =>
  JobRuntime.layer({ gracePeriod: 0, ...options }).pipe(Layer.provideMerge(TestDatabase.layer), Layer.orDie)

/** Repeats a question until the answer is yes, by the real clock. */
export const until = <E, R>(condition: Effect.Effect<boolean, E, R>): Effect.Effect<boolean, E, R> =>
  Effect.repeat(condition, { until: (isSo) => isSo, schedule: Schedule.spaced("5 millis") }).pipe(onLiveClock)

/** Where handlers stop: `stop(name)` in a handler waits until the test says `release(name)`. Everything is released at the end of the scope. */
export interface Stops {
  readonly stop: (name: string) => Effect.Effect<void>
  /** Waits until a handler has come to `stop(name)`. */
  readonly arrived: (name: string) => Effect.Effect<void>
  readonly release: (name: string) => Effect.Effect<void>
  readonly releaseAll: Effect.Effect<void>
}

/** Places to stop at, by name. */
export const makeStops = Effect.gen(function*() {
  const arrivals = new Map<string, Deferred.Deferred<void>>()
  const releases = new Map<string, Deferred.Deferred<void>>()
  let isOpen = false
  const at = (places: Map<string, Deferred.Deferred<void>>, name: string) => {
    const place = places.get(name) ?? Deferred.makeUnsafe<void>()
    places.set(name, place)
    return place
  }
  const done = (place: Deferred.Deferred<void>) => Effect.sync(() => void Deferred.doneUnsafe(place, Effect.void))
  const releaseAll = Effect.suspend(() => {
    isOpen = true
    return Effect.forEach(releases.values(), done, { discard: true })
  })
  yield* Effect.addFinalizer(() => releaseAll)
  const stops: Stops = {
    stop: (name) =>
      Effect.suspend(() => {
        Deferred.doneUnsafe(at(arrivals, name), Effect.void)
        return isOpen ? Effect.void : Deferred.await(at(releases, name))
      }),
    arrived: (name) => Deferred.await(at(arrivals, name)),
    release: (name) => Effect.suspend(() => done(at(releases, name))),
    releaseAll
  }
  return stops
})

/** Waits until the job is in this state. */
export const untilState = (jobId: JobId, state: JobState) =>
  Effect.flatMap(Jobs.Jobs, (jobs) =>
    jobs.status(jobId).pipe(
      Effect.repeat({ until: (status) => status.state === state, schedule: Schedule.spaced("5 millis") }),
      onLiveClock
    ))

/** Subscribes now; the effect it returns gives the events up to the first one that ends it. */
export const listen = Effect.fnUntraced(function*(
  filter: JobEvent.Filter,
  isLast: (event: JobEvent.JobEvent) => boolean
) {
  const bus = yield* EventBus.EventBus
  const events = yield* bus.subscribe(filter)
  return { heard: Stream.runCollect(Stream.takeUntil(events, isLast)) }
})

/** The typed failure of an effect that has to fail. */
export const failureOf = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<E, never, R> =>
  Effect.map(Effect.exit(effect), (exit) => {
    const error = Exit.findErrorOption(exit)
    if (error._tag === "None") throw new Error(`expected a typed failure, got ${inspect(exit, { depth: 6 })}`)
    return error.value
  })

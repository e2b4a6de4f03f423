/**
 * Who hears what happened. A port: the layer here reaches subscribers of this process; another implementation can carry events further.
 *
 * Promise: a slow subscriber loses its oldest events and never holds up the runtime.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as PubSub from "effect/PubSub"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as JobEvent from "./JobEvent.ts"

/** Publishes and subscribes to job events. */
export class EventBus extends Context.Service<EventBus, {
  /** Tells of something already committed. Never waits, never fails. */
  readonly publish: (event: JobEvent.JobEvent) => Effect.Effect<void>
  /** Whether anybody would hear of an event published now. Left out: always; otherwise events nobody hears are not even made. */
  readonly hasSubscribers?: () => boolean
  /** Events from the moment the stream starts. */
  readonly stream: (filter?: JobEvent.Filter) => Stream.Stream<JobEvent.JobEvent>
  /** Subscribes at once: what is published after this effect has returned is in the stream. */
  readonly subscribe: (
    filter?: JobEvent.Filter
  ) => Effect.Effect<Stream.Stream<JobEvent.JobEvent>, never, Scope.Scope>
}>()("millrace/EventBus") {}

/** Events within this process. `capacity`: how many a slow subscriber may lag behind (default 4096). */
export const layer = (options?: { readonly capacity?: number }): Layer.Layer<EventBus> =>
  Layer.effect(
    EventBus,
    Effect.gen(function*() {
      const events = yield* PubSub.sliding<JobEvent.JobEvent>(options?.capacity ?? 4096)
      let subscribers = 0
      const counted = Effect.acquireRelease(Effect.sync(() => subscribers++), () => Effect.sync(() => subscribers--))
      const subscribe = (filter: JobEvent.Filter | undefined) =>
        Effect.map(Effect.andThen(counted, PubSub.subscribe(events)), (subscription) => {
          const all = Stream.fromSubscription(subscription)
          return filter === undefined ? all : Stream.filter(all, JobEvent.matches(filter))
        })
      return EventBus.of({
        publish: (event) => Effect.asVoid(PubSub.publish(events, event)),
        hasSubscribers: () => subscribers > 0,
        stream: (filter) => Stream.unwrap(subscribe(filter)),
        subscribe
      })
    })
  )

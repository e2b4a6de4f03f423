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
      const filtered = (filter: JobEvent.Filter | undefined) => (stream: Stream.Stream<JobEvent.JobEvent>) =>
        filter === undefined ? stream : Stream.filter(stream, JobEvent.matches(filter))
      return EventBus.of({
        publish: (event) => Effect.asVoid(PubSub.publish(events, event)),
        stream: (filter) => filtered(filter)(Stream.fromPubSub(events)),
        subscribe: (filter) =>
          Effect.map(
            PubSub.subscribe(events),
            (subscription) => filtered(filter)(Stream.fromSubscription(subscription))
          )
      })
    })
  )

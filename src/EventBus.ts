/**
 * Who hears what happened. A port: `layerPostgres` reaches subscribers in every process of the database, `layer` those of this one; another
 * implementation can carry events further.
 *
 * Promise: a slow subscriber loses its oldest events and never holds up the runtime. After a crash events may be missing.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as PubSub from "effect/PubSub"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as EventFeed from "./internal/eventFeed.ts"
import { check, checkFields, fieldsOf } from "./internal/words/options.ts"
import * as JobEvent from "./JobEvent.ts"
import { JobStore } from "./JobStore.ts"

/** The events that pass a filter with these tags. */
type Passing<Tag extends JobEvent.Told["_tag"]> = Extract<JobEvent.Told, { readonly _tag: Tag }>

/** Publishes and subscribes to job events. */
export class EventBus extends Context.Service<EventBus, {
  /** Tells of something already committed. Never waits, never fails. */
  readonly publish: (event: JobEvent.JobEvent) => Effect.Effect<void>
  /**
   * Whether anybody would hear of an event published now; without a tag, of any. Left out: always; otherwise events nobody hears are not
   * even made.
   */
  readonly hasSubscribers?: (tag?: JobEvent.JobEvent["_tag"]) => boolean
  /** Events from the moment the stream starts. */
  readonly stream: <Tag extends JobEvent.Told["_tag"] = JobEvent.JobEvent["_tag"]>(
    filter?: JobEvent.Filter<Tag>
  ) => Stream.Stream<Passing<Tag>>
  /**
   * Subscribes at once: what this process publishes after this effect has returned is in the stream; of other processes what is published
   * once they have heard of it, a moment later.
   */
  readonly subscribe: <Tag extends JobEvent.Told["_tag"] = JobEvent.JobEvent["_tag"]>(
    filter?: JobEvent.Filter<Tag>
  ) => Effect.Effect<Stream.Stream<Passing<Tag>>, never, Scope.Scope>
}>()("millrace/EventBus") {}

/** How a bus is made. */
export interface Options {
  /** How many events a slow subscriber may lag behind. Default 4096. */
  readonly capacity?: number
}

/** How many events a slow subscriber may lag behind. Wrong options are a mistake of the program and throw a `RangeError` that names the field. */
const capacityOf = (where: string, options: Options): number => {
  checkFields(where, options, ["capacity"])
  const { capacity = 4096 } = options
  check(Number.isInteger(capacity) && capacity >= 1, where, "capacity", "an integer from 1 on", capacity)
  return capacity
}

const filterFields = fieldsOf<JobEvent.Filter>({
  tags: true,
  jobId: true,
  type: true,
  queue: true,
  tenantId: true
})

/** Subscribers of this process. */
const makeLocal = (capacity: number) =>
  Effect.gen(function*() {
    const told = yield* PubSub.sliding<JobEvent.Told>(capacity)
    const counts = { ends: 0, all: 0 }
    const counted = (interest: JobEvent.Interest) =>
      Effect.acquireRelease(Effect.sync(() => counts[interest]++), () => Effect.sync(() => counts[interest]--))

    return {
      deliver: (one: JobEvent.Told) => Effect.asVoid(PubSub.publish(told, one)),
      hasSubscribers: (tag?: JobEvent.JobEvent["_tag"]) =>
        counts.all > 0 || (counts.ends > 0 && (tag === undefined || JobEvent.isOf("ends", tag))),
      subscribe: <Tag extends JobEvent.Told["_tag"]>(filter: JobEvent.Filter<Tag> = {}) => {
        // A misspelt `tenantId` would let the events of all tenants pass.
        checkFields("EventBus", filter, filterFields, "filter")
        return Effect.map(
          Effect.andThen(counted(JobEvent.interestOf(filter)), PubSub.subscribe(told)),
          (subscription) => Stream.filter(Stream.fromSubscription(subscription), JobEvent.matches(filter))
        )
      }
    }
  })

/** Events within this process, for subscribers of this process. */
export const layer = (options: Options = {}): Layer.Layer<EventBus> =>
  Layer.effect(
    EventBus,
    Effect.map(makeLocal(capacityOf("EventBus.layer", options)), ({ deliver, hasSubscribers, subscribe }) =>
      EventBus.of({
        publish: deliver,
        hasSubscribers,
        stream: (filter) => Stream.unwrap(subscribe(filter)),
        subscribe
      }))
  )

/**
 * Events of all processes on this database and schema, for subscribers in any of them. Those of other processes come by `NOTIFY`, batched,
 * and are sent only while somebody wants them; of their failures they bring class, tag and the beginning of the message, the job's status
 * has the rest. Who subscribes with the tag `Missed` is told of gaps.
 *
 * Holds one connection of the store's pool from the first event or subscriber on, the one that a runtime listens on anyway.
 */
export const layerPostgres = (options: Options = {}): Layer.Layer<EventBus, never, JobStore> => {
  const capacity = capacityOf("EventBus.layerPostgres", options)
  return Layer.effect(
    EventBus,
    Effect.gen(function*() {
      const local = yield* makeLocal(capacity)
      const feed = yield* EventFeed.make(yield* JobStore, local.deliver)
      const subscribe = <Tag extends JobEvent.Told["_tag"] = JobEvent.JobEvent["_tag"]>(
        filter?: JobEvent.Filter<Tag>
      ) => Effect.tap(local.subscribe(filter), () => feed.want(JobEvent.interestOf(filter)))
      return EventBus.of({
        publish: (event) =>
          Effect.suspend(() => {
            feed.publish(event)
            return local.hasSubscribers(event._tag) ? local.deliver(event) : Effect.void
          }),
        hasSubscribers: (tag) => {
          const isWanted = feed.isWanted(tag)
          return isWanted || local.hasSubscribers(tag)
        },
        stream: (filter) => Stream.unwrap(subscribe(filter)),
        subscribe
      })
    })
  )
}

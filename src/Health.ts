/**
 * How this process stands, for probes and people: whether it should be given work, and whether a restart would help.
 *
 * Promise: answers at once and never fails, whatever the database does. It watches every two seconds, so an answer may be as old as that.
 * A crash leaves nothing: no answer is one too.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import type * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import * as HealthState from "./internal/healthState.ts"
import { Hosts } from "./internal/hosts.ts"
import { Owners } from "./internal/owners.ts"
import { partitionsOf, Queues } from "./internal/queues.ts"
import * as RunWatch from "./internal/runWatch.ts"
import * as Shortages from "./internal/shortages.ts"
import { monotonicMillis, onLiveClock } from "./internal/time/liveClock.ts"
import { Unserved } from "./internal/unserved.ts"
import { JobStore } from "./JobStore.ts"

export { State, Status } from "./internal/healthState.ts"

/** Says how this process stands. */
export class Health extends Context.Service<Health, {
  readonly status: Effect.Effect<HealthState.Status>
  /** The status now, and each time it has changed. */
  readonly changes: Stream.Stream<HealthState.Status>
}>()("millrace/Health") {}

const interval = "2 seconds"

/** Watches a process of this kind. `isDraining`: whether it has been told to leave. */
export const layer = (options: {
  readonly kind: HealthState.Kind
  readonly isDraining: () => boolean
}): Layer.Layer<Health, never, JobStore | Owners | Queues | Hosts | Unserved> =>
  Layer.effect(
    Health,
    Effect.gen(function*() {
      const store = yield* JobStore
      const owners = yield* Owners
      const queues = yield* Queues
      const hosts = yield* Hosts
      const unserved = yield* Unserved
      const runWatch = yield* RunWatch.Current
      const startedAt = monotonicMillis()
      let watchedAt = startedAt
      let isAnswering: boolean | undefined
      let hasOwned = false

      const shortages = Shortages.make()

      const signs = Effect.map(store.shortage, (shortage): HealthState.Signs => {
        const now = monotonicMillis()
        const hosted = queues.declared.filter(({ row }) => hosts.isHere(row.shardGroup))
        const partitions = hosted.flatMap(partitionsOf)
        const owned = partitions.filter((address) => owners.reach(address) === "here").length
        hasOwned ||= owned > 0
        return {
          kind: options.kind,
          isAnswering,
          isDraining: options.isDraining(),
          hasOwned,
          sinceStartMs: now - startedAt,
          sinceWatchMs: now - watchedAt,
          owned,
          declared: partitions.length,
          isShared: hosted.every(({ row }) => hosts.isElsewhere(row.shardGroup)),
          unserved: unserved.reasons(),
          runs: runWatch.reasons(),
          isStuck: runWatch.isStuck(),
          shortage
        }
      })
      const look = Effect.map(signs, HealthState.statusOf)

      const current = yield* SubscriptionRef.make(yield* look)
      const watch = Effect.gen(function*() {
        isAnswering = yield* store.queues.pipe(Effect.timeout(interval), Effect.isSuccess)
        watchedAt = monotonicMillis()
        const seen = yield* signs
        if (HealthState.isAtWork(seen)) yield* shortages.tell(HealthState.shortageOf(seen.shortage))
        const status = HealthState.statusOf(seen)
        if (!HealthState.isSame(status, SubscriptionRef.getUnsafe(current))) yield* SubscriptionRef.set(current, status)
      })
      yield* watch.pipe(
        Effect.repeat(Schedule.spaced(interval)),
        onLiveClock,
        Effect.withTracerEnabled(false),
        Effect.forkScoped
      )

      return Health.of({ status: look, changes: SubscriptionRef.changes(current) })
    })
  )

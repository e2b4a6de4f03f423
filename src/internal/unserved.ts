/**
 * Queues whose jobs wait because nobody who is there runs them, and a runner that gets none because it is not reached: the one place that
 * knows. It warns in the log, and tells Health.
 *
 * Nothing depends on it: a crash leaves nothing behind, and whoever starts next finds the same.
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import { capitalize } from "effect/String"
import * as JobQueue from "../JobQueue.ts"
import { JobStore } from "../JobStore.ts"
import { Hosts } from "./hosts.ts"
import { Owners } from "./owners.ts"
import { type KnownQueue, partitionsOf, Queues } from "./queues.ts"
import { onLiveClock } from "./time/liveClock.ts"

/** Knows them. */
export class Unserved extends Context.Service<Unserved, {
  /** Of each of them why, and what to do: in words that stay the same as long as it is so. */
  readonly reasons: () => ReadonlyArray<string>
}>()("millrace/internal/Unserved") {}

/** How often it looks. What two looks in a row find is told: by then who was starting, or was to get a partition, has had time for it. */
export const LookEvery = Context.Reference<Duration.Input>("millrace/internal/unserved/LookEvery", {
  defaultValue: () => "5 seconds"
})

/** What looks have found. */
export interface Found {
  readonly last: ReadonlyArray<string>
  /** What the look before had found, too. */
  readonly standing: ReadonlyArray<string>
  /** What stands since the last look: each time that it comes back. */
  readonly begun: ReadonlyArray<string>
}

export const nothing: Found = { last: [], standing: [], begun: [] }

/** After one more look. */
export const afterLook = (before: Found, last: ReadonlyArray<string>): Found => {
  const standing = last.filter((reason) => before.last.includes(reason))
  return { last, standing, begun: standing.filter((reason) => !before.standing.includes(reason)) }
}

const unhosted = ({ row: { group, name } }: KnownQueue) =>
  `no runner that is alive hosts the group "${group}" of the queue "${name}": its jobs wait until one does. Give runners that declare it ` +
  `\`groups\` with "${group}" among them (MILLRACE_RUNNER_GROUPS)`

const undeclared = ({ row: { name, partitions } }: KnownQueue) =>
  `jobs wait in the queue "${name}", and this process, which owns ${
    partitions === 1 ? "it" : "a part of it"
  }, does not declare it: ` +
  "give it to the runtime as one of its `queues`, with the handlers of its jobs. If it is another program's, give it a `group` of its own " +
  "there, and that group to the runners of that program alone (`groups`, MILLRACE_RUNNER_GROUPS)"

const unreached = (at: string) =>
  `runners that ask this one at ${at} whether it is alive get no answer, and so it gets no partitions: all of them have to reach it there ` +
  "(`host` and `port`, MILLRACE_RUNNER_HOST and _PORT; where it listens; firewalls), with the same `transport` (MILLRACE_RUNNER_TRANSPORT)"

/** Of a process that only submits: whom its jobs wait for is the workers' to say. */
export const layerClient: Layer.Layer<Unserved> = Layer.succeed(Unserved, Unserved.of({ reasons: () => [] }))

/** Looks, and warns of each once, until it comes back. */
export const layer: Layer.Layer<Unserved, never, JobStore | Owners | Queues | Hosts> = Layer.effect(
  Unserved,
  Effect.gen(function*() {
    const store = yield* JobStore
    const owners = yield* Owners
    const queues = yield* Queues
    const hosts = yield* Hosts
    const every = yield* LookEvery
    let found = nothing

    const hasWaiting = Effect.fnUntraced(function*({ row: { queueId } }: KnownQueue, partitions: Iterable<number>) {
      for (const partition of partitions) {
        const depth = yield* store.depth({ queueId, partition }, 1)
        if (depth.some((count) => count > 0)) return true
      }
      return false
    })

    const isUnhosted = (known: KnownQueue) => {
      const { row: { partitions, shardGroup } } = known
      if (hosts.isHere(shardGroup) || hosts.isElsewhere(shardGroup)) return Effect.succeed(false)
      // Every program has this one: only who uses it misses a runner for it.
      return known.queue === JobQueue.fallback ? hasWaiting(known, Array(partitions).keys()) : Effect.succeed(true)
    }

    // Shards are given to runners whatever queues they declare.
    const isUndeclared = (known: KnownQueue) =>
      hasWaiting(
        known,
        partitionsOf(known).filter((address) => owners.reach(address) === "here").map(({ partition }) => partition)
      )

    const look = Effect.gen(function*() {
      const reasons: Array<string> = []
      const at = hosts.unreachedAt()
      if (at !== undefined) reasons.push(unreached(at))
      for (const name of yield* queues.names) {
        const known = Option.getOrUndefined(yield* queues.byName(name))
        if (known?.isDeclared === true && (yield* isUnhosted(known))) reasons.push(unhosted(known))
        if (known?.isDeclared === false && (yield* isUndeclared(known))) reasons.push(undeclared(known))
      }
      const next = afterLook(found, reasons)
      yield* Effect.forEach(next.begun, (reason) => Effect.logWarning(capitalize(reason)), { discard: true })
      found = next
    })
    yield* Effect.ignore(look).pipe(
      Effect.repeat(Schedule.spaced(every)),
      Effect.delay(every),
      onLiveClock,
      Effect.withTracerEnabled(false),
      Effect.forkScoped
    )

    return Unserved.of({ reasons: () => found.standing })
  })
)

/** Of the groups that a runner hosts those that none of its queues is in: most likely the name of another was meant. */
export const warnOfIdle = (groups: ReadonlyArray<string>): Effect.Effect<void, never, Queues> =>
  Effect.flatMap(Queues, ({ declared }) =>
    Effect.forEach(
      groups.filter((group) => declared.every(({ row }) => row.group !== group)),
      (group) =>
        Effect.logWarning(
          `This runner hosts the group "${group}" (\`groups\`, MILLRACE_RUNNER_GROUPS), and declares no queue that is in it`
        ),
      { discard: true }
    ))

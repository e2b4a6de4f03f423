/**
 * What this process knows of handlers that do not end: which abandoned ones still run, and which run far longer than their type usually does.
 *
 * Promise: bounded memory, and words that change only with what they say. A crash ends those handlers, and this knowledge with them.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { JobId } from "../JobId.ts"
import type { ReadyJob } from "../JobStore.ts"
import type { Run } from "./run.ts"
import { liveClock } from "./time/liveClock.ts"

/** A run as far as its duration goes. */
type Timed = Pick<Run, "startedLive" | "isAttempting"> & {
  readonly job: Pick<ReadyJob, "id" | "type">
  readonly handler: Pick<Run["handler"], "timeoutMs">
}

/** One partition of the process. */
export interface Member {
  readonly queue: string
  /** How many handlers it runs at once. */
  readonly concurrency: number
  /** Its runs, in the order of their starts. */
  readonly runs: () => Iterable<Timed>
}

/** An abandoned run. */
export interface Abandoned {
  /** How many of its type and queue still run. */
  readonly running: () => number
  /** Its handler has ended. */
  readonly ended: () => void
}

/** What a run belongs to. */
type Origin = Pick<ReadyJob, "id" | "type" | "tenant" | "standing">

/** The runs of a process, one of these a runtime. */
export interface RunWatch {
  /** The answer takes it out again. */
  readonly join: (member: Member) => () => void
  /** A handler without a timeout has ended. */
  readonly ended: (type: string, ranMs: number) => void
  readonly abandon: (queue: string, job: Origin) => Abandoned
  /** An abandoned run of the same job, or of the same key of its tenant, that still runs. */
  readonly alongside: (queue: string, job: Origin) => JobId | undefined
  /** Which handlers do not end, in words. */
  readonly reasons: () => ReadonlyArray<string>
  /** Whether only a restart ends what hangs: so many handlers were abandoned. */
  readonly isStuck: () => boolean
}

interface Hanging {
  readonly queue: string
  readonly id: JobId
  readonly type: string
  readonly line: string | undefined
}

/** The last times that handlers of one type took. */
interface Recent {
  readonly times: Array<number>
  next: number
}

/** So many abandoned handlers for each that may run at once are what a process can carry. */
const mostPerPlace = 3
const recentTimes = 32
const maxTypes = 1_000
/** Longer than the slowest of the recent ones by this factor, and at least for so long: a handler does not do that by chance. */
const farFactor = 10
const farMs = 30_000
/** For a type that was never seen to end. */
const farUnknownMs = 3_600_000

const minute = 60_000
const hour = 60 * minute
const day = 24 * hour
const steps: ReadonlyArray<readonly [millis: number, words: string]> = [
  [100, "100 ms"],
  [200, "200 ms"],
  [500, "500 ms"],
  ...[1, 2, 3, 5, 10, 20, 30].map((count) => [count * 1_000, `${count} s`] as const),
  ...[1, 2, 3, 5, 10, 20, 30].map((count) => [count * minute, `${count} min`] as const),
  ...[1, 2, 3, 6, 12].map((count) => [count * hour, `${count} h`] as const)
]

/** Coarse, and never more than it was: who follows the status gets each change of its words. */
const roughly = (millis: number): string => {
  if (millis >= day) {
    const days = 2 ** Math.floor(Math.log2(millis / day))
    return `${days} d`
  }
  return steps.findLast(([least]) => least <= millis)?.[1] ?? "less than 100 ms"
}

/** Nothing runs yet. `now`: milliseconds by the clock that runs are started by. */
export const make = (now: () => number = () => liveClock.currentTimeMillisUnsafe()): RunWatch => {
  const members = new Set<Member>()
  const hanging = new Set<Hanging>()
  const recents = new Map<string, Recent>()
  /** The most that a queue has run at once here. */
  const places = new Map<string, number>()
  /** What is usual of types that were found to run for long, for as long as they do: it would change with each that ends. */
  let usual = new Map<string, string>()

  const lineOf = ({ standing, tenant }: Origin) => standing === undefined ? undefined : `${tenant}\n${standing.key}`

  const slowestOf = (type: string): number | undefined => {
    const recent = recents.get(type)
    return recent === undefined ? undefined : Math.max(...recent.times)
  }

  const countOf = (type: string, queue: string) => {
    let count = 0
    for (const one of hanging) if (one.type === type && one.queue === queue) count++
    return count
  }

  const isFull = (queue: string, count: number) => count >= mostPerPlace * (places.get(queue) ?? 1)

  const stuck = (): ReadonlyArray<string> => {
    const counts = new Map<string, number>()
    for (const { queue } of hanging) counts.set(queue, (counts.get(queue) ?? 0) + 1)
    return [...counts].filter(([queue, count]) => isFull(queue, count)).map(([queue]) => queue)
  }

  const abandonedReasons = (): ReadonlyArray<string> => {
    const counts = new Map<string, number>()
    for (const { queue, type } of hanging) {
      const name = `${type} of the queue ${queue}`
      counts.set(name, (counts.get(name) ?? 0) + 1)
    }
    return [...counts].map(([name, count]) =>
      `${count} abandoned ${count === 1 ? "handler" : "handlers"} of ${name} still ${
        count === 1 ? "runs" : "run"
      }: each was interrupted and did not end. Let them be interruptible, or give what it calls a timeout`
    )
  }

  const longReasons = (): ReadonlyArray<string> => {
    const at = now()
    const longest = new Map<string, number>()
    for (const { runs } of members) {
      for (const { handler, isAttempting, job: { type }, startedLive } of runs()) {
        const ran = at - startedLive
        // Those behind it have started later.
        if (ran < farMs) break
        if (!isAttempting || handler.timeoutMs !== undefined || ran <= (longest.get(type) ?? 0)) continue
        const slowest = slowestOf(type)
        if (slowest === undefined ? ran >= farUnknownMs : ran > farFactor * slowest) longest.set(type, ran)
      }
    }
    const before = usual
    usual = new Map()
    return [...longest].map(([type, ran]) => {
      const slowest = slowestOf(type)
      const words = before.get(type) ??
        (slowest === undefined ? "never seen to end here" : `usually ${roughly(slowest)}`)
      usual.set(type, words)
      return `${type} has been running for ${
        roughly(ran)
      }, ${words}: cancel the job if it hangs, and give its type a timeout`
    })
  }

  return {
    join: (member) => {
      members.add(member)
      let sum = 0
      for (const { concurrency, queue } of members) if (queue === member.queue) sum += concurrency
      places.set(member.queue, Math.max(places.get(member.queue) ?? 0, sum))
      return () => void members.delete(member)
    },
    ended: (type, ranMs) => {
      const recent = recents.get(type)
      if (recent !== undefined) {
        recent.times[recent.next] = ranMs
        recent.next = (recent.next + 1) % recentTimes
        return
      }
      const [oldest] = recents.keys()
      if (recents.size >= maxTypes && oldest !== undefined) recents.delete(oldest)
      recents.set(type, { times: [ranMs], next: 1 })
    },
    abandon: (queue, job) => {
      const one: Hanging = { queue, id: job.id, type: job.type, line: lineOf(job) }
      hanging.add(one)
      return { running: () => countOf(one.type, queue), ended: () => void hanging.delete(one) }
    },
    alongside: (queue, job) => {
      if (hanging.size === 0) return undefined
      const line = lineOf(job)
      for (const one of hanging) {
        if (one.id === job.id || (line !== undefined && one.line === line && one.queue === queue)) return one.id
      }
      return undefined
    },
    reasons: () => [
      ...abandonedReasons(),
      ...stuck().map((queue) =>
        `abandoned handlers of the queue ${queue} are ${mostPerPlace} times as many as it runs at once: a restart ends those that never end by themselves`
      ),
      ...longReasons()
    ],
    isStuck: () => stuck().length > 0
  }
}

/** That of this runtime. */
export const Current = Context.Reference<RunWatch>("millrace/internal/RunWatch", { defaultValue: () => make() })

/** A runtime's own. */
export const layer: Layer.Layer<never> = Layer.effect(Current, Effect.sync(() => make()))

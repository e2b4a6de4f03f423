/**
 * A cluster that runs one queue, as discrete events: jobs arrive, runners come and go, shards move as the settings let them, and each start
 * is written down with how long it waited.
 *
 * What it leaves out stands in README.md.
 */
import type { Dice } from "../chaos/Seed.ts"
import * as Inputs from "./inputs.ts"
import { assign, shardOf } from "./placement.ts"

export interface Options {
  readonly dice: Dice
  readonly runners: number
  readonly partitions: number
  /** Handlers at once, in all. */
  readonly concurrency: number
  /** Jobs a second, over all partitions. */
  readonly rate: number
  /** The part of them that falls into partition 0 beyond its fair share: all jobs of one key or tenant. */
  readonly hot?: number
  /** How long a handler takes without the processor, and with it. */
  readonly handlerMs: number
  readonly nodeMicros: number
  readonly joinDebounce?: number
  readonly forMs: number
}

interface Partition {
  /** When the jobs that wait arrived. */
  readonly waiting: Array<number>
  /** When those that run arrived. */
  readonly running: Map<number, number>
  readonly slots: number
  shard: Shard
}

interface Shard {
  readonly partitions: Array<Partition>
  /** Who holds the lock; and until when nobody else gets it, though the holder is dead or frozen. */
  owner: number | undefined
  lockedUntil: number
  /** Whose it should be. */
  target: number
  isServed: boolean
  /** Since when it is not served. */
  since: number
}

/** A start: when, and how long the job had waited. */
export interface Start {
  readonly at: number
  readonly waited: number
}

export interface Outcome {
  readonly starts: ReadonlyArray<Start>
  /** Jobs that still wait. */
  readonly backlog: number
  /** Jobs that ran when their runner died. */
  readonly crashed: number
  /** How long a shard that moved was not served, each time. */
  readonly stalls: ReadonlyArray<number>
}

export type Fault = "kill" | "freeze" | "stop" | "join"

/** Runs it, with these faults. `runner` is a number; those from 0 are there at the start. */
export const simulate = (
  options: Options,
  faults: ReadonlyArray<{ readonly at: number; readonly fault: Fault; readonly runner: number }> = []
): Outcome => {
  const { concurrency, dice, forMs, handlerMs, hot = 0, joinDebounce = 0, nodeMicros, rate } = options
  const { timing } = Inputs

  /** What is going to happen, the next one last. There are never many: jobs that run, and the next that arrives. */
  const events: Array<{ readonly at: number; readonly run: () => void }> = []
  let now = 0
  const after = (millis: number, run: () => void) => {
    const at = now + millis
    events.splice(events.findLastIndex((event) => event.at > at) + 1, 0, { at, run })
  }

  // ---------------------------------------------------------------------------------------------- the cluster at its start

  const members = new Set(Array.from({ length: options.runners }, (_, runner) => runner))
  const dead = new Set<number>()
  const freeAt = new Map<number, number>()
  const shards: Array<Shard> = assign(members, Inputs.shards).map((owner) => ({
    partitions: [],
    owner,
    lockedUntil: 0,
    target: owner,
    isServed: true,
    since: 0
  }))
  const partitions = Array.from({ length: options.partitions }, (_, index): Partition => {
    const shard = shards[shardOf("jobs", index, Inputs.shards)]!
    const slots = Math.floor(concurrency / options.partitions) + (index < concurrency % options.partitions ? 1 : 0)
    const partition = { waiting: [], running: new Map<number, number>(), slots, shard }
    shard.partitions.push(partition)
    return partition
  })

  // ---------------------------------------------------------------------------------------------- jobs

  const starts: Array<Start> = []
  const stalls: Array<number> = []
  let crashed = 0
  let jobs = 0

  const dispatch = (partition: Partition) => {
    const { shard } = partition
    const { owner } = shard
    if (owner === undefined || !shard.isServed) return
    while (partition.running.size < partition.slots && partition.waiting.length > 0) {
      const arrived = partition.waiting.shift()!
      // One thread of JavaScript: jobs of all partitions of a runner take turns on it.
      const begins = Math.max(now, freeAt.get(owner) ?? 0)
      freeAt.set(owner, begins + nodeMicros / 1_000)
      const job = jobs++
      partition.running.set(job, arrived)
      starts.push({ at: begins, waited: begins - arrived })
      after(begins - now + nodeMicros / 1_000 + handlerMs, () => {
        if (!partition.running.delete(job)) return
        dispatch(partition)
        release(shard)
      })
    }
  }

  const arrive = () => {
    const index = dice.next() < hot ? 0 : dice.between(0, partitions.length - 1)
    const partition = partitions[index]!
    partition.waiting.push(now)
    dispatch(partition)
    after(-Math.log(1 - dice.next()) * 1_000 / rate, arrive)
  }

  // ---------------------------------------------------------------------------------------------- shards that move

  /** Lets go of a shard that starts nothing more, once nothing of it runs. */
  const release = (shard: Shard) => {
    if (shard.owner === undefined || shard.isServed) return
    if (shard.partitions.every(({ running }) => running.size === 0)) shard.owner = undefined
  }

  const stop = (shard: Shard) => {
    if (shard.isServed) shard.since = now
    shard.isServed = false
  }

  /** Tries for a lock until it has it, or it should be another's. */
  const acquire = (shard: Shard, runner: number) => {
    if (shard.target !== runner || dead.has(runner) || shard.isServed) return
    if (shard.owner !== undefined || now < shard.lockedUntil) {
      return after(timing.acquisition, () => acquire(shard, runner))
    }
    shard.owner = runner
    after(Inputs.takeOverMs, () => {
      if (shard.owner !== runner || dead.has(runner)) return
      shard.isServed = true
      if (shard.partitions.length > 0) stalls.push(now - shard.since)
      shard.partitions.forEach(dispatch)
      if (shard.target !== runner) leave(shard)
    })
  }

  const leave = (shard: Shard) => {
    if (shard.owner === shard.target || !shard.isServed) return
    stop(shard)
    release(shard)
  }

  /** Every runner learns by itself who is there, when it looks next. */
  const changed = () => {
    const looks = new Map([...members, ...shards.map(({ owner }) => owner ?? -1)].map((runner) => [
      runner,
      dice.next() * timing.assignments
    ]))
    assign(members, Inputs.shards).forEach((target, index) => {
      const shard = shards[index]!
      if (shard.target === target) return
      shard.target = target
      if (shard.owner !== undefined && !dead.has(shard.owner)) {
        // Who leaves knows it at once.
        after(members.has(shard.owner) ? looks.get(shard.owner) ?? 0 : 0, () => leave(shard))
      }
      after(looks.get(target) ?? 0, () => tryFor(shard, target))
    })
  }

  /** It tries while the owner before still serves, too. */
  const tryFor = (shard: Shard, runner: number) => {
    if (shard.target !== runner || (shard.owner === runner && shard.isServed)) return
    if (shard.isServed) after(timing.acquisition, () => tryFor(shard, runner))
    else acquire(shard, runner)
  }

  // ---------------------------------------------------------------------------------------------- faults

  /** Who has come and waits for others to come, too, before shards move. */
  const pending = new Set<number>()
  let quietSince = 0

  const publish = () => {
    pending.forEach((runner) => members.add(runner))
    pending.clear()
    changed()
  }

  const gone = (runner: number) => {
    if (members.delete(runner)) publish()
  }

  const come = (runner: number) => {
    pending.add(runner)
    quietSince = now
    after(joinDebounce, () => {
      if (pending.has(runner) && now - quietSince >= joinDebounce) publish()
    })
  }

  const die = (runner: number, lockedFor: number) => {
    dead.add(runner)
    for (const shard of shards.filter(({ owner }) => owner === runner)) {
      stop(shard)
      shard.owner = undefined
      shard.lockedUntil = now + lockedFor
      for (const { running, waiting } of shard.partitions) {
        crashed += running.size
        waiting.unshift(...running.values())
        running.clear()
      }
    }
  }

  /** When the others know. One of them asks all; if that is the one that died, its silence tells. */
  const noticedAfter = (answers: number) => {
    const silence = timing.lockExpiration - dice.next() * timing.lockRefresh
    const asked = dice.next() * timing.health + answers
    return dice.next() * members.size < 1 ? silence : Math.min(asked, silence)
  }

  const inject: Record<Fault, (runner: number) => void> = {
    kill: (runner) => {
      die(runner, 0)
      after(noticedAfter(0), () => gone(runner))
    },
    freeze: (runner) => {
      die(runner, timing.lockExpiration - dice.next() * timing.lockRefresh)
      after(noticedAfter(timing.ping), () => gone(runner))
    },
    stop: gone,
    join: (runner) => after(Inputs.startupMs, () => come(runner))
  }
  for (const { at, fault, runner } of faults) after(at, () => inject[fault](runner))

  after(0, arrive)
  for (let event = events.pop(); event !== undefined && event.at <= forMs; event = events.pop()) {
    now = event.at
    event.run()
  }
  return { starts, backlog: partitions.reduce((sum, { waiting }) => sum + waiting.length, 0), crashed, stalls }
}

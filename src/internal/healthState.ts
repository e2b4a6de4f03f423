/**
 * What a process's signs of life mean: pure, the one place that decides between the states of `Health`.
 */
import * as Schema from "effect/Schema"
import type { Shortage } from "../JobStore.ts"

/**
 * `starting`: not known yet whether it can work. `running`: it runs jobs, or submits them where it only does that. `standby`: another process
 * owns the queues, this one takes over when that is gone. `draining`: it finishes what it runs and starts nothing more. `troubled`: the
 * database does not answer, or handlers get no connection to it; nothing is lost, and it goes on by itself.
 */
export const State = Schema.Literals(["starting", "running", "standby", "draining", "troubled"])

/** See `State`. */
export type State = typeof State.Type

/** How the process stands. */
export const Status = Schema.Struct({
  state: State,
  /** For a readiness probe: it has joined and can reach the database. A process that stands by is ready, or a deploy would wait for ever. */
  isReady: Schema.Boolean,
  /**
   * For a liveness probe: a process is not that does not get to its own watch any more, or in which three times as many abandoned handlers
   * still run as a queue of it runs at once: only a restart ends those. What the database does never counts.
   */
  isLive: Schema.Boolean,
  /** Why it is not running, what keeps jobs of its queues waiting although it is, and which handlers do not end, in words. */
  reasons: Schema.Array(Schema.String),
  /** How many partitions of its queues this process owns, and how many there are. A runner counts those of the groups that it hosts. */
  owned: Schema.Int,
  declared: Schema.Int
})

/** How the process stands. */
export type Status = typeof Status.Type

/** `single`: it owns all queues or stands by. `cluster`: a runner, which may own none. `client`: it only submits. */
export type Kind = "single" | "cluster" | "client"

/** What is known of a process. */
export interface Signs {
  readonly kind: Kind
  /** Whether the database has answered the last question; `undefined` before the first. */
  readonly isAnswering: boolean | undefined
  readonly isDraining: boolean
  /** Whether it has ever owned a partition. */
  readonly hasOwned: boolean
  readonly sinceStartMs: number
  /** Since its watch last came to its end. */
  readonly sinceWatchMs: number
  readonly owned: number
  readonly declared: number
  /** Whether others that are alive may own them just as well. */
  readonly isShared: boolean
  /** Why jobs of which queue wait that nobody runs. */
  readonly unserved: ReadonlyArray<string>
  /** Which handlers do not end. */
  readonly runs: ReadonlyArray<string>
  /** Whether so many abandoned handlers still run that only a restart ends them. */
  readonly isStuck: boolean
  readonly shortage: Shortage
}

/** By then whoever can have partitions has some: what is left stands by, or is one runner of many. */
const settledMs = 5_000
/** Handlers that wait for a connection so long are not merely taking turns. */
const shortMs = 5_000
/** A watch asks every two seconds and waits as long for an answer. So late it is stuck, and with it everything else. */
const stuckMs = 30_000

/** Whether it is known to run jobs: only then does it say something that handlers get no connection. */
export const isAtWork = ({ isAnswering, isDraining, kind, owned }: Signs): boolean =>
  !isDraining && isAnswering === true && kind !== "client" && owned > 0

/** Why handlers get no connection, and what to do. Without figures that change: whoever follows the status would be told of each. */
export const shortageOf = ({ refused, waitedMs }: Shortage): string | undefined => {
  if (refused !== undefined && refused.forMs >= shortMs) {
    return `the server refuses handlers further connections (${refused.because}): jobs wait, and go on when it has some again. Raise ` +
      "its max_connections, or lower maxConnections of the processes that use it"
  }
  if (waitedMs < shortMs) return undefined
  return `handlers have waited for a connection for more than ${
    shortMs / 1_000
  } seconds: jobs wait, and go on when there is one. Raise ` +
    "maxConnections of the pool, lower the concurrency of the queues, or find out who keeps its connections"
}

const stateOf = (signs: Signs): readonly [Status["state"], ReadonlyArray<string>] => {
  const { declared, hasOwned, isAnswering, isDraining, kind, sinceStartMs } = signs
  if (isDraining) return ["draining", ["it was told to leave: running jobs end, nothing more is started"]]
  if (isAnswering === undefined) return ["starting", ["the database has not been asked yet"]]
  if (!isAnswering) return ["troubled", ["the database does not answer: jobs wait, and go on when it does"]]
  if (kind === "client") return ["running", []]
  if (isAtWork(signs)) {
    const shortage = shortageOf(signs.shortage)
    return shortage === undefined ? ["running", []] : ["troubled", [shortage]]
  }
  if (kind === "cluster" && declared === 0) {
    return ["running", [
      "it hosts no group that a queue which it declares is in: see `groups` (MILLRACE_RUNNER_GROUPS)"
    ]]
  }
  if (!hasOwned && sinceStartMs < settledMs) return ["starting", [`it owns none of ${declared} partitions yet`]]
  return kind === "single"
    ? ["standby", ["another process owns the queues, or their locks are being acquired: it takes over when it can"]]
    // The locks of one that has died last a while longer than it counts as alive.
    : ["running", [
      signs.isShared
        ? `other runners own all of ${declared} partitions`
        : `it owns none of ${declared} partitions yet: locks are being acquired`
    ]]
}

/** What they mean. */
export const statusOf = (signs: Signs): Status => {
  const [state, reasons] = stateOf(signs)
  const isWatching = signs.sinceWatchMs < stuckMs
  const isLive = isWatching && !signs.isStuck
  return {
    state,
    isReady: isLive && (state === "running" || state === "standby"),
    isLive,
    reasons: [
      ...reasons,
      ...(state === "running" ? signs.unserved : []),
      ...signs.runs,
      ...(isWatching ? [] : ["its own watch is stuck: the event loop is blocked, or starved"])
    ],
    owned: signs.owned,
    declared: signs.declared
  }
}

/** Whether two say the same. */
export const isSame = (left: Status, right: Status): boolean =>
  left.state === right.state && left.isReady === right.isReady && left.isLive === right.isLive &&
  left.owned === right.owned && left.declared === right.declared && left.reasons.join() === right.reasons.join()

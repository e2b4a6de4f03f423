/**
 * Which faults a run injects, and when: pure, from the seed. What a fault does is in faults.ts.
 */
import * as Schema from "effect/Schema"
import { dice } from "./Seed.ts"

/** What a fault is aimed at. */
type Aim = "runner" | "last runner" | "submitter" | "nothing"

interface Kind {
  readonly weight: number
  readonly aim: Aim
  /** How long it lasts, least and most. */
  readonly forMs?: readonly [number, number]
  readonly modes?: readonly [string, ...ReadonlyArray<string>]
  /** Takes the whole database away: one of these at a time, and time to come back before the next. */
  readonly isOutage?: true
  /** Makes sense only where runners talk to each other and share the queues. */
  readonly needsCluster?: true
  /** The last runner lives in a network of its own. */
  readonly needsNamespace?: true
}

/** Every kind of fault. Weights are relative. */
export const kinds = {
  /** kill -9 of a runner. */
  kill: { weight: 20, aim: "runner" },
  /** SIGTERM to a runner. */
  term: { weight: 20, aim: "runner" },
  /** SIGSTOP, and SIGCONT later: shorter than the lock's expiration, and longer. */
  freeze: { weight: 15, aim: "runner", forMs: [1_000, 12_000] },
  /** A runner's connections to the database are reset. */
  cut: { weight: 10, aim: "runner" },
  /** Nothing passes between a runner and the database, and nobody is told. */
  stall: { weight: 10, aim: "runner", forMs: [3_000, 10_000] },
  /** The same between a runner and its peers. */
  peerCut: { weight: 4, aim: "runner", needsCluster: true },
  peerStall: { weight: 4, aim: "runner", forMs: [3_000, 10_000], needsCluster: true },
  /** The cable of a runner is pulled. */
  unplug: { weight: 10, aim: "last runner", forMs: [3_000, 15_000], needsNamespace: true },
  /** PostgreSQL restarts: in order, or as after a power cut. */
  restart: { weight: 5, aim: "nothing", isOutage: true },
  crash: { weight: 5, aim: "nothing", isOutage: true },
  /** kill -9 of the backend that runs a handler's statement: the server ends all sessions and recovers. */
  backendKill: { weight: 2, aim: "nothing", isOutage: true },
  /** Nobody but the submitters gets a connection, as during a failover. */
  refuse: { weight: 2, aim: "nothing", forMs: [20_000, 20_000], isOutage: true },
  /** pg_terminate_backend of some of the sessions. */
  terminate: { weight: 12, aim: "nothing", modes: ["locks", "handlers", "own", "listen", "starts"] },
  /** A runner's clock is set. */
  clock: { weight: 5, aim: "runner", modes: ["+90000", "-90000"] },
  /** One more runner for a while. */
  join: { weight: 5, aim: "nothing", forMs: [8_000, 20_000] },
  /** A runner is ended in order and comes back with another count of partitions, and so does everybody after it. */
  repartition: { weight: 3, aim: "runner", modes: ["2", "3", "6", "4"], needsCluster: true },
  /** kill -9 of a submitter. */
  killSubmitter: { weight: 5, aim: "submitter" }
} as const satisfies Record<string, Kind>

export type KindName = keyof typeof kinds

/** One fault: `at` milliseconds since the run began. `target` is the number of a runner or submitter. */
export const Fault = Schema.Struct({
  at: Schema.Finite,
  kind: Schema.Literals(Object.keys(kinds) as Array<KindName>),
  target: Schema.Int,
  forMs: Schema.Finite,
  mode: Schema.String
})
export type Fault = typeof Fault.Type

export interface Options {
  readonly seed: number
  /** How long faults are injected. */
  readonly ms: number
  readonly runners: number
  readonly submitters: number
  readonly isCluster: boolean
  readonly hasNamespace: boolean
}

/** Time for the database to come back, and for everybody to notice. */
const recoveryMs = 5_000

/** The schedule of a run: first every kind once, in a random order, then by weight. */
export const schedule = ({ hasNamespace, isCluster, ms, runners, seed, submitters }: Options): ReadonlyArray<Fault> => {
  const { between, next, pick, weighted } = dice(seed, "schedule")
  const possible = Object.entries<Kind>(kinds).flatMap(([name, kind]) =>
    kind.needsCluster === true && !isCluster || kind.needsNamespace === true && !hasNamespace
      ? []
      : [{ name: name as KindName, ...kind }]
  )
  const first = possible.map((kind) => ({ kind, order: next() })).toSorted((a, b) => a.order - b.order)
    .map(({ kind }) => kind)
  const targets: Readonly<Record<Aim, () => number>> = {
    runner: () => between(0, runners - 1),
    "last runner": () => runners - 1,
    submitter: () => between(0, submitters - 1),
    nothing: () => 0
  }
  const faults: Array<Fault> = []
  let databaseIsBack = 0
  for (let at = between(1_500, 4_000); at < ms; at += between(1_500, 4_000)) {
    const isAllowed = ({ isOutage }: Kind) => isOutage !== true || at >= databaseIsBack
    const due = first.findIndex(isAllowed)
    const [kind = weighted(possible.filter(isAllowed))] = due < 0 ? [] : first.splice(due, 1)
    // A short run would be nothing but one long outage.
    const forMs = kind.forMs === undefined ? 0 : Math.min(between(...kind.forMs), Math.round(ms / 8))
    if (kind.isOutage === true) databaseIsBack = at + forMs + recoveryMs
    faults.push({
      at,
      kind: kind.name,
      target: targets[kind.aim](),
      forMs,
      mode: kind.modes === undefined ? "" : pick(kind.modes)
    })
  }
  return faults
}

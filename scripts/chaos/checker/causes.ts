/**
 * What failed during a run, when, and for which runners and jobs: what may end an attempt that is not the handler's own doing.
 */
import type { Entry, Event, Evidence, Row } from "./evidence.ts"
import { isStubborn, slackMs } from "./rules/rule.ts"

/** Something that failed. `runner` and `job`: only there. */
export interface Cause {
  readonly from: number
  readonly to: number
  readonly runner: number | undefined
  readonly job: string | undefined
  /** The job that did it. */
  readonly by: string | undefined
  /** Ends all sessions of the server without a word. */
  readonly isServerKill: boolean
  /** Ends a session, or takes a process or a partition from its owner, without a word: a run may crash of it. */
  readonly isUnclean: boolean
  /** Ends the session of a handler with an error: an attempt may fail of it. */
  readonly isTermination: boolean
}

/** Aimed at one runner. */
const atRunner = new Set(["freeze", "cut", "stall", "peerCut", "peerStall", "unplug"])
/** Hurts all runners. */
const atAll = new Set(["refuse", "terminate", "crash"])
/** Nothing of a runner is touched. */
const elsewhere = new Set(["killSubmitter", "backendKill"])

/** A session that was closed while nothing passed shows when it is used next: from the pool, within so long. */
const aftermathMs = 5_000
const aftermathUnpluggedMs = 60_000

/** An owner whose lock's session is gone learns of it with the next refresh: until then it starts runs, and its successor counts them. */
const losesLocks = new Set(["cut", "terminate"])

const aftermathOf = ({ forMs = 0, kind = "" }: Event): number =>
  kind === "unplug" ? aftermathUnpluggedMs : forMs > 0 || losesLocks.has(kind) ? aftermathMs : 0

const causeOf = (event: Event): Cause | undefined => {
  const { at, by, forMs = 0, is, kind = "", mode, number, target, what } = event
  const nothing = {
    from: at,
    to: at,
    runner: undefined,
    job: undefined,
    by,
    isServerKill: false,
    isUnclean: false,
    isTermination: false
  }
  switch (what) {
    case "runner":
      // It is noted after it had no turn.
      return { ...nothing, from: at - forMs, runner: number, isUnclean: is === "killed" || is === "stood" }
    case "database":
      return { ...nothing, isUnclean: is === "down" }
    case "session":
      return {
        ...nothing,
        job: is === "killed" ? undefined : by,
        isServerKill: is === "killed",
        isUnclean: true,
        isTermination: is === "terminated"
      }
    case "fault":
      return elsewhere.has(kind) ? undefined : {
        ...nothing,
        to: at + forMs + aftermathOf(event),
        runner: atRunner.has(kind) ? target : undefined,
        isServerKill: kind === "crash",
        isUnclean: atRunner.has(kind) || atAll.has(kind),
        isTermination: kind === "terminate" && mode === "handlers"
      }
    default:
      return undefined
  }
}

const known = new WeakMap<Evidence, ReadonlyArray<Cause>>()

/** In the order of their notes; of the monitor's own standstills, too. */
export const causesOf = (evidence: Evidence): ReadonlyArray<Cause> => {
  const before = known.get(evidence)
  if (before !== undefined) return before
  const stood = evidence.samples.flatMap(({ at, stood }) =>
    stood === undefined ? [] : causeOf({ at, what: "runner", is: "stood", forMs: stood }) ?? []
  )
  const all = [...evidence.events.flatMap((event) => causeOf(event) ?? []), ...stood]
  known.set(evidence, all)
  return all
}

/** Those that overlap a time, give or take what clocks differ by. */
export const within = (causes: ReadonlyArray<Cause>, from: number, to: number): ReadonlyArray<Cause> =>
  causes.filter((cause) => cause.to >= from - slackMs && cause.from <= to + slackMs)

/** What may have ended this run of the job. */
export const causesOfRun = (evidence: Evidence) => {
  const causes = causesOf(evidence)
  const startsOf = Map.groupBy(evidence.starts, ({ job }) => job)
  return (row: Row, { endedAt = Number.NaN, startedAt = Number.NaN }: Entry): ReadonlyArray<Cause> => {
    const runners = new Set(
      (startsOf.get(row.id) ?? [])
        .filter(({ at }) => at >= startedAt - slackMs && at <= endedAt + slackMs)
        .map(({ runner }) => runner)
    )
    // A run whose handler had not begun may have been anywhere.
    const isNear = ({ job, runner }: Cause) =>
      (job === undefined || job === row.id) && (runner === undefined || runners.size === 0 || runners.has(runner))
    return within(causes, startedAt, endedAt).filter(isNear)
  }
}

/** Whether a run of the job may crash of it. A handler that cannot be interrupted also outlives a shutdown and a handover. */
export const mayCrash = (row: Row) => ({ isUnclean }: Cause): boolean => isUnclean || isStubborn(row)

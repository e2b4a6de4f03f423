/**
 * Tells of partitions that come and go, and of the end of this process's work: a rebalance is no shutdown, and whoever reads the log sees which
 * of both it is, what is waited for, and how it ended. What moves together is told of together. It decides nothing.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import type * as Scope from "effect/Scope"
import { inWords } from "./time/inWords.ts"
import { monotonicMillis, onLiveClock } from "./time/liveClock.ts"
import { told } from "./told.ts"

/** How running attempts have ended. */
export interface Ended {
  /** By themselves. */
  readonly ended: number
  /** They run again where their partition is owned next. */
  readonly interrupted: number
}

/** A partition that is owned here. */
export interface Member {
  /** Its entity id. */
  readonly entity: string
  /** How many handlers are under way. */
  readonly running: () => number
}

/** Tells of it. */
export interface Moves {
  /** Whether all partitions end with this process. */
  readonly isLeaving: () => boolean
  /** It is owned here now. */
  readonly taken: (member: Member) => Effect.Effect<void>
  /** It is another runner's now. */
  readonly left: (member: Member, ended: Ended) => Effect.Effect<void>
  /** It is nobody's, or another's already: its lock was lost. */
  readonly lost: (member: Member) => void
  /** Wraps the end of all of them. `isTold`: somebody asked for it, and is told so at once. */
  readonly leaving: (end: Effect.Effect<void>, isTold: () => boolean) => Effect.Effect<void>
}

/** What moves within this time is told of in one line. */
const together = "1 second"
/** Most ends are over by then, and there is nothing to tell of. */
const quiet = "500 millis"
const maxNames = 20

const logInfo = (line: string) => told(Effect.logInfo(line))

const counted = (count: number, what: string): string => `${count} ${what}${count === 1 ? "" : "s"}`

/** `documents/4` before `documents/12`. */
const byNumber = new Intl.Collator("en", { numeric: true })

const listed = (entities: ReadonlyArray<string>): string => {
  const names = [...new Set(entities)].sort(byNumber.compare)
  return names.length <= maxNames
    ? names.join(", ")
    : `${names.slice(0, maxNames).join(", ")} and ${names.length - maxNames} more`
}

const sum = (all: Iterable<Ended>): Ended => {
  let [ended, interrupted] = [0, 0]
  for (const one of all) {
    ended += one.ended
    interrupted += one.interrupted
  }
  return { ended, interrupted }
}

/** How jobs ended, for the end of a sentence. */
const outcome = ({ ended, interrupted }: Ended, where: string): string =>
  ended + interrupted === 0
    ? "no job was running"
    : `${counted(ended, "running job")} ended${
      interrupted === 0 ?
        "" :
        `, ${interrupted} ${interrupted === 1 ? "was" : "were"} interrupted and ${
          interrupted === 1 ? "runs" : "run"
        } again ${where}`
    }`

/** Nothing is owned yet. `isClustered`: there are others to move to. */
export const make = (options: {
  readonly graceMs: number
  readonly isClustered: boolean
}): Effect.Effect<Moves, never, Scope.Scope> =>
  Effect.gen(function*() {
    const { graceMs, isClustered } = options
    const members = new Set<Member>()
    const due = Latch.makeUnsafe(false)
    let taken: Array<Member> = []
    let left: Array<readonly [entity: string, Ended]> = []
    let isLeaving = false
    /** What was running when the process began to leave: some of it ends before its partition has begun to. */
    let runningBefore: ReadonlyMap<Member, number> = new Map()

    const tell = Effect.suspend(() => {
      const came = new Set(taken.map(({ entity }) => entity))
      const stayed = taken.filter((member) => members.has(member)).map(({ entity }) => entity)
      // Runners that start at once take and give back: what nobody has been told to be here, and no job ran in, is no move.
      const went = left.filter(([entity, { ended, interrupted }]) => ended + interrupted > 0 || !came.has(entity))
      taken = []
      left = []
      return Effect.all([
        stayed.length === 0 ? Effect.void : logInfo(`Taken over: ${listed(stayed)}`),
        went.length === 0 ? Effect.void : logInfo(
          `Moved to other runners: ${listed(went.map(([entity]) => entity))}; ${
            outcome(sum(went.map(([, ended]) => ended)), "there")
          }`
        )
      ], { discard: true })
    })

    if (isClustered) {
      yield* due.await.pipe(
        Effect.andThen(Effect.sleep(together)),
        Effect.andThen(Effect.suspend(() => {
          due.closeUnsafe()
          // From then on it is counted for the end.
          return isLeaving ? Effect.void : tell
        })),
        Effect.forever,
        onLiveClock,
        Effect.forkScoped
      )
    }

    const running = () => [...members].reduce((count, member) => count + member.running(), 0)

    const begin = Effect.suspend(() => {
      const count = running()
      const grace = Duration.format(Duration.millis(graceMs))
      return logInfo(
        `Draining: this process leaves and starts nothing more; ${
          count === 0 ? "no job is running" : `${counted(count, "job")} may run on for up to ${grace}`
        }`
      )
    })

    return {
      isLeaving: () => isLeaving,
      taken: (member) =>
        Effect.sync(() => {
          members.add(member)
          if (!isClustered) return
          taken.push(member)
          due.openUnsafe()
        }),
      left: (member, { ended, interrupted }) =>
        Effect.sync(() => {
          members.delete(member)
          left.push([member.entity, {
            ended: Math.max(ended, (runningBefore.get(member) ?? 0) - interrupted),
            interrupted
          }])
          due.openUnsafe()
        }),
      lost: (member) => void members.delete(member),
      leaving: (end, isTold) =>
        Effect.gen(function*() {
          // What has moved before is told of as that.
          if (isClustered) yield* tell
          isLeaving = true
          left = []
          runningBefore = new Map([...members].map((member) => [member, member.running()]))
          const begunAt = monotonicMillis()
          let hasBegun = isTold()
          if (hasBegun) yield* begin
          const late = yield* onLiveClock(Effect.sleep(quiet)).pipe(
            Effect.andThen(Effect.suspend(() => {
              if (hasBegun || running() === 0) return Effect.void
              hasBegun = true
              return begin
            })),
            Effect.interruptible,
            Effect.forkChild
          )
          yield* end
          yield* Fiber.interrupt(late)
          const ended = sum(left.map(([, ended]) => ended))
          if (!hasBegun && ended.interrupted === 0) return
          yield* logInfo(
            `Drained in ${inWords(monotonicMillis() - begunAt)}: ${
              outcome(ended, isClustered ? "elsewhere" : "where it is owned next")
            }`
          )
        })
    }
  })

/** Of partitions that no runtime has: tells of nothing. */
export const none: Moves = {
  isLeaving: () => false,
  taken: () => Effect.void,
  left: () => Effect.void,
  lost: () => {},
  leaving: (end) => end
}

/**
 * Suspects: jobs that were running when their process died, twice or more. Each runs alone in the process, for its neighbours shall not be
 * blamed, in whatever partition they are.
 *
 * Promise: they hold the others back for `patienceMs` at most before the first start and as long after each, and start none beside another
 * within that time. Then the others have as long as they were held back, if there are any. None of it is written: a crash leaves live rows.
 */
import type { JobId } from "../JobId.ts"
import type { ReadyJob } from "../JobStore.ts"
import type { Attempts } from "./attempts.ts"
import { monotonicMillis } from "./time/liveClock.ts"

/** Whether the job has to run alone. */
export const isSuspect = ({ crashes }: ReadyJob): boolean => crashes >= 2

/** One partition of the process. */
export interface Member {
  readonly attempts: Pick<Attempts, "size" | "hasPlace" | "get">
  /** Whether any of its jobs waits for a place. */
  readonly hasWaiting: () => boolean
  /** It may be able to start something. */
  readonly wake: () => void
}

/** The suspects of one partition. */
export interface OwnSuspects {
  /** The one that is to start now, if its turn has come. */
  readonly next: () => ReadyJob | undefined
  /** Whether nothing else may start, in any partition. As of the last `next`. */
  readonly isHeldBack: () => boolean
  /** Whether it may start now: from here on it is alone. Otherwise it waits, and is the `next` one later. */
  readonly start: (job: ReadyJob) => boolean
  /** Takes those out that wait. */
  readonly withdraw: (choose: (job: ReadyJob) => boolean) => ReadonlyArray<ReadyJob>
  /** Nothing is under way in this partition any more. */
  readonly leave: () => void
}

/** The suspects of a process, one of these a runtime. */
export interface Suspects {
  /** Whether there are any, waiting or alone: all that is asked for jobs in a process without. */
  readonly isActive: boolean
  /** An attempt has ended, or has left its place. To be told while there are suspects. */
  readonly ended: () => void
  readonly join: (member: Member) => OwnSuspects
}

interface Waiting {
  readonly member: Member
  readonly job: ReadyJob
}

/** How long suspects hold back others: before a start, and after it. */
export const patienceMs = 30_000
/** The end of that wait, in which one starts beside what has not ended: whichever partition looks next wakes its. */
export const lastCallMs = 1_000

/** No suspect. `now`: milliseconds that only go forward. */
export const make = (now: () => number = monotonicMillis): Suspects => {
  const members = new Set<Member>()
  let line: ReadonlyArray<Waiting> = []
  /** The one whose turn it is: nothing else starts, so that it can be alone. */
  let called: { readonly waiting: Waiting; readonly since: number } | undefined
  let alone: { readonly member: Member; readonly id: JobId; readonly until: number } | undefined
  /** The time in which others are held back, without a break. */
  let stretch: { readonly since: number; startedAt: number | undefined } | undefined
  let freeUntil = -Infinity

  const isQuiet = (): boolean => {
    for (const { attempts } of members) if (attempts.size() > 0) return false
    return true
  }

  /** There are no others to let go first. */
  const isIdle = (): boolean => {
    for (const { hasWaiting } of members) if (hasWaiting()) return false
    return isQuiet()
  }

  /** One that would find no place is not waited for: what takes it up may last. */
  const call = (at: number): boolean => {
    const waiting = line.find(({ member }) => member.attempts.hasPlace())
    if (waiting === undefined) return false
    called = { waiting, since: at }
    stretch ??= { since: at, startedAt: undefined }
    waiting.member.wake()
    return true
  }

  /** Nobody is called or alone any more: the others go on. */
  const letGo = (at: number): void => {
    if (stretch !== undefined) freeUntil = at + at - stretch.since
    stretch = undefined
    for (const { wake } of members) wake()
  }

  /** While it is quiet anyway another one follows at once, for the same time altogether. */
  const goOn = (at: number): void => {
    const startedAt = stretch?.startedAt
    const isTime = startedAt !== undefined && at - startedAt < patienceMs
    if (!(isTime && isQuiet() && call(at))) letGo(at)
  }

  /** What time and the ends of attempts have changed. */
  const look = (at: number): void => {
    if (alone !== undefined) {
      const isUnderWay = members.has(alone.member) && alone.member.attempts.get(alone.id) !== undefined
      if (isUnderWay && at < alone.until) return
      alone = undefined
      if (isUnderWay) letGo(at)
      else goOn(at)
    } else if (called !== undefined && at - called.since >= patienceMs) {
      // Its partition could have started it. The others are not held back for what keeps it from that.
      const { waiting } = called
      line = [...line.filter((one) => one !== waiting), waiting]
      called = undefined
      letGo(at)
    } else if (called !== undefined && at - called.since >= patienceMs - lastCallMs) {
      called.waiting.member.wake()
    }
    if (alone === undefined && called === undefined && (at >= freeUntil || isIdle())) call(at)
    suspects.isActive = alone !== undefined || line.length > 0
  }

  /** Whether the one that is called may start. */
  const isTurnOf = (member: Member, at: number): boolean =>
    called?.waiting.member === member && (at - called.since >= patienceMs - lastCallMs || isQuiet())

  const withdraw = (member: Member, choose: (job: ReadyJob) => boolean): ReadonlyArray<ReadyJob> => {
    const chosen = line.filter((one) => one.member === member && choose(one.job))
    if (chosen.length === 0) return []
    line = line.filter((one) => !chosen.includes(one))
    const at = now()
    if (called !== undefined && chosen.includes(called.waiting)) {
      called = undefined
      goOn(at)
    }
    look(at)
    return chosen.map(({ job }) => job)
  }

  const join = (member: Member): OwnSuspects => {
    members.add(member)
    return {
      next: () => {
        const at = now()
        look(at)
        return isTurnOf(member, at) ? called?.waiting.job : undefined
      },
      isHeldBack: () => called !== undefined || alone !== undefined,
      start: (job) => {
        const at = now()
        if (called?.waiting.job !== job) line = [...line, { member, job }]
        look(at)
        if (called?.waiting.job !== job || !isTurnOf(member, at)) return false
        line = line.filter((one) => one.job !== job)
        called = undefined
        alone = { member, id: job.id, until: at + patienceMs }
        if (stretch !== undefined) stretch.startedAt ??= at
        return true
      },
      withdraw: (choose) => withdraw(member, choose),
      leave: () => {
        withdraw(member, () => true)
        members.delete(member)
        if (suspects.isActive) suspects.ended()
      }
    }
  }

  const suspects = {
    isActive: false,
    ended: () => {
      look(now())
      if (called !== undefined && isQuiet()) called.waiting.member.wake()
    },
    join
  }
  return suspects
}

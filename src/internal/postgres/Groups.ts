/**
 * Transactions that several attempts share, one after another. Whose turn it is has the session to itself; what it keeps waits for the one
 * settlement and COMMIT, behind which nobody is told anything before they are answered. A crash or a lost session before COMMIT leaves nothing
 * of any of them.
 *
 * A group takes another member while somebody waits and no limit is reached, and commits otherwise. Who holds its turn for longer than a
 * group may last makes only those wait that are in it already: others get a session besides the usual ones.
 */
import type { PgConnection } from "@effect/sql-pg/PgConnection"
import type { PgPool } from "@effect/sql-pg/PgPool"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import { liveClock, onLiveClock } from "../time/liveClock.ts"
import { answerOf, commitAfter, isCommitUnknown, type LastStatement, rollbackStatement, send } from "./ending.ts"
import { beginStatement, type Line } from "./LazyConnection.ts"
import { isConflict } from "./sqlState.ts"
import { type Ride, Turn } from "./Turn.ts"

/** What a group may become. */
export interface Limits {
  /** Groups at a time that take members. */
  readonly sessions: number
  readonly members: number
  /** Below 64, where the cache of subtransactions that each session of PostgreSQL shows to others overflows. */
  readonly savepoints: number
  readonly millis: number
}

/** Those of a store, read when it is made. */
export const GroupLimits = Context.Reference<Limits>("millrace/internal/GroupLimits", {
  defaultValue: () => ({ sessions: 3, members: 32, savepoints: 60, millis: 100 })
})

/**
 * What became of those that were done in a group. `Broken`: nothing of them is there; `own` says why, where there was only one of them.
 * `Unknown`: COMMIT was never answered.
 */
export type Outcome =
  | { readonly _tag: "Committed" }
  | { readonly _tag: "Broken"; readonly own: SqlError | undefined }
  | { readonly _tag: "Unknown" }

const broken: Outcome = { _tag: "Broken", own: undefined }

type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** Quoted, so that no savepoint of a handler's has this name by accident. The latest of a name hides the others: one name will do. */
const savepoint = `"millrace/job"`
const savepointStatement = `SAVEPOINT ${savepoint}`
const rollbackToStatement = `ROLLBACK TO SAVEPOINT ${savepoint}`

/** The savepoint of whoever comes next and its first statement in one write. Behind an error of whoever was before both fail. */
const goOn = <Member>(base: PgConnection, { ride }: Waiter<Member>): Effect.Effect<void, SqlError> =>
  Effect.flatMap(
    send(base, { sql: savepointStatement, params: [] }),
    (saved) => Effect.andThen(ride === undefined ? Effect.void : ride.launch(base), answerOf(saved))
  ).pipe(Effect.provideService(References.PreventSchedulerYield, true))

/** One transaction. Its methods are for whose turn it is, each of whom ends it with `keep` or `undo`. */
export class Group<Member> {
  private readonly groups: Groups<Member>
  private readonly scope = Scope.makeUnsafe()
  private readonly outcome = Deferred.makeUnsafe<Outcome>()
  private base: PgConnection | undefined
  private beganAt: number | undefined
  /** Done, and waiting for COMMIT. */
  private readonly members: Array<Member> = []
  private savepoints = 0
  /** Whether the next can go back to where it began. The first needs no savepoint: there is nobody before it. */
  private isReady = true
  private isClosed = false
  /** The session is not to be used again. */
  private isSpent = false
  /** Since when the turn is whose it is; with none yet while it waits for a session. */
  private turnSince: number | undefined

  constructor(groups: Groups<Member>) {
    this.groups = groups
  }

  /** Whether the turn has taken longer than a whole group may. */
  isHeldUp(now: number): boolean {
    return this.turnSince !== undefined && now - this.turnSince >= this.groups.limits.millis
  }

  /** It takes nobody in any more. */
  close(): void {
    this.isClosed = true
  }

  private hasRoom(): boolean {
    const { limits } = this.groups
    return !this.isClosed && this.members.length < limits.members && this.savepoints < limits.savepoints &&
      (this.beganAt === undefined || liveClock.currentTimeMillisUnsafe() - this.beganAt < limits.millis)
  }

  /** The session, for this turn alone. Waits, interruptibly, while the pool has none. */
  lease(restore: Restore, ride: Ride<unknown> | undefined): Effect.Effect<Turn, SqlError> {
    return Effect.map(
      this.base === undefined ? restore(Scope.provide(this.groups.pool.get, this.scope)) : Effect.succeed(this.base),
      (base) => {
        this.base = base
        this.turnSince = liveClock.currentTimeMillisUnsafe()
        return new Turn(base, this.scope, this.cancel(base), ride)
      }
    )
  }

  /** What runs now, from outside. It may come late and hit a later statement, hence the last ones of this session. */
  cancel(base: PgConnection): Effect.Effect<void> {
    return Effect.suspend(() => {
      this.close()
      this.isSpent = true
      return this.groups.cancel(base.processId)
    })
  }

  /** Before the first statement of a turn. */
  begin(pinned: Line): Effect.Effect<unknown, SqlError> {
    if (this.beganAt !== undefined) return Effect.void
    this.beganAt = liveClock.currentTimeMillisUnsafe()
    this.isReady = false
    return pinned.query(beginStatement)
  }

  /** Ends a turn with its writes, which opened so many savepoints of their own. Fails where these cannot be kept. */
  keep(base: PgConnection, member: Member, savepoints: number): Effect.Effect<void, SqlError> {
    this.savepoints += savepoints
    this.members.push(member)
    this.isReady = false
    // From here on it is this group's, and nobody else's choice.
    const next = this.hasRoom() ? this.groups.next() : undefined
    if (next === undefined) return this.commit()
    return Effect.matchEffect(goOn(base, next), {
      onFailure: (error) => {
        if (isConflict(error)) this.close()
        next.group = undefined
        this.members.pop()
        return Effect.andThen(Effect.andThen(this.undo(base), this.pass()), Effect.fail(error))
      },
      onSuccess: () => {
        this.isReady = true
        this.savepoints++
        if (next.ride !== undefined) next.ride.isValid = true
        this.groups.give(this, next)
        return Effect.void
      }
    })
  }

  /** Waits for the COMMIT. */
  get ending(): Effect.Effect<Outcome> {
    return Deferred.await(this.outcome)
  }

  /** Takes back what was done in this turn, and nothing else. Never fails: a session that cannot is thrown away, with all that it did. */
  undo(session: Pick<PgConnection, "query">): Effect.Effect<void> {
    // The savepoint stays, for the next.
    const isFirst = this.members.length === 0
    return Effect.matchEffect(session.query(isFirst ? rollbackStatement : rollbackToStatement), {
      onFailure: () => {
        this.isSpent = true
        return this.end(broken)
      },
      onSuccess: () => {
        this.isReady = true
        return isFirst ? this.end(broken) : Effect.void
      }
    })
  }

  /** Hands the turn on, or commits. */
  pass(): Effect.Effect<void> {
    return Effect.suspend(() => {
      if (this.hasEnded) return Effect.void
      const next = this.isReady && this.hasRoom() ? this.groups.next() : undefined
      if (next !== undefined) {
        this.groups.give(this, next)
        return Effect.void
      }
      return this.commit()
    })
  }

  /** The settlement of all and COMMIT in one write. */
  private commit(): Effect.Effect<void> {
    const { base, groups, members } = this
    if (base === undefined || members.length === 0) return this.end(broken)
    return Effect.matchEffect(commitAfter(groups.pool, base, groups.settlement(members)), {
      onFailure: (error) =>
        this.end(
          isCommitUnknown(error)
            ? { _tag: "Unknown" }
            : { _tag: "Broken", own: members.length === 1 ? error : undefined }
        ),
      onSuccess: () => this.end({ _tag: "Committed" })
    })
  }

  private get hasEnded(): boolean {
    return Deferred.isDoneUnsafe(this.outcome)
  }

  private end(outcome: Outcome): Effect.Effect<void> {
    const { base, groups } = this
    return Effect.andThen(
      Effect.andThen(
        this.isSpent && base !== undefined ? groups.pool.invalidate(base) : Effect.void,
        Scope.close(this.scope, Exit.void)
      ),
      Effect.sync(() => {
        Deferred.doneUnsafe(this.outcome, Effect.succeed(outcome))
        this.groups.ended(this)
      })
    )
  }
}

interface Waiter<Member> {
  readonly turn: Deferred.Deferred<Group<Member>>
  readonly ride: Ride<unknown> | undefined
  /** Once its turn is settled: interrupted from then on it has to take it, to hand it on. */
  group: Group<Member> | "next" | undefined
}

/** The groups of one pool. */
export class Groups<Member> {
  readonly pool: PgPool
  readonly limits: Limits
  private readonly scope: Scope.Scope
  /** Those that take members. */
  private readonly open = new Set<Group<Member>>()
  private readonly waiting = new Set<Waiter<Member>>()
  private isWatched = false

  /** What writes down that these are done, all or none. */
  readonly settlement: (members: ReadonlyArray<Member>) => LastStatement
  /** Cancels what a backend runs. */
  readonly cancel: (processId: number) => Effect.Effect<void>

  /** In `scope` runs the watch over turns that take too long: it outlives every group. */
  constructor({ cancel, limits, pool, scope, settlement }: {
    readonly pool: PgPool
    readonly scope: Scope.Scope
    readonly limits: Limits
    readonly settlement: (members: ReadonlyArray<Member>) => LastStatement
    readonly cancel: (processId: number) => Effect.Effect<void>
  }) {
    this.pool = pool
    this.scope = scope
    this.limits = limits
    this.settlement = settlement
    this.cancel = cancel
  }

  /** Waits, interruptibly, for a turn. Its first statement may have been sent when it comes. */
  take(restore: Restore, ride: Ride<unknown> | undefined): Effect.Effect<Group<Member>> {
    return Effect.suspend(() => {
      if (this.open.size < this.limits.sessions) return Effect.succeed(this.make())
      const waiter: Waiter<Member> = { turn: Deferred.makeUnsafe(), ride, group: undefined }
      this.waiting.add(waiter)
      const turn = Effect.catchCause(restore(Deferred.await(waiter.turn)), (cause) => {
        if (waiter.group !== undefined) return Deferred.await(waiter.turn)
        this.waiting.delete(waiter)
        return Effect.failCause(cause)
      })
      return this.isWatched ? turn : Effect.andThen(this.watch(), turn)
    })
  }

  /** Who has waited longest, and is promised the next turn from here on. */
  next(): Waiter<Member> | undefined {
    for (const waiter of this.waiting) {
      if (waiter.group !== undefined) continue
      waiter.group = "next"
      return waiter
    }
    return undefined
  }

  give(group: Group<Member>, waiter: Waiter<Member>): void {
    this.waiting.delete(waiter)
    waiter.group = group
    Deferred.doneUnsafe(waiter.turn, Effect.succeed(group))
  }

  ended(group: Group<Member>): void {
    this.open.delete(group)
    this.serve()
  }

  private make(): Group<Member> {
    const group = new Group<Member>(this)
    this.open.add(group)
    return group
  }

  private serve(): void {
    while (this.open.size < this.limits.sessions) {
      const waiter = this.next()
      if (waiter === undefined) return
      this.give(this.make(), waiter)
    }
  }

  /** While anybody waits: a turn that takes too long must not keep the others from theirs. */
  private watch(): Effect.Effect<void> {
    this.isWatched = true
    const look: Effect.Effect<void> = Effect.flatMap(Effect.sleep(Duration.millis(this.limits.millis)), () => {
      const now = liveClock.currentTimeMillisUnsafe()
      for (const group of this.open) {
        if (!group.isHeldUp(now)) continue
        group.close()
        this.open.delete(group)
      }
      this.serve()
      this.isWatched = this.waiting.size > 0
      return this.isWatched ? look : Effect.void
    })
    return Effect.asVoid(Effect.forkIn(onLiveClock(look), this.scope))
  }
}

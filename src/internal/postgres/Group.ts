/**
 * One transaction that several attempts share. Its methods are for whose turn it is, each of whom ends it with `keep` or `undo`.
 *
 * Where turns have been of one statement for a while, several of those who wait have theirs sent ahead, each behind a savepoint of its own,
 * in one write: an answer is given to nobody before its turn comes. Whoever then wants more than its first statement, fails, or takes too
 * long has what was sent behind it undone first; those who wait do so as before, and theirs is sent again. So nobody can tell the
 * difference. A crash or a lost session before COMMIT leaves nothing of anybody.
 */
import type { PgConnection } from "@effect/sql-pg/PgConnection"
import type { PgPool } from "@effect/sql-pg/PgPool"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type { SqlError } from "effect/sql/SqlError"
import { liveClock } from "../time/liveClock.ts"
import {
  answerOf,
  commitAfter,
  isCommitUnknown,
  type LastStatement,
  rollbackStatement,
  send,
  type Sent
} from "./ending.ts"
import { beginStatement, type Line } from "./LazyConnection.ts"
import { watch } from "./sessionEnd.ts"
import { isConflict } from "./sqlState.ts"
import { type Ride, Turn, untilIdle } from "./Turn.ts"

/**
 * What became of those that were done in a group. `Broken`: nothing of them is there; `own` says why, where there was only one of them.
 * `Unknown`: COMMIT was never answered.
 */
export type Outcome =
  | { readonly _tag: "Committed" }
  | { readonly _tag: "Broken"; readonly own: SqlError | undefined }
  | { readonly _tag: "Unknown"; readonly error: SqlError }

const broken: Outcome = { _tag: "Broken", own: undefined }

/** What a group may become. */
export interface Limits {
  /** Groups at a time that take members. */
  readonly sessions: number
  readonly members: number
  /** Below 64, where the cache of subtransactions that each session of PostgreSQL shows to others overflows. */
  readonly savepoints: number
  readonly millis: number
}

export type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** One who waits for a turn. */
export interface Waiter<Member> {
  readonly turn: Deferred.Deferred<Group<Member>>
  readonly ride: Ride<unknown> | undefined
  /** Once its turn is settled: interrupted from then on it waits for one all the same, to hand it on. */
  group: Group<Member> | "next" | undefined
}

/** Where a group is one of several (`Groups`), and who comes next. */
export interface Company<Member> {
  readonly pool: PgPool
  readonly limits: Limits
  /** What writes down that these are done, all or none. */
  readonly settlement: (members: ReadonlyArray<Member>) => LastStatement
  /** Cancels what a backend runs. */
  readonly cancel: (processId: number) => Effect.Effect<void>
  /** Whether first statements of more than the next one are sent before it is their turn. */
  readonly sendsAhead: boolean
  /** Who has waited longest, and is promised the next turn from here on. */
  readonly next: () => Waiter<Member> | undefined
  readonly give: (group: Group<Member>, waiter: Waiter<Member>) => void
  /** A turn has ended. `isShort`: it sent no more than one statement. */
  readonly noteTurn: (isShort: boolean) => void
  readonly ended: (group: Group<Member>) => void
}

/** Quoted, so that no savepoint of a handler's has this name by accident. */
const savepointName = (number: number) => `"millrace/job ${number}"`
const rollbackTo = (number: number) => `ROLLBACK TO SAVEPOINT ${savepointName(number)}`

/** One who waits, and what was sent for it. */
interface Ahead<Member> {
  readonly waiter: Waiter<Member>
  readonly savepoint: number
  readonly saved: Sent
}

export class Group<Member> {
  private readonly groups: Company<Member>
  private readonly scope = Scope.makeUnsafe()
  private readonly outcome = Deferred.makeUnsafe<Outcome>()
  private base: PgConnection | undefined
  private beganAt: number | undefined
  /** Done, and waiting for COMMIT. */
  private readonly members: Array<Member> = []
  /** Whose statements were sent ahead, in the order of their turns. */
  private ahead: Array<Ahead<Member>> = []
  /** What has been sent in vain and is still there: from which savepoint on, and the statements that may not be answered yet. */
  private debris: { readonly savepoint: number; readonly rides: Array<Fiber.Fiber<unknown, SqlError>> } | undefined
  private readonly clearings = Semaphore.makeUnsafe(1)
  /** Where the turn goes back to. The first needs no savepoint: there is nobody before it. */
  private turnSavepoint = 0
  private turnRide: Ride<unknown> | undefined
  private savepoints = 0
  /** Whether the next can go back to where it began. */
  private isReady = true
  private isClosed = false
  /** The session is not to be used again. */
  private isSpent = false
  /** Since when the turn is whose it is; with none yet while it waits for a session. */
  private turnSince: number | undefined

  constructor(groups: Company<Member>) {
    this.groups = groups
  }

  /** Whether the turn has taken longer than a whole group may. */
  isHeldUp(now: number): boolean {
    return this.turnSince !== undefined && now - this.turnSince >= this.groups.limits.millis
  }

  /** Whether others were done in it before this turn. */
  get hasMembers(): boolean {
    return this.members.length > 0
  }

  /** It takes nobody in any more. */
  close(): void {
    this.isClosed = true
  }

  /** Its turn takes too long: those who wait for it are let go. */
  letGo(): Effect.Effect<void> {
    this.close()
    this.recall()
    return Effect.ignore(this.clear)
  }

  private hasRoom(): boolean {
    const { limits } = this.groups
    return !this.isClosed && this.members.length + this.ahead.length < limits.members &&
      this.savepoints < limits.savepoints &&
      (this.beganAt === undefined || liveClock.currentTimeMillisUnsafe() - this.beganAt < limits.millis)
  }

  /** The session, for this turn alone. Waits, interruptibly, while the pool has none. */
  lease(restore: Restore, ride: Ride<unknown> | undefined): Effect.Effect<Turn, SqlError> {
    return Effect.map(
      this.base === undefined ? restore(Scope.provide(this.groups.pool.get, this.scope)) : Effect.succeed(this.base),
      (base) => {
        this.base = base
        watch(base)
        this.turnSince = liveClock.currentTimeMillisUnsafe()
        this.turnRide = ride
        return new Turn({ base, scope: this.scope, cancel: this.cancel(base), alone: this.clear, ride })
      }
    )
  }

  /** What runs now, from outside. It may come late and hit a later statement, hence the last ones of this session. */
  private cancel(base: PgConnection): Effect.Effect<void> {
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

  /**
   * Ends a turn with its writes, which opened so many savepoints of their own. Fails where these cannot be kept. `isShort`: it sent no more
   * than one statement.
   */
  keep(
    base: PgConnection,
    member: Member,
    { isShort, savepoints }: { readonly isShort: boolean; readonly savepoints: number }
  ): Effect.Effect<void, SqlError> {
    this.groups.noteTurn(isShort)
    this.savepoints += savepoints
    this.members.push(member)
    this.isReady = false
    if (this.isClosed) this.recall()
    return this.debris === undefined ? this.goOn(base) : this.clearAndGoOn(base)
  }

  private clearAndGoOn(base: PgConnection): Effect.Effect<void, SqlError> {
    return Effect.matchEffect(this.clear, { onFailure: () => this.end(broken), onSuccess: () => this.goOn(base) })
  }

  private goOn(base: PgConnection): Effect.Effect<void, SqlError> {
    return Effect.flatMap(this.ahead.length > 0 ? Effect.void : this.sendAhead(base), () => {
      const [next] = this.ahead
      return next === undefined ? this.commit() : Effect.matchEffect(answerOf(next.saved), {
        // Whoever kept its turn left the transaction in a state that takes no savepoint.
        onFailure: (error) => {
          if (isConflict(error)) this.close()
          this.members.pop()
          return Effect.andThen(Effect.andThen(this.undo(base), this.pass()), Effect.fail(error))
        },
        onSuccess: () => {
          // Let go meanwhile: by now it may be another group's.
          if (this.ahead[0] !== next) return this.clearAndGoOn(base)
          this.ahead.shift()
          this.isReady = true
          this.turnSavepoint = next.savepoint
          if (next.waiter.ride !== undefined) next.waiter.ride.isValid = true
          this.groups.give(this, next.waiter)
          return Effect.void
        }
      })
    })
  }

  /** The savepoints and first statements of who comes next, in one write. From here on these are this group's, and nobody else's choice. */
  private sendAhead(base: PgConnection): Effect.Effect<void> {
    const chosen: Array<Waiter<Member>> = []
    return Effect.whileLoop({
      while: () => {
        const last = chosen.at(-1)
        const isLast = last !== undefined && (last.ride?.isPlain !== true || !this.groups.sendsAhead)
        const next = isLast || !this.hasRoom() ? undefined : this.groups.next()
        if (next !== undefined) chosen.push(next)
        return next !== undefined
      },
      body: () => {
        const waiter = chosen[chosen.length - 1]!
        const savepoint = ++this.savepoints
        return Effect.flatMap(send(base, { sql: `SAVEPOINT ${savepointName(savepoint)}`, params: [] }), (saved) => {
          this.ahead.push({ waiter, savepoint, saved })
          return waiter.ride === undefined ? Effect.void : waiter.ride.launch(base)
        })
      },
      step: () => {}
    }).pipe(Effect.provideService(References.PreventSchedulerYield, true))
  }

  /** Those whose statements were sent ahead wait as before. */
  private recall(): void {
    const [first] = this.ahead
    if (first === undefined) return
    const rides = this.ahead.flatMap(({ waiter }) => {
      waiter.group = undefined
      return waiter.ride?.recall() ?? []
    })
    this.debris = { savepoint: first.savepoint, rides }
    this.ahead = []
  }

  /** Waits until nothing runs that was sent ahead. What runs before may be the turn's own first statement: no reason to cancel that. */
  private get quiet(): Effect.Effect<void> {
    return Effect.suspend(() => {
      this.recall()
      const { base, debris, turnRide } = this
      return base === undefined || debris === undefined ? Effect.void : Effect.andThen(
        turnRide === undefined ? Effect.void : turnRide.answered,
        untilIdle(debris.rides, this.cancel(base))
      )
    })
  }

  /** Undoes what was sent ahead, before anything else is sent. */
  private get clear(): Effect.Effect<void, SqlError> {
    const clear = Effect.flatMap(this.quiet, () => {
      const { base, debris } = this
      return base === undefined || debris === undefined || this.hasEnded ? Effect.void : Effect.map(
        base.query(rollbackTo(debris.savepoint)),
        () => {
          this.debris = undefined
        }
      )
    })
    return Effect.suspend(() =>
      this.ahead.length === 0 && this.debris === undefined
        ? Effect.void
        : Effect.uninterruptible(this.clearings.withPermit(clear))
    )
  }

  /** Waits for the COMMIT. */
  get ending(): Effect.Effect<Outcome> {
    return Deferred.await(this.outcome)
  }

  /** Takes back what was done in this turn, and nothing else. Never fails: a session that cannot is thrown away, with all that it did. */
  undo(session: Pick<PgConnection, "query">): Effect.Effect<void> {
    this.groups.noteTurn(false)
    // The savepoint stays, for the next.
    const isFirst = this.members.length === 0
    const quiet = Effect.andThen(
      this.clearings.withPermit(this.quiet),
      Effect.sync(() => {
        this.debris = undefined
      })
    )
    const undone = Effect.andThen(
      quiet,
      Effect.suspend(() => session.query(isFirst ? rollbackStatement : rollbackTo(this.turnSavepoint)))
    )
    return Effect.matchEffect(undone, {
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

  /** Whose turn it is does not end it: nothing of the group is kept, and those that were done in it run again. */
  sever(base: PgConnection, terminate: (processId: number) => Effect.Effect<void>): Effect.Effect<void> {
    this.close()
    this.isSpent = true
    return this.groups.pool.invalidate(base).pipe(
      Effect.andThen(terminate(base.processId)),
      Effect.andThen(this.end(broken)),
      Effect.uninterruptible
    )
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
            ? { _tag: "Unknown", error }
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
    this.recall()
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

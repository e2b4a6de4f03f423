/**
 * Transactions that several attempts share (`Group`), one after another. Whose turn it is has the session to itself; what it keeps waits for
 * the one settlement and COMMIT, behind which nobody is told anything before they are answered.
 *
 * A group takes another member while somebody waits and no limit is reached, and commits otherwise. Who holds its turn for longer than a
 * group may last makes only those wait that are in it already: others get a session besides the usual ones.
 */
import type { PgPool } from "@effect/sql-pg/PgPool"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { liveClock, onLiveClock } from "../time/liveClock.ts"
import type { LastStatement } from "./ending.ts"
import { type Company, Group, type Limits, type Restore, type Waiter } from "./Group.ts"
import type { Ride } from "./Turn.ts"

/** Those of a store, read when it is made. */
export const GroupLimits = Context.Reference<Limits>("millrace/internal/GroupLimits", {
  defaultValue: () => ({ sessions: 3, members: 32, savepoints: 60, millis: 100 })
})

/** After how many turns of one statement the first statements of those who wait are sent ahead. */
const shortTurnsBefore = 16

/** The groups of one pool. */
export class Groups<Member> implements Company<Member> {
  readonly pool: PgPool
  readonly limits: Limits
  private readonly scope: Scope.Scope
  /** Those that take members. */
  private readonly open = new Set<Group<Member>>()
  private readonly waiting = new Set<Waiter<Member>>()
  private isWatched = false
  /** How many turns in a row were of one statement. */
  private shortTurns = 0

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

  noteTurn(isShort: boolean): void {
    this.shortTurns = isShort ? this.shortTurns + 1 : 0
  }

  get sendsAhead(): boolean {
    return this.shortTurns >= shortTurnsBefore
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
      const clearing: Array<Effect.Effect<unknown>> = []
      for (const group of this.open) {
        if (!group.isHeldUp(now)) continue
        this.open.delete(group)
        clearing.push(Effect.forkIn(group.letGo(), this.scope))
      }
      this.serve()
      this.isWatched = this.waiting.size > 0
      return Effect.andThen(Effect.all(clearing, { discard: true }), this.isWatched ? look : Effect.void)
    })
    return Effect.asVoid(Effect.forkIn(onLiveClock(look), this.scope))
  }
}

/**
 * The connection of one attempt inside a transaction that it shares with others (`Groups`). Its turn begins with its first statement and
 * ends with `keep` or `rollBack`; before and after it can send nothing, so that no fiber of it writes among the statements of another.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import type { Connection } from "effect/sql/SqlConnection"
import type { SqlError } from "effect/sql/SqlError"
import { AttemptConnection } from "./AttemptConnection.ts"
import { firstWords } from "./firstWords.ts"
import type { Group, Outcome } from "./Group.ts"
import type { Groups } from "./Groups.ts"
import { beginStatement, hasEnded, type Line, type Session } from "./LazyConnection.ts"
import { Ride } from "./Turn.ts"

const dataOnly = /^(?:SELECT|INSERT|UPDATE|DELETE|MERGE|WITH|VALUES|TABLE|LOCK|NOTIFY|EXPLAIN)\b/i

const leavesRowsOnly = (sql: string): boolean =>
  dataOnly.test(firstWords(sql)) && !/set_config|\binto\s+temp/i.test(sql)

export class GroupedConnection<Member> extends AttemptConnection {
  private readonly groups: Groups<Member>
  private group: Group<Member> | undefined
  /** The first statement, which may travel ahead of its turn. */
  private ride: Ride<unknown> | undefined
  /** A cancellation that the server has not confirmed may still hit a later statement: nobody else's shall be sent. */
  private isCancelled = false
  /** It sent what may outlive its turn, and change what the next one finds: settings, cursors, temporary tables. */
  private leavesTraces = false
  private statements = 0

  constructor(groups: Groups<Member>) {
    super(groups.pool, undefined, { sql: beginStatement, isPrepared: true })
    this.groups = groups
  }

  protected override refuses(sql: string): boolean {
    this.leavesTraces ||= !leavesRowsOnly(sql)
    return super.refuses(sql)
  }

  override executeStream(...args: Parameters<Connection["executeStream"]>) {
    // Left before its end it is cancelled like any other statement.
    this.isCancelled = true
    this.statements++
    return super.executeStream(...args)
  }

  protected override noting<A>(statement: Effect.Effect<A, SqlError>): Effect.Effect<A, SqlError> {
    this.statements++
    return Effect.onInterrupt(super.noting(statement), () =>
      Effect.sync(() => {
        this.isCancelled = true
      }))
  }

  protected override lease(
    restore: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  ): Effect.Effect<Session, SqlError> {
    return Effect.flatMap(this.groups.take(restore, this.ride), (group) => {
      this.group = group
      return Effect.onError(group.lease(restore, this.ride), () => {
        this.group = undefined
        return group.pass()
      })
    })
  }

  protected override first<A>(
    statement: (statements: Connection) => Effect.Effect<A, SqlError>
  ): Effect.Effect<A, SqlError> {
    const isFirst = this.session === undefined && this.savepoints.length === 0
    const ride = isFirst ? new Ride(statement, !this.leavesTraces) : undefined
    if (ride !== undefined) this.ride = ride
    // Given up before its turn it must not travel with a later one.
    const opened = Effect.onError(this.open(), () =>
      Effect.sync(() => {
        if (this.session === undefined) this.ride = undefined
      }))
    return Effect.flatMap(opened, (session) => {
      const { statements } = session
      return ride === undefined
        ? statement(statements)
        : ride.answer(Effect.suspend(() => statement(statements)), session.pinned.interrupt)
    })
  }

  /** Its first statement may have travelled ahead: whatever was done is undone, and the turn handed on. */
  protected override giveBack(session: Session): Effect.Effect<void> {
    return this.undo(session)
  }

  protected override begin(pinned: Line): Effect.Effect<unknown, SqlError> {
    return this.group === undefined ? Effect.void : this.group.begin(pinned)
  }

  protected override undo({ pin, pinned }: Session): Effect.Effect<void> {
    const { group, ride } = this
    if (group === undefined) return Effect.void
    // What it lost against may be what those before it hold.
    if (this.isCancelled || this.brokenBy !== undefined) group.close()
    return (ride === undefined ? Effect.void : ride.end(pinned.interrupt)).pipe(
      Effect.andThen(group.undo(pinned)),
      Effect.andThen(Scope.close(pin, Exit.void)),
      Effect.andThen(group.pass())
    )
  }

  /** The session is the group's, which ends with it. */
  protected override cut(
    session: Session,
    terminate: (processId: number) => Effect.Effect<void>
  ): Effect.Effect<void> {
    return this.group === undefined ? Effect.void : this.group.sever(session.base, terminate)
  }

  /** Ends without its writes. What it saw of those before it counts only once they have committed: answers whether it does. */
  takeBack(): Effect.Effect<boolean> {
    const { group } = this
    const waits = group?.hasMembers === true
    return Effect.andThen(
      this.rollBack(),
      group !== undefined && waits
        ? Effect.map(group.ending, (outcome) => outcome._tag === "Committed")
        : Effect.succeed(true)
    )
  }

  /**
   * Ends with its writes and waits for the COMMIT that they share; what was registered with `onCommit` runs behind it. Fails where its own
   * writes could not be kept: then they are gone, and nothing of the others.
   */
  keep(member: Member): Effect.Effect<Outcome, SqlError> {
    const { group, session } = this
    if (this.isSevered) return Effect.fail(hasEnded)
    if (group === undefined || session === undefined) return Effect.die("keep: no statement was sent")
    const kept = this.gate.withPermit(Effect.suspend(() => {
      this.ended = true
      if (this.isCancelled || this.leavesTraces) group.close()
      if (this.failed !== undefined) return Effect.andThen(this.undo(session), Effect.fail(this.failed))
      return Effect.andThen(
        Scope.close(session.pin, Exit.void),
        group.keep(session.base, member, { isShort: this.statements <= 1, savepoints: this.savepointCount })
      )
    }))
    return Effect.flatMap(
      Effect.andThen(kept, group.ending),
      (outcome): Effect.Effect<Outcome> =>
        outcome._tag === "Committed" ? Effect.as(this.tell(), outcome) : Effect.succeed(outcome)
    )
  }
}

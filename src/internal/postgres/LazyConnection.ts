/**
 * The connection of one transaction. BEGIN leaves just before the first statement, on a session leased at that moment; a transaction
 * without statements uses none. Statements run on a *pinned* session, so that interruption cancels them on the server; the pin is
 * given up only to pipeline the last statement and COMMIT. Once the transaction has ended every further statement fails here.
 * A crash at any line leaves an open transaction or none: the server rolls back when the socket closes.
 */
import type { PgConnection } from "@effect/sql-pg/PgConnection"
import type { PgPool } from "@effect/sql-pg/PgPool"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type { Connection } from "effect/sql/SqlConnection"
import type { SqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import type * as JobStore from "../../JobStore.ts"
import { liveClock } from "../time/liveClock.ts"
import * as SessionConnection from "./connection.ts"
import {
  answerOf,
  asUnanswered,
  cleanUp,
  commitAfter,
  commitNow,
  type LastStatement,
  rollbackStatement,
  send,
  transactionError
} from "./ending.ts"
import { firstWords } from "./firstWords.ts"
import { deathOf, isOwnDoing, lastWords, watch } from "./sessionEnd.ts"
import { breakageOf, hasLostConnection, sqlState } from "./sqlState.ts"

type TransformRows = (<A extends object>(row: ReadonlyArray<A>) => ReadonlyArray<A>) | undefined

/** The error of the database's that broke the transaction. `isOver`: a statement has succeeded since, after going back to a savepoint. */
export interface Breakage {
  readonly error: SqlError
  readonly by: JobStore.Breakage
  readonly isOver: boolean
}

/** The leased session while the transaction is open. */
export interface Session {
  /** Exclusive to this transaction (the pool lends it to one at a time), and pipelining what is asked of it directly. */
  readonly base: PgConnection
  /** The same session, one statement at a time, interruptible. */
  readonly pinned: Line
  readonly statements: Connection
  readonly pin: Scope.Closeable
  /** Closed, the session goes back to whom it was taken from. */
  readonly lease: Scope.Closeable
}

/** What of a session is used beside its statements. */
export type Line = Pick<PgConnection, "query" | "interrupt">

/** How the transaction begins. */
export interface Begin {
  readonly sql: string
  readonly isPrepared: boolean
}

export const hasEnded = transactionError(
  "The transaction has ended: this statement was not sent. A fiber that outlives its transaction must not use its SqlClient.",
  "execute"
)

const notAllowed = transactionError(
  "BEGIN, COMMIT and ROLLBACK are sent by withTransaction only. Fail to roll back, or use sql.withTransaction for a part of the work.",
  "execute"
)

const wasInterrupted = transactionError("The transaction was interrupted while it began.", "execute")

const controls = /^(?:SAVEPOINT|(ROLLBACK TO) SAVEPOINT|(RELEASE) SAVEPOINT) (effect_sql_\d+)$/

/** Effect's SQL client begins with this and rolls back with `rollbackStatement`; `commit` below is called instead of its third. */
export const beginStatement = "BEGIN"

/** A statement of the handler's that would end or nest the transaction behind our back: its job would commit without its settlement. */
const forbidden =
  /^(?:BEGIN|START TRANSACTION|COMMIT|END|ABORT|ROLLBACK(?! (?:WORK |TRANSACTION )?TO\b)|PREPARE TRANSACTION)\b/i

/** See the top of this file. Made by `transactionAcquirer`, closed with the transaction's scope. */
export class LazyConnection implements Connection {
  protected readonly pool: PgPool
  /** Where the session is leased into; made when one is, if not given. */
  private scope: Scope.Scope | undefined
  /** The scope it made for itself: whoever ends the transaction closes it. */
  protected leased: Scope.Closeable | undefined
  private lazyGate: Semaphore.Semaphore | undefined
  private beginning: Begin | undefined
  /** Savepoints asked for before the first statement: they leave with BEGIN. */
  protected savepoints: Array<string> = []
  /** Of `withTransaction`, so far: the server keeps count of them until the transaction ends. */
  protected savepointCount = 0
  protected session: Session | undefined
  /** Why the transaction could not begin; nothing can run in it any more. */
  protected failed: SqlError | undefined
  protected ended = false
  /** Ended from outside: whatever asks for its session gets none. */
  protected isSevered = false
  private begunAt: number | undefined
  private last: LastStatement | undefined
  private breakage: Breakage | undefined

  /** With `begin` it has been asked to begin already: the next statement is the first of its own. */
  constructor(pool: PgPool, scope: Scope.Scope | undefined, begin?: Begin) {
    this.pool = pool
    this.scope = scope
    this.beginning = begin
  }

  /** One statement at a time, and the end of the transaction waits for the one under way. */
  protected get gate(): Semaphore.Semaphore {
    return this.lazyGate ??= Semaphore.makeUnsafe(1)
  }

  private get leases(): Scope.Scope {
    return this.scope ??= this.leased = Scope.makeUnsafe()
  }

  get hasEnded(): boolean {
    return this.ended
  }

  get hasBegun(): boolean {
    return this.session !== undefined
  }

  /** For how long it has been open, in milliseconds. */
  get heldMs(): number {
    return this.begunAt === undefined ? 0 : liveClock.currentTimeMillisUnsafe() - this.begunAt
  }

  get brokenBy(): Breakage | undefined {
    return this.breakage
  }

  /** The reason that the server gave for ending the session, if it gave one. */
  get lastWords(): SqlError | undefined {
    return this.session === undefined ? undefined : lastWords(this.session.base)
  }

  setLast(statement: LastStatement): void {
    if (this.last !== undefined) throw new Error("setLast: this transaction has its last statement already")
    this.last = statement
  }

  execute(sql: string, params: ReadonlyArray<unknown>, transform: TransformRows) {
    return this.control(sql, true) ?? this.run(sql, (statements) => statements.execute(sql, params, transform))
  }

  executeUnprepared(sql: string, params: ReadonlyArray<unknown>, transform: TransformRows) {
    return this.control(sql, false) ??
      this.run(sql, (statements) => statements.executeUnprepared(sql, params, transform))
  }

  executeRaw(sql: string, params: ReadonlyArray<unknown>) {
    return this.run(sql, (statements) => statements.executeRaw(sql, params))
  }

  executeValues(sql: string, params: ReadonlyArray<unknown>) {
    return this.run(sql, (statements) => statements.executeValues(sql, params))
  }

  executeValuesUnprepared(sql: string, params: ReadonlyArray<unknown>) {
    return this.run(sql, (statements) => statements.executeValuesUnprepared(sql, params))
  }

  executeStream(sql: string, params: ReadonlyArray<unknown>, transform: TransformRows) {
    return Stream.unwrap(
      this.refuses(sql) ? Effect.fail(notAllowed) : Effect.andThen(
        this.gate.takeScoped(1),
        Effect.map(
          Effect.suspend(() => this.noting(this.open())),
          (session) => {
            const before = this.death
            return Stream.tapError(
              session.statements.executeStream(sql, params, transform),
              (error) => Effect.sync(() => this.note(this.explained(error), before === undefined))
            )
          }
        )
      )
    )
  }

  /** Asked of each statement before it is sent. */
  protected refuses(sql: string): boolean {
    return forbidden.test(firstWords(sql))
  }

  private run<A>(
    sql: string,
    statement: (statements: Connection) => Effect.Effect<A, SqlError>
  ): Effect.Effect<A, SqlError> {
    if (this.refuses(sql)) return Effect.fail(notAllowed)
    return this.gate.withPermit(
      Effect.suspend(() =>
        this.noting(
          this.session !== undefined && !this.ended && this.failed === undefined
            ? statement(this.session.statements)
            : this.first(statement)
        )
      )
    )
  }

  /** The statement that the transaction begins with: callers hold the gate. */
  protected first<A>(
    statement: (statements: Connection) => Effect.Effect<A, SqlError>
  ): Effect.Effect<A, SqlError> {
    return Effect.flatMap(this.open(), (session) => statement(session.statements))
  }

  /** Remembers what broke the transaction, until it is mended: callers hold the gate. */
  protected noting<A>(statement: Effect.Effect<A, SqlError>): Effect.Effect<A, SqlError> {
    const before = this.death
    const noted = Effect.onError(
      Effect.mapError(statement, (error) => this.explained(error)),
      (cause) =>
        Effect.sync(() => {
          // Interrupted, a statement leaves no error: a session that has died under it does.
          const error = Option.getOrElse(Cause.findErrorOption(cause), () => {
            const { death } = this
            return before !== undefined || death === undefined || isOwnDoing(death) ? undefined : this.explained(death)
          })
          // What BEGIN ran into is none of the job's statements.
          if (error !== undefined) this.note(error, before === undefined && error !== this.failed)
        })
    )
    return this.breakage === undefined ? noted : Effect.tap(noted, () => Effect.sync(() => this.mended()))
  }

  /** What has ended the session, if it has ended. */
  private get death(): SqlError | undefined {
    return this.session === undefined ? undefined : deathOf(this.session.base)
  }

  /** The server's reason, in place of the driver's word that the session is gone. */
  private explained(error: SqlError): SqlError {
    return this.session !== undefined && sqlState(error) === undefined && hasLostConnection(error)
      ? lastWords(this.session.base) ?? error
      : error
  }

  private note(error: SqlError, isInFlight: boolean): void {
    // What ended the session stays the reason, whatever is asked of it after that.
    if (this.breakage !== undefined && hasLostConnection(this.breakage.error)) return
    const by = breakageOf(error, isInFlight)
    if (by !== undefined) this.breakage = { error, by, isOver: false }
  }

  /**
   * After a transaction that took no writes (25006), once it is rolled back: a session that still takes none is useless to everybody, and is
   * replaced. Otherwise the transaction's own statements had made it read-only.
   */
  private lookForWrites(base: PgConnection, error: SqlError, line: Line = base): Effect.Effect<void> {
    return Effect.matchEffect(line.query("select current_setting('transaction_read_only') as read_only"), {
      onFailure: () => this.useless(base, error),
      onSuccess: ({ rows: [row] }) => {
        if (row?.["read_only"] !== "off") return this.useless(base, error)
        this.breakage = { error, by: "readOnly", isOver: false }
        return Effect.void
      }
    })
  }

  private useless(base: PgConnection, error: SqlError): Effect.Effect<void> {
    this.breakage = { error, by: "unable", isOver: false }
    return this.pool.invalidate(base)
  }

  private mended(): void {
    if (this.breakage !== undefined) this.breakage = { ...this.breakage, isOver: true }
  }

  /** The session with its transaction open; BEGIN goes out here. Callers hold the gate. */
  protected open(): Effect.Effect<Session, SqlError> {
    if (this.ended) return Effect.fail(hasEnded)
    if (this.failed !== undefined) return Effect.fail(this.failed)
    if (this.session !== undefined) return Effect.succeed(this.session)
    return Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(this.lease(restore), (session) => {
        // It has waited for so long that the transaction is over: nobody would end what begins now.
        if (this.ended) return Effect.andThen(this.giveBack(session), Effect.fail(hasEnded))
        // From here on a ROLLBACK is owed, whatever becomes of BEGIN.
        this.session = session
        this.begunAt = liveClock.currentTimeMillisUnsafe()
        return Effect.as(
          Effect.onError(restore(this.sendBegin(session.pinned)), (cause) =>
            Effect.sync(() => {
              this.failed = Option.getOrElse(Cause.findErrorOption(cause), () => wasInterrupted)
            })),
          session
        )
      })
    )
  }

  protected begin(pinned: Line): Effect.Effect<unknown, SqlError> {
    const { isPrepared, sql } = this.beginning ?? { sql: beginStatement, isPrepared: true }
    return pinned.query(sql, [], isPrepared)
  }

  private sendBegin(pinned: Line): Effect.Effect<unknown, SqlError> {
    const begin = this.begin(pinned)
    return this.savepoints.length === 0
      ? begin
      : Effect.andThen(
        begin,
        Effect.forEach(this.savepoints, (savepoint) => pinned.query(savepoint), { discard: true })
      )
  }

  /** Takes a session out of the pool until the transaction's scope closes. Waits, interruptibly, while all are in use. */
  protected lease(
    restore: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  ): Effect.Effect<Session, SqlError> {
    const lease = Scope.forkUnsafe(this.leases)
    return Effect.flatMap(restore(Scope.provide(this.pool.get, lease)), (base) => {
      watch(base)
      const pin = Scope.forkUnsafe(lease)
      return Effect.map(
        Scope.provide(base.pin, pin),
        (pinned): Session => ({ base, pinned, statements: SessionConnection.make(pinned), pin, lease })
      )
    }).pipe(Effect.onError((cause) => Scope.close(lease, Exit.failCause(cause))))
  }

  /** Gives back a session in which nothing was sent. */
  protected giveBack({ lease }: Session): Effect.Effect<void> {
    return Scope.close(lease, Exit.void)
  }

  /** Whether its sessions come from there. */
  isOf(pool: PgPool): boolean {
    return this.pool === pool
  }

  /** What the SQL client itself sends around a transaction and its savepoints; `undefined` for everybody's statements. */
  private control(sql: string, isPrepared: boolean): Effect.Effect<ReadonlyArray<never>, SqlError> | undefined {
    if (this.beginning === undefined) {
      this.beginning = { sql, isPrepared }
      return Effect.succeed([])
    }
    if (sql === rollbackStatement) return Effect.as(this.rollback(), [])
    const match = controls.exec(sql)
    if (match === null) return undefined
    const [, isRollback, isRelease, name] = match
    if (isRollback === undefined && isRelease === undefined) this.savepointCount++
    return this.gate.withPermit(Effect.suspend(() => {
      if (this.session === undefined) {
        // Nothing has been sent yet: the savepoint is remembered, or forgotten with all that came after it.
        const at = this.savepoints.indexOf(`SAVEPOINT ${name}`)
        if (isRollback !== undefined) this.savepoints.length = at + 1
        else if (isRelease !== undefined) this.savepoints.length = at
        else this.savepoints.push(sql)
        return Effect.succeed([])
      }
      if (isRollback === undefined && isRelease === undefined) {
        return Effect.as(this.noting(Effect.flatMap(this.open(), ({ pinned }) => pinned.query(sql))), [])
      }
      // The client turns a failure here into a defect, which would hide what went wrong before it.
      if (this.failed !== undefined) return Effect.succeed([])
      return this.noting(this.session.pinned.query(sql)).pipe(
        Effect.as([]),
        Effect.catch((error) => hasLostConnection(error) ? Effect.succeed([]) : Effect.fail(error))
      )
    }))
  }

  /** Ends the transaction without its writes. Never fails: a session that cannot be rolled back is thrown away, which does it too. */
  private rollback(): Effect.Effect<void> {
    this.ended = true
    const session = this.session
    if (session === undefined || this.isSevered) return Effect.void
    // A statement still under way belongs to a fiber that outlived the transaction: nobody wants its result.
    const cancelled = Effect.repeat(session.pinned.interrupt, Schedule.spaced("50 millis"))
    const idle = Effect.flatMap(
      this.gate.takeIfAvailable(1),
      (isIdle) => isIdle ? Effect.void : Effect.raceFirst(this.gate.take(1), cancelled)
    )
    return Effect.andThen(idle, this.undo(session)).pipe(
      // Whoever still waits here is told that it is over.
      Effect.ensuring(this.gate.release(1)),
      Effect.asVoid,
      Effect.uninterruptible
    )
  }

  protected undo({ base, pinned }: Session): Effect.Effect<void> {
    const { breakage } = this
    const undone = Effect.asVoid(pinned.query(rollbackStatement))
    return Effect.catch(
      breakage?.by === "readOnly"
        ? Effect.andThen(undone, this.lookForWrites(base, breakage.error, pinned))
        : undone,
      () => this.pool.invalidate(base)
    )
  }

  /**
   * Ends the transaction from outside, whatever runs in it: nothing more is sent, its session ends on the server (`terminate`), and the
   * pool replaces it. Without a session, or after the transaction has ended, there is nothing to end.
   */
  sever(terminate: (processId: number) => Effect.Effect<void>): Effect.Effect<void> {
    return Effect.suspend(() => {
      if (this.isSevered) return Effect.void
      this.isSevered = true
      this.ended = true
      const { session } = this
      return session === undefined || session.lease.state._tag === "Closed" ? Effect.void : this.cut(session, terminate)
    })
  }

  /** Taken out of the pool first, so that nobody else has the session when the server ends it. */
  protected cut(
    { base, lease }: Session,
    terminate: (processId: number) => Effect.Effect<void>
  ): Effect.Effect<void> {
    return this.pool.invalidate(base).pipe(
      Effect.andThen(terminate(base.processId)),
      Effect.andThen(Scope.close(lease, Exit.void)),
      Effect.uninterruptible
    )
  }

  /** Ends a transaction in which no statement was sent. */
  abandon(): void {
    this.ended = true
  }

  /** Ends the transaction with its writes. Fails with the server's reason, or with an error that `isCommitUnknown`. */
  commit(): Effect.Effect<void, SqlError> {
    if (this.isSevered) return Effect.fail(hasEnded)
    const last = this.last
    // Without a session no statement was sent: there is nothing to commit, or the last one alone, which is a transaction by
    // itself. (One that was asked to begin in its own way does.)
    if (this.session === undefined && (last === undefined || this.beginning?.sql === beginStatement)) {
      this.ended = true
      return last === undefined ? Effect.void : this.commitAlone(last)
    }
    return this.gate.withPermit(
      Effect.flatMap(Effect.exit(Effect.suspend(() => this.open())), (opened) => {
        this.ended = true
        const session = this.session
        if (session === undefined) return Effect.asVoid(opened)
        const { base, pin } = session
        return Effect.flatMap(Scope.close(pin, Exit.void), () => {
          if (Exit.isFailure(opened)) return Effect.andThen(cleanUp(this.pool, base), Effect.asVoid(opened))
          return last === undefined ? commitNow(this.pool, base) : Effect.tapError(
            commitAfter(this.pool, base, last),
            (error) => sqlState(error) === "25006" ? this.lookForWrites(base, error) : Effect.void
          )
        })
      })
    )
  }

  private commitAlone(last: LastStatement): Effect.Effect<void, SqlError> {
    // The wait for a session can still be interrupted: nothing has been sent.
    return Effect.flatMap(
      Effect.interruptible(Scope.provide(this.pool.get, this.leases)),
      (base) =>
        Effect.flatMap(
          send(base, last),
          (sent) => Effect.mapError(answerOf(sent), (error) => Exit.isExit(sent) ? error : asUnanswered(error))
        )
    )
  }
}

/**
 * The session of a group during one turn. Its first statement may have been sent ahead (a `Ride`); from the second on, and for all others,
 * the session is pinned, so that interruption cancels them on the server.
 */
import type { PgConnection } from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import type { Connection } from "effect/sql/SqlConnection"
import type { SqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import { onLiveClock } from "../time/liveClock.ts"
import * as SessionConnection from "./connection.ts"
import type { Line, Session } from "./LazyConnection.ts"

type Statement<A> = (statements: Connection) => Effect.Effect<A, SqlError>

/** Waits until the server has answered these; cancels them when it takes too long. */
export const untilIdle = (
  fibers: ReadonlyArray<Fiber.Fiber<unknown, SqlError>>,
  cancel: Effect.Effect<void>
): Effect.Effect<void> =>
  fibers.every((fiber) => fiber.pollUnsafe() !== undefined) ? Effect.void : Effect.asVoid(Effect.raceFirst(
    Fiber.awaitAll(fibers),
    onLiveClock(Effect.repeat(Effect.andThen(Effect.sleep("50 millis"), cancel), Schedule.forever))
  ))

/** The first statement of an attempt that waits for its turn. */
export class Ride<A> {
  private readonly statement: Statement<A>
  private fiber: Fiber.Fiber<A, SqlError> | undefined
  /** It was sent behind a savepoint that is there. */
  isValid = false
  /** It reads or writes rows, and changes nothing else that the next one would find. */
  readonly isPlain: boolean

  constructor(statement: Statement<A>, isPlain: boolean) {
    this.statement = statement
    this.isPlain = isPlain
  }

  /** Sends it at once, whoever calls. */
  launch(base: PgConnection): Effect.Effect<void> {
    return Effect.map(
      Effect.forkDetach(this.statement(SessionConnection.make(base)), {
        startImmediately: true,
        uninterruptible: true
      }),
      (fiber) => {
        this.fiber = fiber
      }
    )
  }

  /** It was sent in vain, and is as if it had not been: the fiber that still waits for its answer. */
  recall(): ReadonlyArray<Fiber.Fiber<A, SqlError>> {
    const { fiber } = this
    this.fiber = undefined
    this.isValid = false
    return fiber === undefined ? [] : [fiber]
  }

  /** Until the server has answered. */
  get answered(): Effect.Effect<void> {
    return this.fiber === undefined ? Effect.void : Effect.asVoid(Fiber.await(this.fiber))
  }

  get isUnderWay(): boolean {
    return this.fiber !== undefined && this.fiber.pollUnsafe() === undefined
  }

  /** Its answer; `otherwise` where it was not sent, or in vain. */
  answer(otherwise: Effect.Effect<A, SqlError>, cancel: Effect.Effect<void>): Effect.Effect<A, SqlError> {
    return this.isValid && this.fiber !== undefined
      ? Effect.onInterrupt(Fiber.join(this.fiber), () => this.end(cancel))
      : otherwise
  }

  /** Cancels it on the server, and waits until that has answered. */
  end(cancel: Effect.Effect<void>): Effect.Effect<void> {
    const { fiber } = this
    return fiber === undefined || !this.isUnderWay
      ? Effect.void
      : Effect.asVoid(
        Effect.raceFirst(Fiber.await(fiber), onLiveClock(Effect.repeat(cancel, Schedule.spaced("50 millis"))))
      )
  }
}

/** See the top of this file. Closed before anything is sent that is not its own. */
export class Turn implements Session, Line, Connection {
  readonly base: PgConnection
  readonly pin: Scope.Closeable
  private readonly cancel: Effect.Effect<void>
  private readonly alone: Effect.Effect<void, SqlError>
  private readonly ride: Ride<unknown> | undefined
  private view: PgConnection | undefined
  private connection: Connection | undefined

  /** `cancel`: of what runs on the session. `alone`: undoes what was sent on it ahead of the turns to come. */
  constructor({ alone, base, cancel, ride, scope }: {
    readonly base: PgConnection
    readonly scope: Scope.Scope
    readonly cancel: Effect.Effect<void>
    readonly alone: Effect.Effect<void, SqlError>
    readonly ride: Ride<unknown> | undefined
  }) {
    this.base = base
    this.pin = Scope.forkUnsafe(scope)
    this.cancel = cancel
    this.alone = alone
    this.ride = ride
  }

  get pinned(): Line {
    return this
  }

  /** The session is the group's: a turn gives back its pin. */
  get lease(): Scope.Closeable {
    return this.pin
  }

  get statements(): Connection {
    return this
  }

  close(): Effect.Effect<void> {
    return Scope.close(this.pin, Exit.void)
  }

  get interrupt(): Effect.Effect<void> {
    return this.ride?.isUnderWay === true ? this.cancel : this.view?.interrupt ?? Effect.void
  }

  query: Line["query"] = (...args) => Effect.flatMap(this.pinning, (pinned) => pinned.query(...args))

  execute: Connection["execute"] = (...args) => Effect.flatMap(this.own, (own) => own.execute(...args))

  executeUnprepared: Connection["executeUnprepared"] = (...args) =>
    Effect.flatMap(this.own, (own) => own.executeUnprepared(...args))

  executeRaw: Connection["executeRaw"] = (...args) => Effect.flatMap(this.own, (own) => own.executeRaw(...args))

  executeValues: Connection["executeValues"] = (...args) =>
    Effect.flatMap(this.own, (own) => own.executeValues(...args))

  executeValuesUnprepared: Connection["executeValuesUnprepared"] = (...args) =>
    Effect.flatMap(this.own, (own) => own.executeValuesUnprepared(...args))

  executeStream: Connection["executeStream"] = (...args) =>
    Stream.unwrap(Effect.map(this.own, (own) => own.executeStream(...args)))

  private get pinning(): Effect.Effect<PgConnection, SqlError> {
    return this.view !== undefined ? Effect.succeed(this.view) : Effect.uninterruptible(
      Effect.andThen(this.alone, Effect.map(Scope.provide(this.base.pin, this.pin), (view) => this.view = view))
    )
  }

  private get own(): Effect.Effect<Connection, SqlError> {
    return this.connection !== undefined
      ? Effect.succeed(this.connection)
      : Effect.map(this.pinning, (view) => this.connection = SessionConnection.make(view))
  }
}

/**
 * The connection of one attempt's transaction, opened by hand: see `attemptTransaction`. Ends with `commitAndTell`, `rollBack` or, where
 * nothing was asked of it, `abandon`.
 */
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type { SqlError } from "effect/sql/SqlError"
import { atMost } from "../time/liveClock.ts"
import { inspectableCause } from "../words/safely.ts"
import { rollbackStatement } from "./ending.ts"
import { LazyConnection } from "./LazyConnection.ts"

const logUnhandled = (cause: Cause.Cause<unknown>) =>
  Effect.flatMap(References.UnhandledLogLevel, (level) =>
    level === undefined
      ? Effect.void
      : Effect.logWithLevel(level)("Unhandled error in SqlClient.afterCommit callback", inspectableCause(cause)))

/** It has committed: neither what a callback of the user's throws nor the log of it can change that. */
const runCallback = (callback: Effect.Effect<void>) =>
  callback.pipe(Effect.catchCause(logUnhandled), Effect.catchDefect(() => Effect.void))

/** For how long callbacks of `afterCommit` are waited for. */
const callbackMs = 5_000

/** The connection of one attempt's transaction. */
export class AttemptConnection extends LazyConnection {
  /** To run once it has committed. */
  private callbacks: Array<Effect.Effect<void>> | undefined
  private lazyNestings: Semaphore.Semaphore | undefined

  /** `withTransaction`s of one transaction are savepoints, one after another. */
  get nestings(): Semaphore.Semaphore {
    return this.lazyNestings ??= Semaphore.makeUnsafe(1)
  }

  /** Whether its end has anything to do. */
  get isIdle(): boolean {
    return !this.hasBegun && this.callbacks === undefined
  }

  onCommit(callback: Effect.Effect<void>): void {
    if (this.callbacks === undefined) this.callbacks = [callback]
    else this.callbacks.push(callback)
  }

  /** What was registered with `onCommit` runs when it has committed and its session is given back. */
  commitAndTell(): Effect.Effect<void, SqlError> {
    return Effect.andThen(Effect.ensuring(this.commit(), this.close()), this.tell())
  }

  /** Runs what was registered with `onCommit`. A callback that does not end is not waited for: the job has committed. */
  protected tell(): Effect.Effect<void> {
    return Effect.suspend(() =>
      this.callbacks === undefined
        ? Effect.void
        : atMost(callbackMs, Effect.forEach(this.callbacks, runCallback, { discard: true }))
    )
  }

  rollBack(): Effect.Effect<void> {
    return Effect.ensuring(Effect.orDie(this.execute(rollbackStatement, [], undefined)), this.close()).pipe(
      Effect.asVoid
    )
  }

  private close(): Effect.Effect<void> {
    return Effect.suspend(() => this.leased === undefined ? Effect.void : Scope.close(this.leased, Exit.void))
  }
}

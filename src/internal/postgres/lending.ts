/**
 * A pool that knows how long somebody has waited for one of its sessions, and for how long the server has refused it further ones. Nothing
 * is decided here, and nothing is done about it: those who wait go on waiting, those who were refused try again.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import { isSqlError } from "effect/sql/SqlError"
import { noShortage, type Shortage } from "../../JobStore.ts"
import { monotonicMillis } from "../time/liveClock.ts"
import { describe, guard, property, textOf } from "../words/safely.ts"

/** A transaction that can be ended from outside. */
interface Transaction {
  readonly hasEnded: boolean
  readonly sever: (terminate: (processId: number) => Effect.Effect<void>) => Effect.Effect<void>
}

/** One who waits. */
interface Wait {
  readonly since: number
}

/** Whoever was refused tries again within 5 seconds, and waits as long for the answer: later refusals are another matter. */
const quietMs = 12_000

const wordsOf = (error: unknown): string => {
  const cause = guard(isSqlError)(error) ? property(error.reason, "cause") : error
  return textOf(cause, "message") ?? describe(error, 1_000)
}

/** The account of one pool. */
export class Lending {
  /** In the order in which they came. */
  private readonly waits = new Set<Wait>()
  private refusals: { readonly since: number; readonly last: number; readonly because: string } | undefined
  private readonly now: () => number
  /** What each attempt has opened by itself. */
  private readonly transactions = new WeakMap<object, Set<Transaction>>()

  constructor(now: () => number = monotonicMillis) {
    this.now = now
  }

  begin(): Wait {
    const wait = { since: this.now() }
    this.waits.add(wait)
    return wait
  }

  /** It got one. */
  served(wait: Wait): void {
    this.waits.delete(wait)
  }

  /** It waits no more, because of this: a refusal, where it had not got one and did not give up by itself. */
  ended(wait: Wait, exit: Exit.Exit<unknown, unknown>): void {
    if (!this.waits.delete(wait) || Exit.isSuccess(exit) || Cause.hasInterruptsOnly(exit.cause)) return
    const now = this.now()
    const because = wordsOf(Cause.squash(exit.cause))
    const before = this.refusals
    this.refusals = before === undefined || now - before.last > quietMs
      ? { since: now, last: now, because }
      : { ...before, last: now, because }
  }

  /** This attempt has opened it. */
  opened(job: object, transaction: Transaction): void {
    const open = this.transactions.get(job) ?? new Set()
    for (const one of open) if (one.hasEnded) open.delete(one)
    this.transactions.set(job, open.add(transaction))
  }

  /** Ends what this attempt has open. */
  sever(job: object, terminate: (processId: number) => Effect.Effect<void>): Effect.Effect<void> {
    return Effect.suspend(() =>
      Effect.forEach(this.transactions.get(job) ?? [], (transaction) => transaction.sever(terminate), {
        concurrency: "unbounded",
        discard: true
      })
    )
  }

  get shortage(): Shortage {
    const [first] = this.waits
    const { refusals } = this
    if (first === undefined && refusals === undefined) return noShortage
    const now = this.now()
    return {
      waitedMs: first === undefined ? 0 : now - first.since,
      refused: refusals === undefined || now - refusals.last > quietMs
        ? undefined
        : { forMs: refusals.last - refusals.since, because: refusals.because }
    }
  }
}

/** The ways to ask a pool for one of its sessions. */
interface Asking<Session, E> {
  readonly get: Effect.Effect<Session, E, Scope.Scope>
  readonly reserve: Effect.Effect<Session, E, Scope.Scope>
  readonly use: <A, E2, R>(f: (session: Session) => Effect.Effect<A, E2, R>) => Effect.Effect<A, E | E2, R>
}

/** The same, with an account of who waits. */
export const watched = <Session, E>(
  { get, reserve, use }: Asking<Session, E>,
  lending: Lending
): Asking<Session, E> => {
  const during = (ask: Effect.Effect<Session, E, Scope.Scope>) =>
    // Nothing may come between the beginning and what ends it: whoever is never struck off waits for ever, by the account.
    Effect.uninterruptibleMask((restore) => {
      const wait = lending.begin()
      return Effect.onExit(restore(ask), (exit) => Effect.sync(() => lending.ended(wait, exit)))
    })
  return {
    get: during(get),
    reserve: during(reserve),
    use: (f) =>
      Effect.uninterruptibleMask((restore) => {
        const wait = lending.begin()
        const served = use((session) => {
          lending.served(wait)
          return f(session)
        })
        return Effect.onExit(restore(served), (exit) => Effect.sync(() => lending.ended(wait, exit)))
      })
  }
}

/**
 * Sessions that an attempt uses beside the transaction of its job: a statement of its own, a reserved connection, a stream. When the attempt is
 * abandoned they end on the server, and the pool replaces them, whatever its handler does.
 */
import type { PgConnection } from "@effect/sql-pg/PgConnection"
import type { PgPool } from "@effect/sql-pg/PgPool"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import { CurrentJob } from "../../CurrentJob.ts"
import type { Lending } from "./lending.ts"

/** The ways to ask a pool for a session. */
type Asking = Pick<PgPool, "reserve" | "use">

/** The same, known to `lending` for as long as an attempt has the session. */
export const severable = (pool: PgPool, lending: Lending): Asking => {
  const current = (context: Context.Context<never>) => Context.getOrUndefined(context, CurrentJob)
  return {
    reserve: Effect.contextWith((context: Context.Context<Scope.Scope>) => {
      const job = current(context)
      if (job === undefined) return pool.reserve
      const lease = Scope.forkUnsafe(Context.get(context, Scope.Scope))
      return Effect.tap(Scope.provide(pool.reserve, lease), (session) =>
        Effect.sync(() =>
          lending.opened(job, {
            get hasEnded() {
              return lease.state._tag === "Closed"
            },
            sever: (terminate) =>
              Effect.suspend(() =>
                lease.state._tag === "Closed" ? Effect.void : pool.invalidate(session).pipe(
                  Effect.andThen(terminate(session.processId)),
                  Effect.andThen(Scope.close(lease, Exit.void)),
                  Effect.uninterruptible
                )
              )
          })
        ))
    }),
    use: <A, E, R>(use: (session: PgConnection) => Effect.Effect<A, E, R>): Effect.Effect<A, E | SqlError, R> =>
      Effect.contextWith((context: Context.Context<R>) => {
        const job = current(context)
        return job === undefined ? pool.use(use) : pool.use((session) => {
          let hasEnded = false
          lending.opened(job, {
            get hasEnded() {
              return hasEnded
            },
            // What it waits for fails, and with that it gives the session back.
            sever: (terminate) =>
              Effect.suspend(() =>
                hasEnded ? Effect.void : Effect.andThen(pool.invalidate(session), terminate(session.processId))
              )
          })
          return Effect.ensuring(use(session), Effect.sync(() => hasEnded = true))
        })
      })
  }
}

/**
 * Tells whether sessions are one's own, or lent for a transaction at a time by a pooler in between. Reads only; leaves nothing behind.
 */
import * as Effect from "effect/Effect"
import type { SqlClient } from "effect/sql/SqlClient"
import type { Connection } from "effect/sql/SqlConnection"
import type { SqlError } from "effect/sql/SqlError"

const backendOf = (session: Connection): Effect.Effect<unknown, SqlError> =>
  Effect.map(session.executeValuesUnprepared("select pg_backend_pid()::text", []), ([row]) => row?.[0])

/** How often two sessions are compared: a pooler that has several backends does not always lend the same one. */
const tries = 5

/**
 * Whether two sessions that are open at the same time are served by one backend, which cannot be unless a pooler shares it among them: then
 * session locks and LISTEN belong to nobody. Takes two connections of the client.
 */
export const sharesSessions = (client: SqlClient): Effect.Effect<boolean, SqlError> =>
  Effect.scoped(Effect.gen(function*() {
    const [idle, busy] = [yield* client.reserve, yield* client.reserve]
    const inTransaction = Effect.acquireUseRelease(
      busy.executeUnprepared("begin", [], undefined),
      () => backendOf(busy),
      () => Effect.ignore(busy.executeUnprepared("rollback", [], undefined))
    )
    for (let count = 0; count < tries; count++) {
      if ((yield* backendOf(idle)) === (yield* inTransaction)) return true
    }
    return false
  })).pipe(Effect.withTracerEnabled(false))

/**
 * terminate: ends a session of the handlers' pool, whatever runs in it. For an abandoned handler, whose transaction would keep its locks
 * and its connection. The server rolls it back; a crash on any line leaves it to the handler.
 */
import * as Effect from "effect/Effect"
import { atMost } from "../time/liveClock.ts"
import type { Database } from "./database.ts"
import { int4 } from "./rows.ts"

/** Ends the session with this process id. Never fails, and takes at most a second. */
export type Terminate = (processId: number) => Effect.Effect<void>

const withinMs = 1_000

// Both pools log in as the same role, so neither superuser nor pg_signal_backend is needed.
export const terminator = (db: Database): Terminate => (processId) =>
  atMost(withinMs, Effect.ignore(db.run("transact", "select pg_catalog.pg_terminate_backend($1)", [int4(processId)])))

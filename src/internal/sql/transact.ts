/**
 * transact and refence: a handler's writes and its completion in one commit. The settle function raises MR001 in the server when it takes
 * nothing, so that the COMMIT travelling behind it becomes a rollback: a superseded attempt cannot commit. A crash or a lost connection
 * before COMMIT is answered leaves either all of it or nothing; refence finds out which, and forbids the rest.
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as References from "effect/References"
import type { SqlClient } from "effect/sql/SqlClient"
import { isSqlError, type SqlError } from "effect/sql/SqlError"
import { CommitFailed } from "../../JobError.ts"
import type { JobId } from "../../JobId.ts"
import { outcomeCodes } from "../../JobState.ts"
import type { Breakage, Finish, JobStore, Owner, Session, StoreError, Transacted } from "../../JobStore.ts"
import type { AttemptConnection } from "../postgres/AttemptConnection.ts"
import type { LazyConnection } from "../postgres/LazyConnection.ts"
import type { Lending } from "../postgres/lending.ts"
import { atMost, monotonicMillis, onLiveClock } from "../time/liveClock.ts"
import * as Standstill from "../time/standstill.ts"
import { guard } from "../words/safely.ts"
import { type Database, isMissingDay, messageOf, toStoreError } from "./database.ts"
import type { Foresee } from "./retention.ts"
import { dayOf, entryJson, int2, int4, int8, text, timestamp, uuid } from "./rows.ts"
import type { Terminate } from "./terminate.ts"
import {
  breakage,
  breakageOf,
  breakageOn,
  hasLostConnection,
  isCommitUnknown,
  sqlState,
  type Transactions,
  transactionsOf
} from "./transaction.ts"

// The last statement of the handler's transaction. Schema-qualified, for the handler may have changed search_path. Not supported: a handler
// that leaves a SET ROLE behind to a role without rights on the schema (42501, the attempt fails). `is null`, since the driver reads no
// void; in FROM a function costs a scan more.
export const settleSql = (schema: string) =>
  `select ${schema}.settle($1, $2, $3, $4, $5, $6, $7, date '1970-01-01' + $8, $9, $10::jsonb) is null`

export const settleParameters = (owner: Owner, settlement: Finish, now: number): ReadonlyArray<unknown> => [
  uuid(settlement.id),
  int4(settlement.version),
  int4(owner.queueId),
  int2(owner.partition),
  int8(owner.epoch),
  int2(outcomeCodes[settlement.outcome]),
  timestamp(now),
  int4(dayOf(settlement.purgeAt)),
  text(settlement.result),
  text(entryJson(settlement.entry))
]

/** How the attempt is to be settled. */
export interface Completion {
  readonly settlement: Finish
  readonly now: number
}

const madeReadOnly =
  "the transaction's own statements had made it read-only, so the job's completion could not be written"

const noSession: Pick<LazyConnection, "brokenBy" | "lastWords"> = { brokenBy: undefined, lastWords: undefined }

/** COMMIT was sent on a session that has ended. */
const unknown = (error: SqlError): Transacted => ({
  _tag: "Unknown",
  by: breakageOf(error, true) ?? "crashed",
  cause: Cause.fail(new CommitFailed({ sqlState: sqlState(error) ?? "08006", detail: messageOf(error) }))
})

/**
 * What the end of a transaction without a commit means. `isCommitting`: COMMIT may have been sent by a client that does not say so. A session
 * that is lost while COMMIT never left counts as what had broken the transaction before.
 */
export const conclude = (
  answer: SqlError,
  isCommitting: boolean,
  { brokenBy, lastWords }: Pick<LazyConnection, "brokenBy" | "lastWords"> = noSession
): Effect.Effect<Transacted, CommitFailed> => {
  if (isCommitUnknown(answer)) return Effect.succeed(unknown(lastWords ?? answer))
  const error = hasLostConnection(answer) ? lastWords ?? answer : answer
  const state = sqlState(error)
  if (isCommitting && state === undefined && error.reason._tag === "ConnectionError") {
    return Effect.succeed(unknown(error))
  }
  if (state === "MR001") return Effect.succeed({ _tag: "Superseded" })
  const failure = toStoreError("transact")(error)
  // A limit on the time of statements may be the handler's, or everybody's.
  if (state === "57014") return Effect.succeed({ _tag: "Broken", by: "unable", cause: Cause.fail(error) })
  const by = hasLostConnection(error) || state === "25006" || state === "25P02"
    ? brokenBy?.by ?? breakageOf(error, false)
    : breakageOf(error, false)
  if (by !== undefined && by !== "conflict" && by !== "ended" && by !== "readOnly") {
    return Effect.succeed({ _tag: "Broken", by, cause: Cause.fail(error) })
  }
  // The same failure as if the handler had met it: what the server says, class System.
  if (by === "ended") return Effect.succeed({ _tag: "Broken", by, cause: Cause.die(error) })
  // A purge dropped the day meanwhile: a conflict like any other, and gone when the attempt runs again.
  const code = isMissingDay(failure) ? "40001" : state ?? "25P02"
  const detail = by === "readOnly" ? `${madeReadOnly}: ${messageOf(error)}` : messageOf(error)
  const failed = new CommitFailed({ sqlState: code, detail })
  if (code === "40001" || code === "40P01") {
    return Effect.succeed({ _tag: "Broken", by: "conflict", cause: Cause.fail(failed) })
  }
  return by === undefined ? Effect.fail(failed) : Effect.succeed({ _tag: "Broken", by, cause: Cause.fail(failed) })
}

/** Its signature, which other ways to run a transaction share. */
export type Transact = JobStore["Service"]["transact"]

/** See {@link JobStore.transact}. */
export const transact = (
  db: Database,
  client: SqlClient,
  { foresee, terminate }: { readonly foresee: Foresee; readonly terminate: Terminate },
  lending: Lending
): Transact => {
  const transactions = transactionsOf(client)
  return transactions === undefined
    ? transactEagerly(db, client, foresee, lending)
    : transactLazily(db, transactions, { foresee, terminate })
}

/** After that the server's other sessions have heard of a shutdown, too. */
const hearsay = "100 millis"

/**
 * A session that the server ended: one of the store's own tells whether the server goes on serving others. Not so where that one is refused, or
 * is itself younger than the transaction: then others were ended, too, and the end says nothing about the job.
 */
export const explain = <T extends { readonly _tag: string }>(
  db: Database,
  transacted: T,
  connection: LazyConnection
): Effect.Effect<T> => {
  if (!("by" in transacted) || transacted.by !== "ended") return Effect.succeed(transacted)
  const error = connection.lastWords ?? connection.brokenBy?.error
  if (error !== undefined && isOwnTimeout(error)) return Effect.succeed(transacted)
  const sinceStart = db.run<{ readonly ms: number }>(
    "transact",
    "select extract(epoch from clock_timestamp() - backend_start)::float8 * 1000 as ms from pg_stat_activity where pid = pg_backend_pid()",
    []
  )
  return Effect.sleep(hearsay).pipe(
    Effect.andThen(sinceStart),
    Effect.timeout("2 seconds"),
    onLiveClock,
    Effect.map(([row]) => row !== undefined && row.ms > connection.heldMs),
    Effect.orElseSucceed(() => false),
    Effect.map((isServing) => isServing ? transacted : { ...transacted, by: "unable" })
  )
}

/** The server ended the session for what its own transaction did: it idled (25P03), or took too long (25P04). */
const isOwnTimeout = (error: SqlError): boolean => ["25P03", "25P04"].includes(sqlState(error) ?? "")

/** From how many milliseconds on an open transaction is told of. */
export const LongTransaction = Context.Reference<number>("millrace/internal/LongTransaction", {
  defaultValue: () => 5_000
})

/** How often it is told of those of one type of jobs. */
const againMs = 60_000

/**
 * What is open keeps the server from cleaning up what every other transaction leaves behind. For how long the process stood still is no
 * fault of the handler's.
 */
const makeTellIfLong = () => {
  const toldAt = new Map<string, number>()
  return (connection: AttemptConnection, services: Context.Context<never>): Effect.Effect<void> => {
    const { heldMs } = connection
    const longMs = Context.get(services, LongTransaction)
    if (heldMs < longMs) return Effect.void
    const now = monotonicMillis()
    if (heldMs - Context.get(services, Standstill.Current).stoodSince(now - heldMs) < longMs) return Effect.void
    const type = String(Context.get(services, References.CurrentLogAnnotations)["jobType"])
    for (const [other, at] of toldAt) if (now - at >= againMs) toldAt.delete(other)
    if (toldAt.has(type)) return Effect.void
    toldAt.set(type, now)
    return Effect.logWarning(
      `The transaction of a job of type ${type} was open for ${
        Math.round(heldMs)
      } ms: let its handler write last, or give it \`transaction: "none"\` and use sql.withTransaction for the writes`
    )
  }
}

/** On a transaction opened by hand, which costs nothing before the first statement. */
const transactLazily = (
  db: Database,
  { open }: Transactions,
  { foresee, terminate }: { readonly foresee: Foresee; readonly terminate: Terminate }
): Transact => {
  const sql = settleSql(db.schema)
  const tellIfLong = makeTellIfLong()
  return <A, E, R>(
    owner: Owner,
    handler: Effect.Effect<A, E, R>,
    complete: (value: A) => Effect.Effect<Completion, E, R>,
    session?: Session
  ): Effect.Effect<Transacted, E | CommitFailed, R> =>
    Effect.uninterruptibleMask((restore) =>
      Effect.contextWith((services: Context.Context<R>) => {
        const [connection, context] = open(services)
        if (session !== undefined) session.end = connection.sever(terminate)
        const committed = ({ now, settlement }: Completion): Effect.Effect<Transacted, CommitFailed> => {
          if (connection.isIdle) {
            connection.abandon()
            return Effect.succeed({ _tag: "Pending", settlement })
          }
          const told = tellIfLong(connection, services)
          // Also where no statement was sent, but something waits for the commit: it must not run before the settlement is written.
          foresee(now, settlement.purgeAt)
          connection.setLast({ sql, params: settleParameters(owner, settlement, now) })
          return Effect.matchEffect(Effect.ensuring(connection.commitAndTell(), told), {
            onFailure: (error) =>
              Effect.flatMap(conclude(error, false, connection), (end) => explain(db, end, connection)),
            onSuccess: () => Effect.succeed<Transacted>({ _tag: "Committed", settlement })
          })
        }
        const rolledBack = (cause: Cause.Cause<E>): Effect.Effect<Transacted, E> => {
          // Of one that was cut short (a timeout, a shutdown, a lost lock, a cancel) it says nothing about how the handler is written.
          const told = Cause.hasInterrupts(cause) || connection.hasEnded
            ? Effect.void
            : tellIfLong(connection, services)
          return Effect.flatMap(Effect.ensuring(connection.rollBack(), told), (): Effect.Effect<Transacted, E> => {
            const by = breakageOn(connection, cause)
            return by === undefined
              ? Effect.failCause(cause)
              : explain<Transacted>(db, { _tag: "Broken", by, cause }, connection)
          })
        }
        return Effect.matchCauseEffect(
          restore(Effect.setContext(Effect.flatMap(handler, complete), context)),
          { onFailure: rolledBack, onSuccess: committed }
        )
      })
    )
}

/** The transaction of somebody else's client ends its own session, as soon as that takes a statement. */
const severedBy = (client: SqlClient, session: Session) =>
  Effect.map(Effect.serviceOption(client.transactionService), (transaction) => {
    if (Option.isNone(transaction)) return
    const [connection] = transaction.value
    session.end = atMost(1_000, connection.execute("select pg_terminate_backend(pg_backend_pid())", [], undefined))
  })

/** In `withTransaction` of somebody else's client, which says only by running it that it has got a connection (`lending`). */
const transactEagerly = ({ schema }: Database, client: SqlClient, foresee: Foresee, lending: Lending): Transact => {
  const sql = settleSql(schema)

  const end = (owner: Owner, { now, settlement }: Completion): Effect.Effect<Transacted, SqlError> =>
    Effect.suspend(() => {
      foresee(now, settlement.purgeAt)
      return Effect.as(
        Effect.withTracerEnabled(client.unsafe(sql, settleParameters(owner, settlement, now)), false),
        { _tag: "Committed", settlement }
      )
    })

  return <A, E, R>(
    owner: Owner,
    handler: Effect.Effect<A, E, R>,
    complete: (value: A) => Effect.Effect<Completion, E, R>,
    session?: Session
  ): Effect.Effect<Transacted, E | CommitFailed, R> =>
    Effect.uninterruptibleMask((restore) => {
      // The handler's own failure is told from the transaction's by where it happened: both may be a SqlError.
      let handlerFailure: Cause.Cause<E> | undefined
      let broken: Breakage | undefined
      let isCommitting = false
      const handled = Effect.onExit(Effect.flatMap(handler, complete), (exit) =>
        Exit.isSuccess(exit) ? Effect.void : Effect.map(breakage(client, exit.cause), (by) => {
          handlerFailure = exit.cause
          broken = by
        }))
      const wait = lending.begin()
      const ended = Effect.tap(
        Effect.flatMap(
          Effect.suspend(() => {
            lending.served(wait)
            return session === undefined ? handled : Effect.andThen(severedBy(client, session), handled)
          }),
          (completion) =>
            end(owner, completion)
        ),
        () => {
          isCommitting = true
          return Effect.void
        }
      )
      // The attempt has a span of its own.
      const transacted = Effect.flatMap(References.TracerEnabled, (isTraced) =>
        Effect.withTracerEnabled(client.withTransaction(Effect.withTracerEnabled(ended, isTraced)), false))
      return Effect.catchCause(
        Effect.onExit(restore(transacted), (exit) =>
          Effect.sync(() =>
            lending.ended(wait, exit)
          )),
        (cause): Effect.Effect<Transacted, E | CommitFailed> => {
          if (handlerFailure !== undefined) {
            return broken === undefined
              ? Effect.failCause(handlerFailure)
              : Effect.succeed({ _tag: "Broken", by: broken, cause: handlerFailure })
          }
          const error = Option.getOrUndefined(Cause.findErrorOption(cause))
          return guard(isSqlError)(error)
            ? conclude(error, isCommitting)
            : Effect.failCause(Cause.map(cause, neverFails))
        }
      )
    })
}

/** Neither the handler nor the transaction failed: what is left are interrupts and defects. */
const neverFails = (error: unknown): never => {
  throw error
}

// The connection was lost during COMMIT. Waits until the old backend has ended its transaction. A row: that attempt can never commit any
// more (neither can a settle still lying in a socket); go on under the version given. None: finished or dead = it committed, live =
// superseded. On another connection, with lock_timeout, repeated: no wait is without an end. Serving index: jobs_pkey.
export const refence = (db: Database) => {
  const sql = `
update ${db.schema}.jobs set version = version + 1 where id = $1 and version = $2
  and exists (select from ${db.schema}.partitions p where p.queue_id = $3 and p.partition = $4 and p.epoch = $5)
returning version`
  return (owner: Owner, id: JobId, version: number): Effect.Effect<Option.Option<number>, StoreError> =>
    db.run<{ readonly version: number }>("refence", sql, [
      uuid(id),
      int4(version),
      int4(owner.queueId),
      int2(owner.partition),
      int8(owner.epoch)
    ]).pipe(
      Effect.retry({ while: ({ reason }) => reason === "LockTimeout" || reason === "Conflict" }),
      Effect.map(([row]) => Option.fromUndefinedOr(row?.version))
    )
}

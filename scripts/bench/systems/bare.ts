/**
 * No job system at all: plain SQL that does the least a scenario needs, on the same driver as Millrace. What it leaves out: priorities,
 * retries, crashes, several workers, history. The floor that a system is measured against.
 */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import type { Payload, Session, Settings, System } from "../System.ts"

type Connection = PgConnection.PgConnection

const tables = [
  `create schema bare`,
  `create table bare.jobs (
    id bigint generated always as identity primary key,
    created_at timestamptz not null default now(),
    locked_at timestamptz,
    payload json not null
  )`,
  `create index on bare.jobs (id) where locked_at is null`,
  `create table bare.finished (
    id bigint primary key,
    created_at timestamptz not null,
    finished_at timestamptz not null,
    payload json not null
  )`
]

const insert = `insert into bare.jobs (payload) values ($1::json)`

const insertMany = `insert into bare.jobs (payload) select p::json from unnest($1::text[]) as p`

const claim = `
update bare.jobs j set locked_at = now()
from (select id from bare.jobs where locked_at is null order by id limit 500 for update skip locked) c
where j.id = c.id
returning j.id, j.payload::text`

/** For a single process: what follows the last id it has seen. */
const readAfter = `select id, payload::text from bare.jobs where id > $1 order by id limit 500`

const keep =
  `insert into bare.finished (id, created_at, finished_at, payload) select id, created_at, now(), payload from d`

const settle = `with d as (delete from bare.jobs where id = $1 returning id, created_at, payload) ${keep}`

const settleMany =
  `with d as (delete from bare.jobs where id = any($1::bigint[]) returning id, created_at, payload) ${keep}`

const work = `insert into public.bench_rows (text) values ($1)`

interface Task {
  readonly id: bigint
  readonly payload: Payload
}

const query = (connection: Connection, sql: string, params: ReadonlyArray<unknown> = []) =>
  connection.queryValues(sql, params)

const tasks = (rows: ReadonlyArray<ReadonlyArray<unknown>>): ReadonlyArray<Task> =>
  rows.map(([id, payload]) => ({ id: BigInt(String(id)), payload: JSON.parse(String(payload)) }))

/** What `run` starts, for each kind of work: loops, and what wakes one that found nothing. */
interface Worker {
  readonly loops: ReadonlyArray<Effect.Effect<never, unknown>>
  readonly wake: () => void
  /** Taken in hand, and not written down as finished. */
  readonly inHand: () => number
}

/** Loops that found nothing wait here; each ring lets one of them look again, or the next one that would wait. */
const makeBell = () => {
  const waiting: Array<() => void> = []
  let hasRung = false
  return {
    wait: Effect.callback<void>((resume) => {
      const goOn = () => {
        resume(Effect.void)
      }
      if (hasRung) goOn()
      else waiting.push(goOn)
      hasRung = false
    }),
    ring: () => {
      const goOn = waiting.shift()
      if (goOn === undefined) hasRung = true
      else goOn()
    }
  }
}

/** Two loops: claim 500, run them, delete and keep them in one statement. */
const claiming = (connections: ReadonlyArray<Connection>, { onStart }: Settings): Worker => {
  const bell = makeBell()
  let inHand = 0
  const loop = (connection: Connection) =>
    Effect.gen(function*() {
      while (true) {
        const claimed = tasks(yield* query(connection, claim))
        if (claimed.length === 0) {
          yield* bell.wait
          continue
        }
        inHand += claimed.length
        for (const { payload } of claimed) onStart(payload)
        yield* query(connection, settleMany, [claimed.map(({ id }) => id)])
        inHand -= claimed.length
      }
    })
  return { loops: connections.slice(0, 2).map(loop), wake: bell.ring, inHand: () => inHand }
}

/** The first connection reads ahead of demand; the others share what it finds, `size` jobs at a time. */
const reading = (
  [reader, ...others]: ReadonlyArray<Connection>,
  size: number,
  run: (connection: Connection, jobs: ReadonlyArray<Task>) => Effect.Effect<unknown, unknown>
): Worker => {
  if (reader === undefined) throw new Error("no connection to read with")
  const bell = makeBell()
  const ahead: Array<Task> = []
  let last = 0n
  let inHand = 0
  let isReading = false
  /** Whether it found any. */
  const read = Effect.gen(function*() {
    isReading = true
    const found = tasks(yield* query(reader, readAfter, [last]))
    isReading = false
    last = found.at(-1)?.id ?? last
    inHand += found.length
    ahead.push(...found)
    if (found.length > 0) others.forEach(bell.ring)
    return found.length > 0
  })
  const loop = (connection: Connection) =>
    Effect.gen(function*() {
      while (true) {
        const jobs = ahead.splice(0, size)
        if (jobs.length > 0) {
          yield* run(connection, jobs)
          inHand -= jobs.length
        } else if (isReading || !(yield* read)) {
          yield* bell.wait
        }
      }
    })
  return { loops: others.map(loop), wake: bell.ring, inHand: () => inHand }
}

/** Four statements a job, on a connection that nobody else has meanwhile. */
const transactionEach = (connections: ReadonlyArray<Connection>, { onStart }: Settings) =>
  reading(connections, 1, (connection, [job]) =>
    job === undefined ? Effect.void : Effect.gen(function*() {
      yield* query(connection, "begin")
      onStart(job.payload)
      yield* query(connection, work, [job.payload.text])
      yield* query(connection, settle, [job.id])
      yield* query(connection, "commit")
    }))

/** Fifty jobs a transaction, a savepoint each, in one write: statements issued at once share it on a multiplexed connection. */
const grouped = (connections: ReadonlyArray<Connection>, { onStart }: Settings) =>
  reading(connections, 50, (connection, jobs) => {
    for (const { payload } of jobs) onStart(payload)
    return Effect.all([
      query(connection, "begin"),
      ...jobs.flatMap(({ payload }) => [
        query(connection, "savepoint job"),
        query(connection, work, [payload.text]),
        query(connection, "release savepoint job")
      ]),
      query(connection, settleMany, [jobs.map(({ id }) => id)]),
      query(connection, "commit")
    ], { concurrency: "unbounded", discard: true })
  })

/** Connections of each kind of work, the reader included. */
const workers = {
  noop: { connections: 2, make: claiming },
  write: { connections: 9, make: transactionEach },
  grouped: { connections: 4, make: grouped }
}

const open = async (settings: Settings): Promise<Session> => {
  const scope = Scope.makeUnsafe()
  const connect = (count: number, multiplex: boolean) =>
    Effect.runPromise(
      Effect.forEach(
        Array.from({ length: count }),
        () => PgConnection.make({ url: Redacted.make(settings.url), multiplex })
      ).pipe(Scope.provide(scope))
    )
  const submitters = await connect(10, false)
  const stopping = new AbortController()
  let worker: Worker | undefined

  /** Each submission takes the first connection that is free. */
  const free = [...submitters]
  const waiting: Array<(connection: Connection) => void> = []
  const onFree = async (sql: string, params: ReadonlyArray<unknown>) => {
    const connection = free.pop() ?? await new Promise<Connection>((resolve) => waiting.push(resolve))
    await Effect.runPromise(query(connection, sql, params))
    const next = waiting.shift()
    if (next === undefined) free.push(connection)
    else next(connection)
  }

  return {
    submit: async (payload) => {
      await onFree(insert, [JSON.stringify(payload)])
      worker?.wake()
    },
    submitMany: async (payloads) => {
      await onFree(insertMany, [payloads.map((payload) => JSON.stringify(payload))])
      worker?.wake()
    },
    run: async () => {
      const { connections, make } = workers[settings.work]
      worker = make(await connect(connections, settings.work === "grouped"), settings)
      for (const loop of worker.loops) {
        Effect.runPromise(loop, { signal: stopping.signal }).catch((error: unknown) => {
          // Ends the process, and the harness says so.
          if (stopping.signal.aborted) return
          setImmediate(() => {
            throw error
          })
        })
      }
    },
    remaining: async () => worker?.inHand() ?? 0,
    close: () => {
      stopping.abort()
      return Effect.runPromise(Scope.close(scope, Exit.void))
    }
  }
}

const system: System = {
  name: "bare",
  description:
    "plain SQL on @effect/sql-pg: claims of 500 on 2 connections; 8 connections of four statements a job; 50 jobs a transaction with savepoints, pipelined",
  works: ["noop", "write", "grouped"],
  prepare: async ({ url }) => {
    await Effect.runPromise(Effect.scoped(Effect.flatMap(
      PgConnection.make({ url: Redacted.make(url) }),
      (connection) => Effect.forEach(tables, (statement) => connection.query(statement, [], false), { discard: true })
    )))
  },
  open
}

export default system

/**
 * The work of a run, as runners and submitters share it: queues, job definitions, and the tables that handlers write to. Nothing forbids a
 * second row of one job there: it is the checker that counts, and the checker knows nothing of this file.
 */
import * as Schema from "effect/Schema"
import { Job, JobQueue, RetryPolicy } from "../../src/index.ts"
import { hang, maxAttempts, type Order } from "./intents.ts"

/** Of `tx`, until a fault changes it. */
export const partitions = 4

const txOf = (partitions: number) => JobQueue.make("tx", { concurrency: 24, partitions })
const keyedOf = (partitions: number) =>
  JobQueue.make("keyed", { concurrency: 12, partitions, partitionBy: "key", ordered: true })

const Tx = txOf(partitions)
const Plain = JobQueue.make("plain", { concurrency: 12 })
const Keyed = keyedOf(partitions - 1)
const Batch = JobQueue.make("batch", { concurrency: 12, partitions: 2 })
/** So few slots that handlers which hang would soon have all of them. */
const Hostile = JobQueue.make("hostile", { concurrency: 6 })

/** `partitions`: of `tx`, as this process wants it; of the ordered one it wants one less. */
export const queues = (partitions: number) => [
  txOf(partitions),
  Plain,
  keyedOf(Math.max(partitions - 1, 1)),
  Batch,
  Hostile
]

/** A failure that was planned. */
export class Boom extends Schema.TaggedError<Boom>()("Boom", {}) {}

const Payload = Schema.Struct({
  ref: Schema.String,
  fails: Schema.Int,
  millis: Schema.Int,
  blocks: Schema.Int,
  isEarly: Schema.Boolean,
  holds: Schema.optionalKey(Schema.Int),
  lock: Schema.optionalKey(Schema.Int),
  how: Schema.optionalKey(Schema.String),
  cuts: Schema.optionalKey(Schema.Int),
  key: Schema.optionalKey(Schema.String),
  n: Schema.optionalKey(Schema.Int),
  dedupe: Schema.optionalKey(Schema.String),
  isReplayed: Schema.optionalKey(Schema.Boolean)
})
export type Payload = typeof Payload.Type

const options = {
  payload: Payload,
  error: Boom,
  retry: RetryPolicy.fixed("300 millis", { maxAttempts })
}

/** Its writes and its completion are one transaction. */
export class TxJob extends Job.make("Tx", { ...options, queue: Tx }) {}
/** The same, in a transaction shared with others. */
export class GroupedJob extends Job.make("Grouped", { ...options, queue: Tx, transaction: "grouped" }) {}
/** Writes nothing that is rolled back. */
export class PlainJob extends Job.make("Plain", { ...options, queue: Plain, transaction: "none" }) {}
/** One of a line of jobs. */
export class KeyedJob extends Job.make("Keyed", { ...options, queue: Keyed, key: ({ key }) => key ?? "" }) {}
/** Kills its process. */
export class DieJob extends Job.make("Die", { ...options, queue: Plain }) {}
/** Kills the backend of its own session, and with it all sessions of the server. */
export class KillBackendJob extends Job.make("KillBackend", { ...options, queue: Hostile }) {}
/** Ends its own session a few times, then completes. */
export class CutJob extends Job.make("Cut", { ...options, queue: Hostile }) {}
/** Fails with something that throws when it is looked at. */
export class UninspectableJob extends Job.make("Uninspectable", { ...options, queue: Hostile }) {}
/** Leaves its transaction idle for longer than its session allows. */
export class IdleInTransactionJob extends Job.make("IdleInTransaction", { ...options, queue: Hostile }) {}

const hanging = {
  ...options,
  timeout: hang.timeoutMs,
  retry: RetryPolicy.fixed("300 millis", { maxAttempts: hang.attempts })
}

/** Cannot be interrupted. */
export class HangJob extends Job.make("Hang", { ...hanging, queue: Hostile, transaction: "none" }) {}
/** Cannot be interrupted, with a transaction open and others of its key behind it. */
export class HangKeyedJob extends Job.make("HangKeyed", { ...hanging, queue: Keyed, key: ({ key }) => key ?? "" }) {}

const definitions = {
  Tx: TxJob,
  Grouped: GroupedJob,
  Plain: PlainJob,
  Keyed: KeyedJob,
  Die: DieJob,
  KillBackend: KillBackendJob,
  Cut: CutJob,
  Uninspectable: UninspectableJob,
  IdleInTransaction: IdleInTransactionJob,
  Hang: HangJob,
  HangKeyed: HangKeyedJob
}

export const request = (order: Order) => {
  const { cancelAfterMs: _, delayMs, type, queue, ...payload } = order
  return definitions[type].request(payload, {
    queue,
    ...(delayMs === undefined ? {} : { delay: delayMs }),
    ...(payload.dedupe === undefined ? {} : { dedupeKey: payload.dedupe })
  })
}

/**
 * `effects`: written in jobs' transactions, from the handler's first line (`began`) to the write (`at`). `starts`: every run of a handler,
 * written beside any transaction. `mended`: the jobs that do not fail any more. All times are the database's.
 */
export const tables = [
  "create schema chaos",
  `create table chaos.effects (
     id bigint generated always as identity, job_id uuid not null, ref uuid not null, key text, n int, attempt int not null,
     runner int not null, incarnation int not null, began timestamptz not null, at timestamptz not null default clock_timestamp(),
     lock int)`,
  `create function chaos.wait() returns trigger language plpgsql as $$
   begin perform pg_advisory_xact_lock_shared(new.lock); return null; end $$`,
  `create constraint trigger wait after insert on chaos.effects deferrable initially deferred
   for each row when (new.lock is not null) execute function chaos.wait()`,
  `create table chaos.starts (
     id bigint generated always as identity, job_id uuid not null, ref uuid not null, attempt int not null,
     runner int not null, incarnation int not null, at timestamptz not null default clock_timestamp())`,
  "create table chaos.mended (ref uuid primary key)"
]

/**
 * The port to the durable mailbox: domain verbs, no SQL. PgJobStore implements it; MemoryJobStore is the model it is compared with.
 *
 * Rules that carry everything (store rules R1-R4): whoever deletes or moves a row has its outcome; every update raises `version`, and
 * whatever acts on an attempt names the version it read; every statement of an owner tests its epoch; an owner never runs a row twice.
 */
import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import type * as Queue from "effect/Queue"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { Service as CurrentJob } from "./CurrentJob.ts"
import type { CommitFailed, JobFailure, LayoutError } from "./JobError.ts"
import type { Interest, JobEvent } from "./JobEvent.ts"
import type { Entry } from "./JobHistory.ts"
import type { BatchId, JobId } from "./JobId.ts"
import type { Layout } from "./JobQueue.ts"
import type { JobState, Outcome } from "./JobState.ts"

/**
 * A store operation failed. `Unavailable`: the database cannot be reached or is starting, nothing is known to have happened (see
 * `isUncertain`), try again with backoff. `Conflict`: lost against another transaction (40001, 40P01), try again at once. `LockTimeout`: 55P03. `Refused`: the
 * server takes this data never; of a statement with many rows one is bad.
 */
export class StoreError extends Schema.TaggedError<StoreError>()("StoreError", {
  reason: Schema.Literals(["Unavailable", "Conflict", "LockTimeout", "Refused"]),
  operation: Schema.String,
  sqlState: Schema.optionalKey(Schema.String),
  /** The connection was lost with the work under way: it may have been done all the same. */
  isUncertain: Schema.optionalKey(Schema.Boolean),
  cause: Schema.Defect()
}) {
  get isRetryable(): boolean {
    return this.reason !== "Refused"
  }
  override get message() {
    const state = this.sqlState === undefined ? "" : ` (SQLSTATE ${this.sqlState})`
    const why = this.cause instanceof Error ? `: ${this.cause.message}` : ""
    return `${this.operation}: ${this.reason}${state}${why}`
  }
}

/** How a tenant is stored: `@` and its id. The system is `=`, so that it and a tenant called "" stay apart. Never empty: see cursors. */
export type TenantKey = string

/** The stored form of a tenant id; none is the system. */
export const tenantKey = (tenantId: string | undefined): TenantKey => tenantId === undefined ? "=" : `@${tenantId}`

/** The tenant id of a stored tenant; none for the system. */
export const tenantId = (tenant: TenantKey): string | undefined => tenant === "=" ? undefined : tenant.slice(1)

/** A registered queue. What it says here counts, for all programs. */
export interface QueueRow extends Layout {
  readonly queueId: number
  readonly name: string
  /** The number of its group, from 0 to {@link shardGroupCount} - 1. */
  readonly shardGroup: number
  /** Raised by every change of the layout. */
  readonly layout: number
}

/** How many shard groups there can be. `default` is number 0. */
export const shardGroupCount = 32

/** A partition of a queue. */
export interface PartitionKey {
  readonly queueId: number
  readonly partition: number
}

/** One ownership of one partition. */
export interface Owner {
  readonly queueId: number
  readonly partition: number
  readonly epoch: number
}

/** A job to store. All times are milliseconds since 1970, `payload` and `context` are JSON text. */
export interface NewJob {
  readonly id: JobId
  readonly queueId: number
  readonly partition: number
  /** 0 is `critical`, 3 is `low`. */
  readonly lane: number
  readonly tenant: TenantKey
  readonly type: string
  readonly dueAt: number | undefined
  readonly expiresAt: number | undefined
  readonly dedupeKey: string | undefined
  /** In queues that go by key, and given there. */
  readonly key: string | undefined
  /** Where the job's tenant or key belongs, from 0 to 2^31 - 1: the partition is then its remainder, by the count there is at that moment. */
  readonly place: number | undefined
  readonly payload: string
  readonly context: string | undefined
}

/** What became of a {@link NewJob}: stored under its own id, or answered by the live job that holds its dedupe key. */
export interface Submitted {
  readonly id: JobId
  readonly isNew: boolean
  /** Arrival order; 0 where not new. */
  readonly seq: number
  /** Where it is, if the store has chosen: of a job with a `place`. */
  readonly partition?: number
}

/** Rows of this lane and tenant at or above `seq` have become ready, or will at `dueAt`. */
export interface Ready {
  readonly queueId: number
  readonly partition: number
  readonly lane: number
  readonly tenant: TenantKey
  readonly seq: number
  readonly dueAt?: number
  /** Of a job that its queue's order may hold back. */
  readonly key?: string
  /** The job itself, where this very process has just stored it: its owner, if that is here too, need not read it. Never sent anywhere. */
  readonly job?: () => ReadyJob
}

/**
 * The heads of lines. `elsewhere`: lines that have left this partition, with what comes first where they are now: its owner has waited for
 * that, and does not know it.
 */
export interface Heads {
  readonly jobs: ReadonlyArray<ReadyJob>
  readonly elsewhere: ReadonlyArray<Ready>
}

/** What processes say to each other through the database. Nothing depends on one: whoever needs an answer asks again. */
export type Message = /** To the owner of the partition: this job shall be cancelled. */
  | {
    readonly _tag: "Cancel"
    readonly queueId: number
    readonly partition: number
    readonly jobId: JobId
    readonly by: string | undefined
  }
  /** To all that publish events: this process wants to hear of these, for the next half minute. */
  | { readonly _tag: "Interest"; readonly from: string; readonly interest: Interest }
  /** To all that subscribe: say your interest, this process has just begun to listen. */
  | { readonly _tag: "Asking"; readonly from: string }
  /** What has happened, already committed, oldest first, after `missed` others. `events` are read when somebody wants them. */
  | {
    readonly _tag: "Events"
    readonly from: string
    readonly missed: number
    readonly events: () => ReadonlyArray<JobEvent>
  }

/** What intake may take of one lane. */
export interface LaneDemand {
  readonly lane: number
  /** Cursor: tenants after this one; `""` starts over. */
  readonly after: TenantKey | ""
  /** At most so many tenants, jobs a tenant, jobs in all. */
  readonly tenants: number
  readonly perTenant: number
  readonly room: number
}

/** Low-water mark: every ready row of that lane and tenant at or below `seq` is held already. */
export interface Mark {
  readonly lane: number
  readonly tenant: TenantKey
  readonly seq: number
}

/** What one intake asks for. `held`: sequence numbers above a lowered mark, to leave out. */
export interface Demand {
  readonly lanes: ReadonlyArray<LaneDemand>
  readonly marks: ReadonlyArray<Mark>
  readonly held: ReadonlyArray<number>
  /** Of an ordered queue: say of each job with a key whether it is the head of its line. */
  readonly isOrdered?: boolean
}

/** The largest payload that is read ahead, in bytes of JSON. Larger ones are read when their job starts: memory stays bounded. */
export const inlinePayloadBytes = 8_192

/** The jobs of one key and tenant, in an ordered queue: they run one after another. */
export interface Line {
  readonly tenant: TenantKey
  readonly key: string
}

/**
 * Where a job of an ordered queue stands. The head is the first of its line, by `seq`, among those that are ready, running or between two
 * attempts.
 *
 * Since the count of partitions has changed some keys have jobs in two. `move` says which of the two this is: the one that the key leaves,
 * whose jobs come first, or the one where those that have come since wait for them.
 */
export interface Standing {
  readonly key: string
  readonly isHead: boolean
  readonly move?: "leaves" | "waits"
}

/** A ready job, read but not written. `payload` and `context` are parsed JSON. `isLarge`: the payload was left where it is. */
export interface ReadyJob {
  readonly id: JobId
  readonly lane: number
  readonly tenant: TenantKey
  readonly seq: number
  readonly version: number
  readonly type: string
  /** Attempts so far. */
  readonly attempt: number
  readonly crashes: number
  readonly reruns: number
  readonly createdAt: number
  readonly expiresAt: number | undefined
  readonly isLarge: boolean
  readonly payload: unknown
  readonly context: unknown
  /** In ordered queues, of jobs with a key. One that is not the head has no payload here: it is not to be started. */
  readonly standing?: Standing
}

/** What an intake found. `visited`: each tenant looked at, in order, also those with nothing new: the cursor moves to the last one. */
export interface Intake {
  readonly jobs: ReadonlyArray<ReadyJob>
  readonly visited: ReadonlyArray<{ readonly lane: number; readonly tenant: TenantKey }>
}

/** The attempt a settlement ends: a row at the version it was read. */
export interface Attempted {
  readonly id: JobId
  readonly version: number
  readonly entry: Entry
}

/** The job is done with. `result` is JSON text. `purgeAt`: when that day (UTC) is over the row may go. */
export interface Finish extends Attempted {
  readonly _tag: "Finish"
  readonly outcome: Outcome
  readonly result: string | undefined
  readonly purgeAt: number
}

/** Another attempt is due at `dueAt`. */
export interface Retry extends Attempted {
  readonly _tag: "Retry"
  readonly dueAt: number
  /** It is a rerun as well, one of those that count as an attempt. */
  readonly isRerun?: boolean
}

/**
 * Back to the end of its line at `dueAt`, no attempt counted: what nobody can run must not stay in front of the others. A job with a key keeps
 * its place, as if it waited for its next attempt: its order is worth more.
 */
export interface PutBack extends Attempted {
  readonly _tag: "PutBack"
  readonly dueAt: number
}

/** The job becomes a dead letter. `isAttempt`: whether an attempt failed (or, say, no handler was ever found). */
export interface DeadLetter extends Attempted {
  readonly _tag: "DeadLetter"
  readonly failure: JobFailure
  readonly isAttempt: boolean
  /** As of {@link Retry}. */
  readonly isRerun?: boolean
}

/** The run counts as no attempt: the row stays ready, at its place, and runs again. It counts as a crash, or else as a rerun. */
export interface Rerun extends Attempted {
  readonly _tag: "Rerun"
  readonly isCrash: boolean
}

/** How an attempt ended, to be written down. */
export type Settlement = Finish | Retry | PutBack | DeadLetter | Rerun

/**
 * What broke a transaction. `conflict`: it lost against another (40001, 40P01). `unable`: the server could not do the work, or gave no session
 * (no room, no memory, starting, shutting down, read-only for everybody). `readOnly`: only this transaction takes no writes, as its own
 * statements had asked. `ended`: the server ended this session with an ErrorResponse, and goes on serving others. `lost`: the session was gone with no
 * statement in flight. `crashed`: the session ended without an ErrorResponse while a statement was in flight.
 */
export type Breakage = "conflict" | "unable" | "readOnly" | "ended" | "lost" | "crashed"

/**
 * How a handler's transaction ended. `Pending`: it sent no statement, so there was nothing to commit with: settle it otherwise.
 * `Superseded`: rolled back, someone else has the outcome. `Unknown`: the connection was lost during COMMIT: refence. `Broken`: the database
 * broke this very transaction before it could commit, and nothing of it is there.
 */
export type Transacted =
  | { readonly _tag: "Committed"; readonly settlement: Finish }
  | { readonly _tag: "Pending"; readonly settlement: Finish }
  | { readonly _tag: "Superseded" }
  | {
    readonly _tag: "Unknown"
    /** What it means if it did not commit. */
    readonly by: Breakage
    readonly cause: Cause.Cause<unknown>
  }
  | {
    readonly _tag: "Broken"
    readonly by: Breakage
    /** What the handler made of it, or what the end of the transaction said. */
    readonly cause: Cause.Cause<unknown>
  }

/** Where a store leaves the way to the database session of one attempt. */
export interface Session {
  /**
   * Ends the transaction from outside, whatever the handler does: nothing of it commits, its session ends on the server, and the pool has
   * another one. Bounded in time. Safe to run before a session was leased, and after the transaction has ended.
   */
  end: Effect.Effect<void> | undefined
}

/** A live row, read again. `state` is as stored: a ready one may be running. */
export interface LiveRow {
  readonly id: JobId
  readonly seq: number
  readonly version: number
  readonly state: "queued" | "scheduled" | "retrying"
  readonly lane: number
  readonly tenant: TenantKey
}

/** A run worth knowing of after a crash. `progress` is a fraction. */
export interface RunNote {
  readonly id: JobId
  readonly version: number
  readonly attempt: number
  readonly startedAt: number
  readonly progress: number | undefined
  readonly message: string | undefined
}

/** How it is to get a connection of the pool that handlers use. */
export interface Shortage {
  /** For how long the one who has waited longest has waited, in milliseconds. */
  readonly waitedMs: number
  /** For how long the server has refused further ones, up to the last time, and what it said then. `undefined`: not of late. */
  readonly refused: { readonly forMs: number; readonly because: string } | undefined
}

/** Nobody waits. */
export const noShortage: Shortage = { waitedMs: 0, refused: undefined }

/** Everything stored of a job. */
export interface JobRecord {
  readonly id: JobId
  /** As stored: `queued` may mean running, only the owner (or `running`) knows. */
  readonly state: Exclude<JobState, "running">
  readonly queueId: number
  readonly partition: number
  readonly lane: number | undefined
  readonly tenant: TenantKey
  readonly type: string
  readonly version: number
  readonly attempt: number
  readonly crashes: number
  readonly reruns: number
  readonly dedupeKey: string | undefined
  readonly key: string | undefined
  readonly batchId: BatchId | undefined
  readonly createdAt: number
  readonly dueAt: number | undefined
  /** When it ended, for final states. */
  readonly endedAt: number | undefined
  readonly payload: unknown
  readonly context: unknown
  readonly result: unknown
  readonly failure: JobFailure | undefined
  readonly history: ReadonlyArray<Entry>
  /** Present where the run was noted, see `noteRunning`. */
  readonly running:
    | { readonly startedAt: number; readonly progress: number | undefined; readonly message: string | undefined }
    | undefined
}

/** The crashes found at a take-over. `busy`: a settle of the former owner is just ending; do not run that id, count again. */
export interface Crashes {
  readonly counted: ReadonlyArray<{
    readonly id: JobId
    readonly version: number
    readonly crashes: number
    readonly attempt: number
    readonly type: string
  }>
  readonly busy: ReadonlyArray<JobId>
}

/** The durable mailbox. */
export class JobStore extends Context.Service<JobStore, {
  /** The current time: Effect's Clock plus the database's offset, measured at the start and by each purge, in whole milliseconds. */
  readonly now: Effect.Effect<number>

  /**
   * Makes the queue known, and as it is wanted: the latest to ask decides. Without a wish it stays as it is. `QueueNotEmpty`: of a queue that
   * goes by tenant or key, before or after, nothing but the group changes while jobs are in it; of an ordered one not even that.
   */
  readonly declareQueue: (name: string, wanted?: Layout) => Effect.Effect<QueueRow, StoreError | LayoutError>
  /** All queues ever declared. */
  readonly queues: Effect.Effect<ReadonlyArray<QueueRow>, StoreError>
  /** Partitions beyond the count of their queue that have jobs still: left over when it was lowered, or stored by who had not heard of it. */
  readonly leftovers: Effect.Effect<ReadonlyArray<PartitionKey>, StoreError>
  /** The numbers of these shard groups, in their order. One that is new gets a number, for ever. */
  readonly shardGroups: (names: ReadonlyArray<string>) => Effect.Effect<ReadonlyArray<number>, StoreError | LayoutError>
  /**
   * Every runner says this before it joins: how many shards a group has. `ShardsDiffer` while runners live that count otherwise. Two that join
   * at once may both be let in: each looks at `shards` again when it has locked some, and lets go of them where the number is not its own.
   * `expirationMs`: how long a runner may be silent and count as living.
   */
  readonly agreeOnShards: (ours: {
    readonly shards: number
    readonly expirationMs: number
  }) => Effect.Effect<void, StoreError | LayoutError>
  /** The number agreed on; none before the first runner. */
  readonly shards: Effect.Effect<Option.Option<number>, StoreError>

  /**
   * Stores all or nothing, answers in the caller's order. Inside a transaction of the caller's `SqlClient` it is part of that
   * transaction. Duplicates in the array collapse into the first.
   */
  readonly submit: (
    jobs: ReadonlyArray<NewJob>,
    options: { readonly batchId: BatchId | undefined; readonly now: number }
  ) => Effect.Effect<ReadonlyArray<Submitted>, StoreError>
  /** Whether the caller is in a transaction of its `SqlClient`, so that `submit` takes part in it. */
  readonly isInTransaction: Effect.Effect<boolean>
  /** Runs the effect once the caller's transaction has committed, or at once when there is none. */
  readonly afterCommit: (effect: Effect.Effect<void>) => Effect.Effect<void>

  /** Says something to all processes of this schema, after what has been committed. Reaches those that listen now; lost ones are not repeated. */
  readonly say: (messages: ReadonlyArray<Message>) => Effect.Effect<void, StoreError>
  /** What processes say, this one too. Ends with an error when the connection is lost: listen again, and count with what was missed. */
  readonly heard: Effect.Effect<Queue.Dequeue<Message, StoreError>, StoreError, Scope.Scope>
  /** Tells owners in other processes of ready rows, coalesced. Lost ones are found by the sweep. */
  readonly announce: (ready: ReadonlyArray<Ready>) => Effect.Effect<void, StoreError>
  /** What others announce. Ends with an error when the connection is lost: listen again and sweep. */
  readonly announcements: Effect.Effect<Queue.Dequeue<ReadonlyArray<Ready>, StoreError>, StoreError, Scope.Scope>

  /** One snapshot over all places: exactly one record for a known id. */
  readonly find: (id: JobId) => Effect.Effect<Option.Option<JobRecord>, StoreError>

  /**
   * Epoch + 1. `owner` names a living process: one that takes its own partition again has not crashed, and what it had noted is
   * forgotten. `isCareful`: another owner before did not hand over. From here on no earlier epoch can mislead this one. `lock`: the number of
   * the shard lock that this process holds; once it is lost, the partition has no owner any more. Without one it has until it is handed over.
   * `unwritten`: reruns of former ownerships that could not be written while the database was away: counted in the same transaction.
   */
  readonly takeOver: (partition: { readonly queueId: number; readonly partition: number }, options: {
    readonly owner: string
    readonly now: number
    readonly lock?: number
    readonly unwritten?: ReadonlyArray<Rerun>
  }) => Effect.Effect<
    {
      readonly owner: Owner
      readonly isCareful: boolean
      /** Who owned it before, if anybody did and has not handed it over. */
      readonly former: string | undefined
    },
    StoreError
  >
  /** Whether nobody has taken over since. */
  readonly isOwner: (owner: Owner) => Effect.Effect<boolean, StoreError>
  /** After every handler has stopped. `false`: superseded meanwhile. */
  readonly handOver: (owner: Owner) => Effect.Effect<boolean, StoreError>
  /** Counts one crash for each run noted by an earlier epoch and still live, with an entry in its history. Never those of `held`. */
  readonly countCrashes: (
    owner: Owner,
    held: ReadonlyArray<JobId>,
    /** For the entries: which runner had started them, and when its crash was found. */
    of: { readonly runner: string; readonly now: number }
  ) => Effect.Effect<Crashes, StoreError>

  /** Reads ready jobs, writes nothing. A superseded owner reads nothing. */
  readonly intake: (owner: Owner, demand: Demand) => Effect.Effect<Intake, StoreError>
  /** The heads of these lines, where they are ready and in this partition. */
  readonly heads: (owner: Owner, lines: ReadonlyArray<Line>) => Effect.Effect<Heads, StoreError>
  /** The payload of a job that was too large to read ahead, as parsed JSON. None: the row has moved on. */
  readonly payload: (id: JobId, version: number) => Effect.Effect<Option.Option<unknown>, StoreError>
  /** What has become of rows whose settlement did not come back. Missing: someone has the outcome. */
  readonly reread: (ids: ReadonlyArray<JobId>) => Effect.Effect<ReadonlyArray<LiveRow>, StoreError>

  /** Notes runs (start, progress, heartbeat). Returns the ids noted; a superseded owner notes nothing. */
  readonly noteRunning: (
    owner: Owner,
    notes: ReadonlyArray<RunNote>,
    now: number
  ) => Effect.Effect<ReadonlyArray<JobId>, StoreError>
  /** Forgets notes of ended runs. */
  readonly noteDone: (owner: Owner, ids: ReadonlyArray<JobId>) => Effect.Effect<void, StoreError>

  /** Writes settlements, each fenced by version and epoch. Returns the ids settled; the others were superseded: reread. */
  readonly settle: (
    owner: Owner,
    settlements: ReadonlyArray<Settlement>,
    now: number
  ) => Effect.Effect<ReadonlySet<JobId>, StoreError>
  /**
   * Runs a handler in one transaction; its COMMIT carries the completion. A failure of `handler` or `complete` rolls back.
   * `CommitFailed`: rolled back by the server (a deferred constraint). `session`: gets the way to end the transaction from outside.
   */
  readonly transact: <A, E, R>(
    owner: Owner,
    handler: Effect.Effect<A, E, R>,
    complete: (value: A) => Effect.Effect<{ readonly settlement: Finish; readonly now: number }, E, R>,
    session?: Session
  ) => Effect.Effect<Transacted, E | CommitFailed, R>
  /**
   * The same, but several handlers may share the transaction, one after another, each with a savepoint of its own; answers when they have
   * committed together. Where that fails it runs this handler again, in a transaction of its own. Ended from outside, the turn of a handler
   * breaks its group: the others run again, each in a transaction of its own.
   */
  readonly transactGrouped: <A, E, R>(
    owner: Owner,
    handler: Effect.Effect<A, E, R>,
    complete: (value: A) => Effect.Effect<{ readonly settlement: Finish; readonly now: number }, E, R>,
    session?: Session
  ) => Effect.Effect<Transacted, E | CommitFailed, R>
  /** Ends from outside what this attempt has opened by itself, with `withTransaction` and without a transaction of its job. */
  readonly endTransactions: (job: CurrentJob) => Effect.Effect<void>
  /**
   * Laid over the services of a handler that runs in `transact`: the client of that transaction, whatever client the handler's layer was
   * given. With another one its writes would not be the transaction's.
   */
  readonly handlerServices: Context.Context<never>
  /** How it is for handlers to get a connection, now. */
  readonly shortage: Effect.Effect<Shortage>
  /** After `Unknown`: waits for the old backend, then raises the version, which forbids the old attempt for ever. None: it is gone. */
  readonly refence: (owner: Owner, id: JobId, version: number) => Effect.Effect<Option.Option<number>, StoreError>

  /** Makes due rows ready, at most `limit`; each has to be looked for again from its `seq` on. */
  readonly promote: (owner: Owner, now: number, limit: number) => Effect.Effect<ReadonlyArray<Ready>, StoreError>
  /** When the next scheduled or retrying job is due. */
  readonly nextDue: (owner: Owner) => Effect.Effect<Option.Option<number>, StoreError>

  /**
   * Cancels a job at the version read. A scheduled or retrying one can be cancelled by anyone (`owner: undefined`), a ready one only by
   * its owner, who alone knows whether it has started; by anyone while nobody owns its partition. `false`: it has moved meanwhile, or has an
   * owner; look again.
   */
  readonly cancel: (options: {
    readonly id: JobId
    readonly version: number
    readonly owner: Owner | undefined
    readonly entry: Entry
    readonly now: number
    readonly purgeAt: number
  }) => Effect.Effect<boolean, StoreError>
  /**
   * Puts a dead letter back: same id, history kept, a new place at the end of its line. At most once, also when called twice at the same
   * time. `taken`: a live job holds its dedupe key.
   */
  readonly replay: (
    id: JobId,
    tenant: TenantKey,
    entry: Entry
  ) => Effect.Effect<Option.Option<Ready> | "taken", StoreError>

  /** Ready rows by lane, counted up to `atMost` each. */
  readonly depth: (
    partition: { readonly queueId: number; readonly partition: number },
    atMost: number
  ) => Effect.Effect<ReadonlyArray<number>, StoreError>
  /** Prepares the days ahead and drops those that are over. Bounded, safe to call from several processes. Returns how many days were dropped. */
  readonly purge: (now: number) => Effect.Effect<number, StoreError>
}>()("millrace/JobStore") {}

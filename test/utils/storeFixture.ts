/**
 * What the tests of a job store share: a queue of their own for each test, jobs with telling defaults, and short words for long verbs.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { randomUUID } from "node:crypto"
import type { JobFailure } from "../../src/JobError.ts"
import type { Attempt, Note } from "../../src/JobHistory.ts"
import { BatchId, JobId } from "../../src/JobId.ts"
import { defaultLayout } from "../../src/JobQueue.ts"
import {
  type Attempted,
  type DeadLetter,
  type Demand,
  type Finish,
  type JobRecord,
  JobStore,
  type LaneDemand,
  type NewJob,
  type Owner,
  type PutBack,
  type Retry,
  type RunNote,
  tenantKey
} from "../../src/JobStore.ts"

/** The time at which these tests happen: far from any real one, so that no test depends on today. */
export const t0 = Date.UTC(2026, 0, 5, 12)

/** One day in milliseconds. */
export const day = 86_400_000

export const times = <A>(count: number, make: (index: number) => A): Array<A> =>
  Array.from({ length: count }, (_, index) => make(index))

export const sorted = (ids: Iterable<string>): Array<string> => [...ids].sort()

export const newId = (): JobId => Schema.decodeUnknownSync(JobId)(randomUUID())
export const newBatch = (): BatchId => Schema.decodeUnknownSync(BatchId)(randomUUID())

export const failure: JobFailure = {
  class: "Business",
  tag: "OutOfStock",
  message: "none left",
  error: { _tag: "OutOfStock", left: 0 }
}

/** The entry of attempt `n`. */
export const attempted = (n: number, outcome: Attempt["outcome"]): Attempt => ({
  kind: "attempt",
  attempt: n,
  startedAt: t0 + n,
  endedAt: t0 + n + 1,
  runner: "here",
  outcome
})

/** The entry of something that was no attempt. */
export const noted = (kind: Note["kind"]): Note => ({ kind, at: t0, by: "ada" })

type Fenced = Pick<Attempted, "id" | "version">
type Keep<A extends Attempted> = Partial<Omit<A, "_tag" | "id" | "version">>

export const finish = ({ id, version }: Fenced, rest: Keep<Finish> = {}): Finish => ({
  _tag: "Finish",
  id,
  version,
  entry: attempted(1, "completed"),
  outcome: "completed",
  result: "{\"ok\":true}",
  purgeAt: t0 + 30 * day,
  ...rest
})

export const retry = ({ id, version }: Fenced, rest: Keep<Retry> = {}): Retry => ({
  _tag: "Retry",
  id,
  version,
  entry: attempted(1, "retried"),
  dueAt: t0 + 1000,
  ...rest
})

export const putBack = ({ id, version }: Fenced, rest: Keep<PutBack> = {}): PutBack => ({
  _tag: "PutBack",
  id,
  version,
  entry: attempted(1, "put back"),
  dueAt: t0 + 1000,
  ...rest
})

export const bury = ({ id, version }: Fenced, rest: Keep<DeadLetter> = {}): DeadLetter => ({
  _tag: "DeadLetter",
  id,
  version,
  entry: attempted(1, "dead-lettered"),
  failure,
  isAttempt: true,
  ...rest
})

export const note = ({ id, version }: Fenced, rest: Partial<RunNote> = {}): RunNote => ({
  id,
  version,
  attempt: 1,
  startedAt: t0,
  progress: undefined,
  message: undefined,
  ...rest
})

/** Asks for everything of all lanes. */
export const everything = (rest: Partial<Demand> & { readonly of?: Partial<LaneDemand> } = {}): Demand => ({
  lanes: [0, 1, 2, 3].map((lane) => ({ lane, after: "", tenants: 1000, perTenant: 1000, room: 1000, ...rest.of })),
  marks: rest.marks ?? [],
  held: rest.held ?? []
})

/** Asks for everything of one lane. */
export const oneLane = (of: Partial<LaneDemand> = {}, rest: Partial<Demand> = {}): Demand => ({
  lanes: [{ lane: 2, after: "", tenants: 1000, perTenant: 1000, room: 1000, ...of }],
  marks: rest.marks ?? [],
  held: rest.held ?? []
})

/** A job of no tenant that is ready at once, but for what is given. */
export const newJob = (rest: Pick<NewJob, "queueId"> & Partial<NewJob>): NewJob => ({
  id: newId(),
  partition: 0,
  lane: 2,
  tenant: tenantKey(undefined),
  type: "Task",
  dueAt: undefined,
  expiresAt: undefined,
  dedupeKey: undefined,
  key: undefined,
  place: undefined,
  payload: "null",
  context: undefined,
  ...rest
})

/** A queue nobody else uses, with an owner of its partition 0. */
export const fresh = Effect.gen(function*() {
  const store = yield* JobStore
  const { queueId } = yield* store.declareQueue(`test-${newId()}`, { ...defaultLayout, partitions: 2 })

  /** By another process each time, unless one is named. */
  const takeOver = (partition = 0, owner: string = randomUUID()) =>
    Effect.map(store.takeOver({ queueId, partition }, { owner, now: t0 }), (taken) => taken.owner)
  const owner = yield* takeOver()

  const job = (rest: Partial<NewJob> = {}): NewJob =>
    newJob({ queueId, tenant: tenantKey("acme"), type: "Greet", payload: "{\"name\":\"Ada\"}", ...rest })
  const submit = (...jobs: ReadonlyArray<NewJob>) => store.submit(jobs, { batchId: undefined, now: t0 })
  const stored = (rest: Partial<NewJob> = {}) =>
    Effect.map(submit(job(rest)), ([one]) => ({ id: one!.id, seq: one!.seq, version: 0 }))

  const get = (id: JobId): Effect.Effect<JobRecord> => Effect.orDie(Effect.flatMap(store.find(id), Effect.fromOption))
  const stateOf = (id: JobId) =>
    Effect.map(store.find(id), (found) => Option.getOrUndefined(Option.map(found, (record) => record.state)))
  const readyIds = (by: Owner = owner, demand: Demand = everything()) =>
    Effect.map(store.intake(by, demand), ({ jobs }) => jobs.map(({ id }) => id))
  const settle = (by: Owner, ...settlements: Parameters<typeof store.settle>[1]) =>
    Effect.map(store.settle(by, settlements, t0), (settled) => [...settled])

  return { store, queueId, owner, takeOver, job, submit, stored, get, stateOf, readyIds, settle }
})

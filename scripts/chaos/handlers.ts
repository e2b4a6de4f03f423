/**
 * The handlers that harm nothing, and what the hostile ones (hostile.ts) share with them.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { SqlClient } from "effect/sql/SqlClient"
import { CurrentJob } from "../../src/index.ts"
import { type Begun, Starts } from "./Starts.ts"
import { Boom, GroupedJob, KeyedJob, type Payload, PlainJob, TxJob } from "./work.ts"

/** Nothing else runs in this process meanwhile. */
const block = (millis: number) =>
  Effect.sync(() => {
    const until = performance.now() + millis
    while (performance.now() < until) { /* as a handler that computes */ }
  })

const take = ({ blocks, millis }: Payload) =>
  Effect.andThen(
    blocks > 0 ? block(blocks) : Effect.void,
    Effect.sleep(millis)
  )

const failIfPlanned = ({ fails }: Payload, { isMended }: Begun) =>
  Effect.flatMap(
    CurrentJob.CurrentJob,
    ({ attempt }) => attempt <= fails && !isMended ? Effect.fail(new Boom()) : Effect.void
  )

/** Notes that the handler has begun. */
export const begin = ({ ref }: Payload) => Effect.flatMap(Starts, ({ note }) => note(ref))

/** Writes the job's row, in its transaction. */
export const write = ({ key, lock, n, ref }: Payload, { began }: Begun) =>
  Effect.gen(function*() {
    const { incarnation, runner } = yield* Starts
    const { attempt, jobId } = yield* CurrentJob.CurrentJob
    const sql = yield* SqlClient
    yield* sql`
      insert into chaos.effects (job_id, ref, key, n, attempt, runner, incarnation, began, lock)
      values (${jobId}, ${ref}, ${key ?? null}, ${
      n ?? null
    }, ${attempt}, ${runner}, ${incarnation}, ${began}::timestamptz,
        ${lock ?? null})`
  })

/** What was written before a failure is rolled back with it. */
const transactional = (payload: Payload) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient
    const begun = yield* begin(payload)
    if (payload.isEarly) yield* write(payload, begun)
    if (payload.holds !== undefined) yield* sql`select pg_sleep(${payload.holds / 1_000})`
    yield* take(payload)
    if (!payload.isEarly) yield* write(payload, begun)
    yield* failIfPlanned(payload, begun)
  })

const plain = (payload: Payload) =>
  Effect.gen(function*() {
    const begun = yield* begin(payload)
    yield* take(payload)
    yield* failIfPlanned(payload, begun)
  })

export const handlers = Layer.mergeAll(
  TxJob.toLayer(transactional),
  GroupedJob.toLayer(transactional),
  KeyedJob.toLayer(transactional),
  PlainJob.toLayer(plain)
)

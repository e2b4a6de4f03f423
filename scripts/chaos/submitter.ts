/**
 * A submitter: a user's program that only submits, cancels and replays, straight from its intents (intents.ts), and writes all of it into
 * its ledger. Told `stop` it begins nothing more and ends when all it began is answered.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Semaphore from "effect/Semaphore"
import { join } from "node:path"
import { type JobError, type JobId, JobRuntime, Jobs, Postgres } from "../../src/index.ts"
import { hostilities, type Intent, intents, type Order } from "./intents.ts"
import * as Ledger from "./Ledger.ts"
import { queues, request } from "./work.ts"

/** What a submitter is started with. */
export const SubmitterOptions = Schema.Struct({
  url: Schema.String,
  folder: Schema.String,
  seed: Schema.Int,
  submitter: Schema.Int,
  incarnation: Schema.Int,
  perSecond: Schema.Finite,
  /** Of `tx`. */
  partitions: Schema.Int,
  hostility: Schema.Literals(hostilities)
})
export type SubmitterOptions = typeof SubmitterOptions.Type

/** Calls under way at once. During an outage the rest waits. */
const atOnce = 60
const patience = "500 millis"

/** A submission that was answered. */
interface Sent {
  readonly batchId?: string
  readonly jobIds: ReadonlyArray<JobId.JobId>
}

let isStopping = false

const program = (options: SubmitterOptions) =>
  Effect.gen(function*() {
    const jobs = yield* Jobs.Jobs
    const sql = yield* PgClient
    const name = `${options.submitter}.${options.incarnation}`
    const ledger = Ledger.open(join(options.folder, `ledger-${name}.jsonl`), name)
    const places = yield* Semaphore.make(atOnce)

    /** Ids as acknowledged, or nothing when it was not. What was refused for now is asked for again, as a call of its own. */
    const submit = (
      isBatch: boolean,
      orders: ReadonlyArray<Order>
    ): Effect.Effect<ReadonlyArray<JobId.JobId> | undefined> =>
      Effect.gen(function*() {
        const answer = ledger.ask({ op: "submit", isBatch, orders })
        const [order] = orders
        const sent: Effect.Effect<Sent, JobError.SubmitError> = isBatch || order === undefined
          ? jobs.submit(orders.map(request))
          : Effect.map(jobs.submit(request(order)), (id) => ({ jobIds: [id] }))
        return yield* Effect.matchEffect(sent, {
          onSuccess: (sent) =>
            Effect.sync(() => {
              answer({ say: "ack", ids: sent.jobIds, ...sent.batchId !== undefined && { batchId: sent.batchId } })
              return sent.jobIds
            }),
          onFailure: (error) => {
            answer({ say: error.reason._tag === "OutcomeUnknown" ? "unknown" : "refused", error: error.reason._tag })
            return error.isRetryable && !isStopping
              ? Effect.andThen(Effect.sleep(patience), submit(isBatch, orders))
              : Effect.undefined
          }
        })
      })

    /** Errors after which it may have happened all the same. */
    const mayHaveHappened = new Set(["StoreUnavailable", "PartitionUnavailable"])

    const ask = (
      op: "cancel" | "replay",
      job: JobId.JobId,
      call: Effect.Effect<void, { readonly _tag: string; readonly isRetryable: boolean }>
    ): Effect.Effect<void> =>
      Effect.suspend(() => {
        const answer = ledger.ask({ op, job })
        return Effect.matchEffect(call, {
          onSuccess: () => Effect.sync(() => answer({ say: "ack", ids: [job] })),
          onFailure: (error) => {
            answer({ say: mayHaveHappened.has(error._tag) ? "unknown" : "refused", error: error._tag })
            return error.isRetryable && !isStopping
              ? Effect.andThen(Effect.sleep(patience), ask(op, job, call))
              : Effect.void
          }
        })
      })

    /** Waits for the dead letter, does what makes it succeed, and puts it back. */
    const mendAndReplay = (ref: string, job: JobId.JobId) =>
      Effect.gen(function*() {
        const stateOf = Effect.map(jobs.status(job), ({ state }) => state)
        while ((yield* Effect.orElseSucceed(stateOf, () => "queued")) !== "failed") {
          if (isStopping) return
          yield* Effect.sleep(patience)
        }
        yield* sql`insert into chaos.mended (ref) values (${ref}) on conflict do nothing`.pipe(
          Effect.tapError(() => Effect.sleep(patience)),
          Effect.eventually
        )
        yield* ask("replay", job, jobs.replayJob(job))
      })

    const follow = ({ cancelAfterMs, isReplayed, ref }: Order, job: JobId.JobId) => {
      if (isReplayed === true) return mendAndReplay(ref, job)
      return cancelAfterMs === undefined
        ? Effect.void
        : Effect.andThen(Effect.sleep(cancelAfterMs), ask("cancel", job, jobs.cancel(job)))
    }

    const send = ({ isBatch, orders }: Intent) =>
      Effect.gen(function*() {
        const ids = yield* submit(isBatch, orders)
        if (ids === undefined) return false
        yield* Effect.forEach(orders, (order, at) => follow(order, ids[at]!), { discard: true })
        return true
      })

    // A job of a line is submitted when the one before it has been acknowledged. What comes after one that was not is another line: nobody
    // knows which of the two is stored first.
    const lines = new Map<string, { turn: Semaphore.Semaphore; breaks: number }>()
    const inLine = (intent: Intent, order: Order, key: string) => {
      const line = lines.get(key) ?? { turn: Semaphore.makeUnsafe(1), breaks: 0 }
      lines.set(key, line)
      return line.turn.withPermit(Effect.gen(function*() {
        const isSent = yield* send({ ...intent, orders: [{ ...order, key: `${key}.${line.breaks}` }] })
        if (!isSent) line.breaks++
      }))
    }

    const fulfil = (intent: Intent) => {
      const [order] = intent.orders
      return order?.key === undefined ? Effect.asVoid(send(intent)) : inLine(intent, order, order.key)
    }

    yield* Effect.sync(() => process.send?.({ say: "ready" }))
    for (const intent of intents(options.seed, name, options)) {
      yield* Effect.sleep(intent.waitMs)
      if (isStopping) break
      yield* places.take(1)
      yield* Effect.forkScoped(Effect.ensuring(fulfil(intent), places.release(1)))
    }
    yield* places.take(atOnce)
  }).pipe(
    Effect.scoped,
    Effect.provide(
      JobRuntime.layerClient({ queues: queues(options.partitions) }).pipe(
        Layer.provideMerge(Postgres.layer({ url: options.url, applicationName: "chaos submitter" }))
      )
    )
  )

process.on("message", () => {
  isStopping = true
})
// Nobody survives the run that started it.
process.on("disconnect", () => process.exit(1))
const options = Schema.decodeUnknownSync(Schema.fromJsonString(SubmitterOptions))(process.env["CHAOS_OPTIONS"])
NodeRuntime.runMain(Effect.andThen(
  program(options),
  // The channel to the run would keep it.
  Effect.sync(() => {
    process.removeAllListeners("disconnect")
    process.disconnect()
  })
))

/**
 * One fixed scenario instead of a schedule: the owner of a job is frozen between its handler's write and its commit, a successor completes
 * the job, and then the owner wakes up with the answer of its last statement in hand. It must not commit.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { join } from "node:path"
import { JobRuntime, Jobs, Postgres as Database } from "../../src/index.ts"
import { ChaosError, messageOf } from "./ChaosError.ts"
import type { World } from "./faults.ts"
import type { Order } from "./intents.ts"
import * as Ledger from "./Ledger.ts"
import { dice } from "./Seed.ts"
import { partitions, queues, request } from "./work.ts"

/** Long enough to be frozen meanwhile. It runs in the server, which goes on: the answer waits for the frozen process. */
const holdMs = 3_000

const submit = (url: string, folder: string, order: Order) =>
  Effect.gen(function*() {
    const answer = Ledger.open(join(folder, "ledger-pause.jsonl"), "pause").ask({
      op: "submit",
      isBatch: false,
      orders: [order]
    })
    const job = yield* Effect.flatMap(Jobs.Jobs, (jobs) => jobs.submit(request(order)))
    answer({ say: "ack", ids: [job] })
  }).pipe(
    Effect.provide(
      JobRuntime.layerClient({ queues: queues(partitions) }).pipe(Layer.provideMerge(Database.layer({ url })))
    ),
    Effect.mapError((error) => new ChaosError({ message: messageOf(error) }))
  )

export const pause = (world: World, seed: number, folder: string) =>
  Effect.gen(function*() {
    const { events, postgres, runners } = world
    const order: Order = {
      ref: dice(seed, "pause").uuid(),
      type: "Tx",
      queue: "tx",
      fails: 0,
      millis: 0,
      blocks: 0,
      isEarly: true,
      holds: holdMs
    }
    yield* submit(postgres.url, folder, order)
    const until = (sql: string) =>
      postgres.query(sql).pipe(
        Effect.map(([row]) => row?.[0]),
        Effect.repeat({
          until: (value) => value !== null && value !== undefined,
          schedule: Schedule.spaced("50 millis")
        }),
        Effect.timeoutOrElse({
          duration: "90 seconds",
          orElse: () => Effect.fail(new ChaosError({ message: `this never came true: ${sql}` }))
        })
      )
    // It has written, and sleeps in its transaction.
    const runner = Number(yield* until("select runner from chaos.starts"))
    yield* until(
      "select pid from pg_stat_activity where query ilike '%pg_sleep(%' and application_name = 'chaos handlers'"
    )
    const owner = runners[runner]?.slot.current()
    if (owner === undefined) return yield* new ChaosError({ message: `runner ${runner} is not there` })
    events.note({ what: "fault", kind: "freeze", target: runner, mode: "", forMs: 0 })
    owner.signal("SIGSTOP")
    yield* until("select job_id from chaos.effects")
    owner.signal("SIGCONT")
    yield* Effect.sleep("3 seconds")
  })

/**
 * One fixed scenario instead of a schedule: the owner of a job is frozen inside its COMMIT, a successor takes the partition over and runs the
 * job, too, and then both commits go on. One of them has to fail, and only the fence in the settlement makes it.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { join } from "node:path"
import { JobRuntime, Jobs, Postgres as Database } from "../../src/index.ts"
import { messageOf } from "../shared/messageOf.ts"
import { ChaosError } from "./ChaosError.ts"
import type { World } from "./faults.ts"
import type { Order } from "./intents.ts"
import * as Ledger from "./Ledger.ts"
import { connect } from "./Postgres.ts"
import { dice } from "./Seed.ts"
import { partitions, queues, request } from "./work.ts"

/** What the COMMITs wait for. */
const lock = 1

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
    )
  )

const scenario = ({ events, postgres, runners }: World, seed: number, folder: string) =>
  Effect.gen(function*() {
    const session = yield* connect(postgres.url)
    const ask = (sql: string) => Effect.map(session.query(sql), ([row]) => row?.[0])
    const until = (sql: string) =>
      ask(sql).pipe(
        Effect.repeat({ until: (value) => value === true, schedule: Schedule.spaced("10 millis") }),
        Effect.timeoutOrElse({
          duration: "90 seconds",
          orElse: () => Effect.fail(new ChaosError({ message: `this never came true: ${sql}` }))
        })
      )
    const waiting =
      "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and application_name = 'chaos handlers'"

    yield* ask(`select pg_advisory_lock(${lock}) is null`)
    yield* submit(postgres.url, folder, {
      ref: dice(seed, "pause").uuid(),
      type: "Tx",
      queue: "tx",
      fails: 0,
      millis: 0,
      blocks: 0,
      isEarly: false,
      lock
    })
    yield* until(`select (${waiting}) = 1`)
    const runner = Number(yield* ask("select runner from chaos.starts"))
    const owner = runners[runner]?.slot.current()
    if (owner === undefined) return yield* new ChaosError({ message: `runner ${runner} is not there` })
    events.note({ what: "fault", kind: "freeze", target: runner, mode: "", forMs: 0 })
    owner.signal("SIGSTOP")
    // A run that its owner has noted is left alone until it is known how it ended. On a slow machine ours may just have been.
    yield* ask("delete from millrace.running_jobs")
    // The successor's settlement waits for the row, which the owner has taken.
    yield* until(`select (${waiting}) = 2`)
    yield* ask(`select pg_advisory_unlock(${lock})`)
    yield* until(`select (${waiting}) = 0`)
    owner.signal("SIGCONT")
    yield* Effect.sleep("1 second")
  })

/** Plays the scenario. */
export const pause = (world: World, seed: number, folder: string): Effect.Effect<void, ChaosError> =>
  Effect.scoped(scenario(world, seed, folder)).pipe(
    Effect.mapError((error) => error instanceof ChaosError ? error : new ChaosError({ message: messageOf(error) }))
  )

/**
 * effect-mq on PostgreSQL, with an Effect of its own: its LISTEN fails on 4.1.0. It keeps what is done.
 */
import { PgClient } from "@effect/sql-pg"
import { sql } from "drizzle-orm"
import { index } from "drizzle-orm/pg-core"
import { Effect, Exit, Layer, ManagedRuntime, Redacted, Schema, Scope } from "effect"
import { Job, Worker } from "effect-mq"
import {
  DrizzleJobStore,
  mqDedupe,
  mqFlowChildren,
  mqFlowOutbox,
  mqJobAttempts,
  mqJobs,
  mqQueueControl,
  mqSchedules
} from "effect-mq/drizzle-postgres"
import type { Settings, System } from "../../System.ts"
import { createTables } from "./createTables.ts"
import versions from "./package.json" with { type: "json" }

/**
 * Its own index for claims sorts `desc nulls last`, the claim `desc`, so PostgreSQL sorts the whole backlog for each claim. An index of the
 * user's, which effect-mq provides for, doubles the rate with 10,000 jobs waiting.
 */
const jobs = mqJobs("effect_mq_jobs", {
  extraConfig: (table) => [
    index("effect_mq_jobs_claim_idx")
      .on(table.queue, table.priority.desc().nullsFirst(), table.seq.asc())
      .where(sql`${table.state} = 'waiting'`)
  ]
})

const tables = {
  jobs,
  attempts: mqJobAttempts(jobs),
  schedules: mqSchedules(),
  queues: mqQueueControl(),
  dedupe: mqDedupe(),
  flowChildren: mqFlowChildren(),
  flowOutbox: mqFlowOutbox()
}

class Bench extends Job.make("bench", {
  payload: { text: Schema.String, at: Schema.Number },
  queue: "bench"
}) {}

/** Higher is sooner. */
const urgent = { priority: 1 }
const normal = { priority: 0 }

const concurrency = 10

const layer = (url: string) => PgClient.layer({ url: Redacted.make(url), maxConnections: 20 })

const system: System = {
  name: "effect-mq",
  description:
    `effect-mq ${versions.dependencies["effect-mq"]} on PostgreSQL, effect ${versions.dependencies.effect}: concurrency`
    + ` ${concurrency}, with an index that fits its claim; keeps what is done, a write is a transaction of its own`,
  works: ["noop", "write"],

  prepare: ({ url }) =>
    Effect.runPromise(
      Effect.gen(function*() {
        const client = yield* PgClient.PgClient
        for (const statement of createTables(Object.values(tables))) yield* client.unsafe(statement)
      }).pipe(Effect.provide(layer(url)))
    ),

  open: async ({ onStart, url, work }: Settings) => {
    const runtime = ManagedRuntime.make(DrizzleJobStore.layer(tables).pipe(Layer.provideMerge(layer(url))))
    const client = await runtime.runPromise(Effect.service(PgClient.PgClient))
    const scope = Scope.makeUnsafe()
    const handlers = Bench.toLayer(
      (payload) => {
        onStart(payload)
        return work === "noop"
          ? Effect.void
          : Effect.orDie(Effect.asVoid(client`insert into public.bench_rows (text) values (${payload.text})`))
      },
      { concurrency }
    )
    const count = client<{ readonly count: number }>`
      select count(*)::int as count from effect_mq_jobs where state in ('waiting', 'delayed', 'active')
    `
    return {
      submit: (payload, isUrgent = false) =>
        runtime.runPromise(Effect.asVoid(Bench.enqueue(payload, isUrgent ? urgent : normal))),
      submitMany: (payloads) => runtime.runPromise(Effect.asVoid(Bench.enqueueMany(payloads, normal))),
      run: () =>
        runtime.runPromise(Effect.asVoid(Layer.buildWithScope(Layer.provide(handlers, Worker.layer()), scope))),
      remaining: () => runtime.runPromise(Effect.map(count, ([row]) => row?.count ?? Number.NaN)),
      close: async () => {
        await runtime.runPromise(Scope.close(scope, Exit.void))
        await runtime.dispose()
      }
    }
  }
}

export default system

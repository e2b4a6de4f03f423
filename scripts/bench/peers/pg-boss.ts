/**
 * pg-boss. It keeps what is done. Its handlers get a batch, and a transactional batch commits or rolls back as a whole; so one job a transaction
 * means batches of one, each claimed, begun and completed by statements of its own.
 */
import { PgBoss, type WorkOptions } from "pg-boss"
import type { Payload, Settings, System, Work } from "../System.ts"
import { insertRow, makePool } from "./connect.ts"
import versions from "./package.json" with { type: "json" }

const queue = "bench"

/** Higher is sooner. */
const urgent = { priority: 1 }
const normal = { priority: 0 }

/** A full batch is followed by the next at once, and LISTEN wakes an idle worker: nothing waits for a poll. */
const batches = { pollingIntervalSeconds: 0.5, burstWhenBatchFull: true } satisfies WorkOptions

/** Runs the jobs of `queue`, which `boss` has started. */
export type RunWork = (boss: PgBoss, settings: Settings) => Promise<unknown>

const noop: RunWork = (boss, { onStart }) =>
  boss.work<Payload>(queue, { ...batches, batchSize: 1_000, localConcurrency: 4 }, async (jobs) => {
    for (const { data } of jobs) onStart(data)
  })

/** A batch of one is never "full": what lets its workers go on without a pause is the count of ready jobs that the monitor keeps. */
const write: RunWork = (boss, { onStart }) =>
  boss.work(queue, {
    pollingIntervalSeconds: 0.5,
    notifyPollingIntervalSeconds: 0.5,
    burstWhenReadyExceeds: 1,
    localConcurrency: 8,
    transactional: true
  }, async (jobs: ReadonlyArray<{ readonly data: Payload }>, transaction) => {
    for (const { data } of jobs) {
      onStart(data)
      await transaction.executeSql(insertRow, [data.text])
    }
  })

const grouped: RunWork = (boss, { onStart }) =>
  boss.work(
    queue,
    { ...batches, batchSize: 50, localConcurrency: 8, transactional: true },
    async (jobs: ReadonlyArray<{ readonly data: Payload }>, transaction) => {
      for (const { data } of jobs) {
        onStart(data)
        await transaction.executeSql(insertRow, [data.text])
      }
    }
  )

export const make = (
  name: string,
  description: string,
  runs: Partial<Record<Work, RunWork>>
): System => {
  const start = async ({ url, work }: Settings) => {
    const boss = new PgBoss({
      connectionString: url,
      max: 20,
      schedule: false,
      useListenNotify: true,
      // The count that `write` goes by; for the others it would be work for nothing.
      ...(work === "write"
        ? { monitorIntervalSeconds: 1, queueCacheIntervalSeconds: 1, superviseIntervalSeconds: 1 }
        : {})
    })
    boss.on("error", console.error)
    await boss.start()
    return boss
  }
  return {
    name,
    description: `pg-boss ${versions.dependencies["pg-boss"]}: ${description}`,
    works: (["noop", "write", "grouped"] as const).filter((work) => runs[work] !== undefined),

    prepare: async (settings) => {
      const boss = await start(settings)
      await boss.createQueue(queue)
      await boss.stop()
    },

    open: async (settings) => {
      const boss = await start(settings)
      const pool = makePool(settings.url)
      return {
        submit: async (payload, isUrgent = false) => {
          await boss.send(queue, payload, isUrgent ? urgent : normal)
        },
        submitMany: async (payloads) => {
          await boss.insert(queue, payloads.map((data) => ({ data, ...normal })))
        },
        run: async () => {
          // Halves the rate of submits, so only when somebody listens.
          await boss.updateQueue(queue, { notify: true })
          await runs[settings.work]?.(boss, settings)
        },
        remaining: async () => {
          const { rows } = await pool.query<{ count: number }>(
            "select count(*)::int as count from pgboss.job where name = $1 and state in ('created', 'retry', 'active')",
            [queue]
          )
          return rows[0]?.count ?? Number.NaN
        },
        close: async () => {
          await boss.stop()
          // See `makePool`.
          boss.off("error", console.error)
          boss.on("error", () => {})
          await pool.end()
        }
      }
    }
  }
}

export default make(
  "pg-boss",
  "noop batches of 1,000 x 4; write `transactional`, one job a transaction; grouped `transactional`, 50 jobs a transaction that roll back"
    + " together; keeps what is done",
  { noop, write, grouped }
)

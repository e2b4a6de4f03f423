/**
 * graphile-worker in its fast mode: the local queue claims 2,000 jobs in one statement, and completions are collected into one `delete`. It keeps
 * no history, and a job's own writes and its completion are two transactions.
 */
import type { Task } from "graphile-worker"
import type { Payload, Settings, System } from "../System.ts"
import { insertRow, makePool } from "./connect.ts"
import versions from "./package.json" with { type: "json" }

// It is read when the module is evaluated, and a log line for each job would cost more than the job.
process.env["NO_LOG_SUCCESS"] = "1"
const { Logger, makeWorkerUtils, run } = await import("graphile-worker")

const logger = new Logger(() => (level, message) => {
  if (level === "error") console.error(message)
})

const identifier = "bench"

/** Lower is sooner. */
const urgent = { priority: -1 }
const normal = { priority: 0 }

/** Handlers that write hold a connection each: more of them than connections were slower. */
const concurrentJobs = { noop: 24, write: 20, grouped: 20 }

const makeTask = ({ onStart, work }: Settings): Task =>
  work === "noop"
    ? (payload) => onStart(payload as Payload)
    : async (payload, { query }) => {
      onStart(payload as Payload)
      await query(insertRow, [(payload as Payload).text])
    }

const system: System = {
  name: "graphile-worker",
  description:
    `graphile-worker ${
      versions.dependencies["graphile-worker"]
    }: localQueue 2,000, batched completion; deletes what is done and`
    + " keeps nothing, a write and its job's completion are two transactions",
  works: ["noop", "write"],

  prepare: async ({ url }) => {
    const utils = await makeWorkerUtils({ connectionString: url, logger })
    await utils.migrate()
    await utils.release()
  },

  open: async (settings) => {
    const pool = makePool(settings.url)
    const utils = await makeWorkerUtils({ pgPool: pool, logger })
    let stop = () => Promise.resolve()
    return {
      submit: async (payload, isUrgent = false) => {
        await utils.addJob(identifier, payload, isUrgent ? urgent : normal)
      },
      submitMany: async (payloads) => {
        await utils.addJobs(payloads.map((payload) => ({ identifier, payload, ...normal })))
      },
      run: async () => {
        const runner = await run({
          preset: {
            worker: {
              connectionString: settings.url,
              concurrentJobs: concurrentJobs[settings.work],
              maxPoolSize: 20,
              localQueue: { size: 2_000 },
              completeJobBatchDelay: 0,
              failJobBatchDelay: 0
            }
          },
          logger,
          noHandleSignals: true,
          parsedCronItems: [],
          taskList: { [identifier]: makeTask(settings) }
        })
        stop = () => runner.stop()
      },
      remaining: async () => {
        const { rows } = await pool.query<{ count: number }>(
          "select count(*)::int as count from graphile_worker._private_jobs"
        )
        return rows[0]?.count ?? Number.NaN
      },
      close: async () => {
        await stop()
        await utils.release()
        await pool.end()
      }
    }
  }
}

export default system

/**
 * BullMQ on Redis, which answers before anything is on a disk: without AOF, a crash of Redis loses jobs. It keeps what is done, in memory.
 */
import { type JobsOptions, Queue, Worker } from "bullmq"
import { Redis } from "ioredis"
import type { Payload, Settings, System } from "../System.ts"
import { insertRow, makePool } from "./connect.ts"
import versions from "./package.json" with { type: "json" }

const queueName = "bench"

/** A job with a priority costs BullMQ a fifth more at both ends, so low ones have none, and urgent ones go to the head of the line. */
const urgent: JobsOptions = { lifo: true }
const normal: JobsOptions = {}

const concurrency = { noop: 50, write: 20, grouped: 20 }

const connectTo = ({ redis }: Settings) => {
  if (redis === undefined) throw new Error("BullMQ needs a Redis: apt-get install redis-server")
  return new Redis({ ...redis, maxRetriesPerRequest: null })
}

const system: System = {
  name: "bullmq",
  description:
    `BullMQ ${versions.dependencies.bullmq} on Redis without AOF: one worker, concurrency ${concurrency.noop} (${concurrency.write}`
    + " for writes); keeps what is done; a write is a transaction of its own",
  works: ["noop", "write"],

  prepare: () => Promise.resolve(),

  open: async (settings) => {
    const { onStart, url, work } = settings
    const connections = [connectTo(settings), connectTo(settings)] as const
    const queue = new Queue<Payload>(queueName, { connection: connections[0] })
    await queue.waitUntilReady()
    const pool = makePool(url)
    const handler = work === "noop"
      ? async ({ data }: { readonly data: Payload }) => onStart(data)
      : async ({ data }: { readonly data: Payload }) => {
        onStart(data)
        await pool.query(insertRow, [data.text])
      }
    let stop = () => Promise.resolve()
    return {
      submit: async (payload, isUrgent = false) => {
        await queue.add("bench", payload, isUrgent ? urgent : normal)
      },
      submitMany: async (payloads) => {
        await queue.addBulk(payloads.map((data) => ({ name: "bench", data, opts: normal })))
      },
      run: async () => {
        const worker = new Worker<Payload>(queueName, handler, {
          connection: connections[1],
          concurrency: concurrency[work]
        })
        worker.on("error", (error) => console.error(error))
        stop = () => worker.close()
        await worker.waitUntilReady()
      },
      remaining: async () => {
        const counts = await queue.getJobCounts("wait", "active", "prioritized", "delayed")
        return Object.values(counts).reduce((sum, count) => sum + count, 0)
      },
      close: async () => {
        await stop()
        await queue.close()
        for (const connection of connections) connection.disconnect()
        await pool.end()
      }
    }
  }
}

export default system

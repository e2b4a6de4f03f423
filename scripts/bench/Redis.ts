/**
 * A Redis of the run's own, for the peers that live on one: `redis-server` of this machine, with nothing written to disk.
 */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { connect, createServer } from "node:net"
import { tmpdir } from "node:os"
import { messageOf } from "../shared/messageOf.ts"
import { BenchError } from "./BenchError.ts"

export interface Redis {
  readonly host: string
  readonly port: number
}

const failed = (cause: unknown) => new BenchError({ message: `Redis: ${messageOf(cause)}` })

const freePort = Effect.tryPromise({
  try: async () => {
    const server = createServer().listen(0, "127.0.0.1")
    await once(server, "listening")
    const address = server.address()
    server.close()
    await once(server, "close")
    return typeof address === "object" && address !== null ? address.port : 0
  },
  catch: failed
})

/** Sends one command and gives the first line of the answer. */
const command = ({ host, port }: Redis, words: string) =>
  Effect.tryPromise({
    try: async () => {
      const socket = connect(port, host).setEncoding("utf8")
      await once(socket, "connect")
      socket.write(`${words}\r\n`)
      const [answer] = await once(socket, "data")
      socket.destroy()
      return String(answer).trim()
    },
    catch: failed
  })

/** Removes everything. */
export const flush = (redis: Redis) => command(redis, "FLUSHALL")

/** Started, and stopped when the scope closes. */
export const start = Effect.gen(function*() {
  const redis: Redis = { host: "127.0.0.1", port: yield* freePort }
  yield* Effect.acquireRelease(
    Effect.callback<ReturnType<typeof spawn>, BenchError>((resume) => {
      const child = spawn(
        "redis-server",
        ["--bind", redis.host, "--port", String(redis.port), "--save", "", "--appendonly", "no", "--dir", tmpdir()],
        { stdio: "ignore" }
      )
      child.once("spawn", () => resume(Effect.succeed(child)))
      child.once("error", () =>
        resume(Effect.fail(
          new BenchError({ message: "redis-server is not installed: \"apt-get install redis-server\"" })
        )))
    }),
    (child) =>
      Effect.promise(async () => {
        if (child.exitCode !== null || child.signalCode !== null) return
        const exit = once(child, "exit")
        child.kill("SIGTERM")
        await exit
      })
  )
  yield* Effect.retry(command(redis, "PING"), { schedule: Schedule.spaced("50 millis"), times: 100 })
  return redis
})

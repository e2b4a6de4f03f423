/**
 * Ports that stay ours while nothing listens on them: below those that the system gives to outgoing connections, which would take the port
 * of a server that is down, or even connect to themselves on it.
 */
import * as Effect from "effect/Effect"
import { createServer } from "node:net"
import { ChaosError } from "./ChaosError.ts"

const least = 20_000
const most = 32_000

/** Runs at the same time look in different places. */
let next = least + (process.pid * 37) % (most - least)

const isFree = (port: number) =>
  Effect.callback<boolean>((resume) => {
    const server = createServer()
    server.once("error", () => resume(Effect.succeed(false)))
    server.listen(port, "127.0.0.1", () => server.close(() => resume(Effect.succeed(true))))
  })

/** One that nothing listens on, given out once. */
export const freePort: Effect.Effect<number, ChaosError> = Effect.gen(function*() {
  for (let tried = least; tried < most; tried++) {
    next = next + 1 < most ? next + 1 : least
    const port = next
    if (yield* isFree(port)) return port
  }
  return yield* new ChaosError({ message: `no port from ${least} to ${most} is free` })
})

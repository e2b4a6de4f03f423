/**
 * The line between two processes: bytes pass through it until it is cut, stalled or closed to newcomers.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { connect, createServer, type Socket } from "node:net"
import { ChaosError } from "./ChaosError.ts"

export interface Proxy {
  readonly host: string
  readonly port: number
  /** Resets every connection. */
  readonly cut: () => void
  /** Resets the one that reaches the other end from this port. */
  readonly cutFrom: (port: number) => void
  /** Whether bytes pass. While they do not, connections are taken and nobody is told anything. */
  readonly setStalled: (isStalled: boolean) => void
  readonly isStalled: () => boolean
  /** Whether newcomers are reset at once. */
  readonly setRefusing: (isRefusing: boolean) => void
}

/** The machine itself. */
export const loopback = "127.0.0.1"

/** Where something listens, or will. */
export interface Target {
  readonly host: string
  readonly port: number
}

/** Listens on a free port of `host` until the scope closes, before there is anything at `target`. */
export const start = (host: string, target: Target): Effect.Effect<Proxy, ChaosError, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<Proxy & { readonly close: () => void }, ChaosError>((resume) => {
      const sockets = new Set<Socket>()
      let isStalled = false
      let isRefusing = false
      const keep = (socket: Socket, other: () => Socket) => {
        sockets.add(socket)
        socket.on("data", (bytes) => other().write(bytes))
        socket.on("end", () => other().end())
        socket.on("error", () => {})
        socket.on("close", () => {
          sockets.delete(socket)
          other().destroy()
        })
        if (isStalled) socket.pause()
      }
      const server = createServer({ allowHalfOpen: true }, (client) => {
        if (isRefusing) {
          client.on("error", () => {})
          client.resetAndDestroy()
          return
        }
        const session = connect({ ...target, allowHalfOpen: true })
        keep(client, () => session)
        keep(session, () => client)
      })
      const cut = () => {
        for (const socket of sockets) socket.resetAndDestroy()
      }
      server.once("error", (cause) => resume(Effect.fail(new ChaosError({ message: `a proxy: ${cause.message}` }))))
      server.listen(0, host, () => {
        const address = server.address()
        const port = typeof address === "object" && address !== null ? address.port : 0
        resume(Effect.succeed({
          host,
          port,
          cut,
          cutFrom: (port) => {
            for (const socket of sockets) {
              if (socket.localPort === port && socket.remotePort === target.port) socket.resetAndDestroy()
            }
          },
          isStalled: () => isStalled,
          setStalled: (is) => {
            isStalled = is
            for (const socket of sockets) {
              if (is) socket.pause()
              else socket.resume()
            }
          },
          setRefusing: (is) => {
            isRefusing = is
          },
          close: () => {
            cut()
            server.close()
          }
        }))
      })
    }),
    ({ close }) => Effect.sync(close)
  )

/** The URL, led through the proxy. */
export const through = (url: string, { host, port }: Proxy): string => {
  const led = new URL(url)
  led.hostname = host
  led.port = String(port)
  return led.href
}

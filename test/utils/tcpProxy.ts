/**
 * A TCP proxy in front of PostgreSQL whose clients can be cut off while their sessions live on, or get no answer: what a broken network, or a
 * server that does not get to it, looks like.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { connect, createServer, type Socket } from "node:net"

/** What a test does to the connections. */
export interface TcpProxy {
  readonly url: string
  readonly cut: Effect.Effect<void>
  /** Passes nothing on, and on again. */
  readonly stall: Effect.Effect<void>
  readonly resume: Effect.Effect<void>
}

/** `url` leads through the proxy. `cut` closes every client's socket; the server's side of it stays open until the proxy ends. */
export const tcpProxy = (target: string): Effect.Effect<TcpProxy, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      Effect.callback<TcpProxy & { readonly close: () => void }>(
        (resume) => {
          const { hostname, port } = new URL(target)
          const clients = new Set<Socket>()
          const sessions = new Set<Socket>()
          let isStalled = false
          const server = createServer((client) => {
            const session = connect(Number(port), hostname)
            clients.add(client)
            sessions.add(session)
            if (isStalled) { for (const socket of [client, session]) socket.pause() }
            client.on("data", (bytes) => session.write(bytes))
            session.on("data", (bytes) => client.write(bytes))
            // A client that leaves by itself takes its session along; one that was cut off does not.
            client.on("close", () => clients.delete(client) && session.end())
            session.on("close", () => client.destroy())
            client.on("error", () => {})
            session.on("error", () => {})
          })
          server.listen(0, "127.0.0.1", () => {
            const address = server.address()
            if (address === null || typeof address === "string") {
              return resume(Effect.die(new Error("the proxy has no port")))
            }
            const url = new URL(target)
            url.hostname = "127.0.0.1"
            url.port = String(address.port)
            const cut = Effect.sync(() => {
              for (const client of clients) {
                clients.delete(client)
                client.destroy()
              }
            })
            const setStalled = (to: boolean) =>
              Effect.sync(() => {
                isStalled = to
                for (const socket of [...clients, ...sessions]) socket[to ? "pause" : "resume"]()
              })
            const close = () => {
              for (const socket of [...clients, ...sessions]) socket.destroy()
              server.close()
            }
            resume(Effect.succeed({
              url: url.toString(),
              cut,
              stall: setStalled(true),
              resume: setStalled(false),
              close
            }))
          })
        }
      ),
      ({ close }) => Effect.sync(close)
    ),
    ({ cut, resume, stall, url }) => ({ cut, resume, stall, url })
  )

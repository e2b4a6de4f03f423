/**
 * Connections of a client whose own ends a test can cut.
 */
import type { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import { connect, type Socket } from "node:net"

/** The client's ends of its connections, any of which can be lost while the server's session lives on. */
export const makeLines = (url: string) => {
  const { hostname, port } = new URL(url)
  const sockets: Array<Socket> = []
  const of = (sql: PgClient, pids: ReadonlyArray<number>) =>
    Effect.map(
      sql<{ readonly port: number }>`select client_port as port from pg_stat_activity where pid = any(${pids}::int[])`,
      (rows) => sockets.filter(({ localPort }) => rows.some(({ port }) => port === localPort))
    )
  return {
    stream: () => {
      const socket = connect(Number(port), hostname)
      sockets.push(socket)
      return socket
    },
    /** Answers how many it was. */
    lose: (sql: PgClient, pids: ReadonlyArray<number>) =>
      Effect.map(of(sql, pids), (lost) => {
        for (const socket of lost) socket.destroy()
        return lost.length
      }),
    /** The next thing that is written gets lost, and the line with it. */
    loseAtNextWrite: (sql: PgClient, pid: number) =>
      Effect.map(of(sql, [pid]), ([socket]) => {
        if (socket === undefined) throw new Error(`session ${pid} has no line`)
        Object.assign(socket, {
          write: () => {
            socket.destroy()
            return false
          }
        })
      })
  }
}

/**
 * Watches what a client writes to PostgreSQL: which statements left together in one socket write. Can cut the line at one of them.
 */
import { Socket } from "node:net"
import type { Duplex } from "node:stream"

export interface Recorder {
  /** For `Postgres.layer({ stream })`. */
  readonly stream: () => Duplex
  /** Each socket write as the texts of the statements that it executes. */
  readonly writes: Array<ReadonlyArray<string>>
  /** The connections that the client has not seen end yet. */
  readonly connections: () => ReadonlyArray<Socket>
  /** Loses the connection when a statement whose text holds this is written, after the server got it. */
  cutAt: string | undefined
  /** The same, but before the server gets it. */
  loseAt: string | undefined
}

const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString("utf8")

/** Texts of the statements that a write executes; `names` keeps what the session has prepared. */
const statementsOf = (bytes: Uint8Array, names: Map<string, string>): ReadonlyArray<string> => {
  const found: Array<string> = []
  for (let at = 0; at + 5 <= bytes.length;) {
    const length = Buffer.from(bytes).readInt32BE(at + 1)
    const body = bytes.subarray(at + 5, at + 1 + length)
    const type = String.fromCodePoint(bytes[at] ?? 0)
    const fields = text(body).split("\0")
    // Parse: name, query. Bind: portal, name.
    if (type === "P") names.set(fields[0] ?? "", fields[1] ?? "")
    if (type === "B") found.push(names.get(fields[1] ?? "") ?? "?")
    at += 1 + length
  }
  return found
}

export const makeRecorder = (url: string): Recorder => {
  const { hostname, port } = new URL(url)
  const sockets: Array<Socket> = []
  const recorder: Recorder = {
    writes: [],
    connections: () => sockets.filter(({ destroyed }) => !destroyed),
    cutAt: undefined,
    loseAt: undefined,
    stream: () => {
      const socket = new Socket()
      sockets.push(socket)
      const names = new Map<string, string>()
      let isStarted = false
      const write = socket.write.bind(socket)
      const record = (chunk: Uint8Array): boolean => {
        // The first message (startup or cancel) has no type byte; answers to a password request execute nothing.
        const statements = isStarted ? statementsOf(chunk, names) : []
        isStarted = true
        const { cutAt, loseAt } = recorder
        if (statements.length > 0) recorder.writes.push(statements)
        if (loseAt !== undefined && statements.some((statement) => statement.includes(loseAt))) {
          socket.destroy()
          return false
        }
        if (cutAt !== undefined && statements.some((statement) => statement.includes(cutAt))) {
          // Nothing is read any more: the answer never arrives.
          socket.removeAllListeners("data")
          if (!statements.includes("COMMIT")) {
            write(chunk, () => socket.destroy())
            return true
          }
          // A server that cannot answer one statement may not run the next: it is lost once COMMIT is answered.
          socket.on("data", (answer: Uint8Array) => {
            if (/COMMIT|ROLLBACK/.test(text(answer))) socket.destroy()
          })
        }
        return write(chunk)
      }
      // `connect` puts its own `write` back, so ours comes after it.
      return Object.assign(socket.connect(Number(port), hostname), { write: record })
    }
  }
  return recorder
}

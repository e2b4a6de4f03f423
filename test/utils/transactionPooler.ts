/**
 * A small pooler in transaction mode, as PgBouncer is one: a client has a backend from its first message to the end of its transaction. What
 * is sent to a backend that nobody has (a notification) gets lost, and the settings a client asks for at its start are ignored.
 */
import * as Effect from "effect/Effect"
import { connect, createServer, type Socket } from "node:net"

/** Cuts a stream of messages: a letter (none in the first message of a client) and a length, which counts itself. */
class Messages {
  private bytes = Buffer.alloc(0)
  private readonly head: () => number

  constructor(head: () => number) {
    this.head = head
  }

  push(bytes: Buffer): void {
    this.bytes = Buffer.concat([this.bytes, bytes])
  }

  next(): Buffer | undefined {
    const head = this.head()
    if (this.bytes.length < head + 4) return undefined
    const end = head + this.bytes.readInt32BE(head)
    if (this.bytes.length < end) return undefined
    const message = this.bytes.subarray(0, end)
    this.bytes = this.bytes.subarray(end)
    return message
  }
}

const letterOf = (message: Buffer): string => String.fromCharCode(message[0] ?? 0)

/** Asks for TLS or GSS encryption. */
const isAskingForEncryption = (message: Buffer): boolean =>
  message.length === 8 && [80877103, 80877104].includes(message.readInt32BE(4))

interface Backend {
  readonly socket: Socket
  client: Client | undefined
}

interface Client {
  readonly socket: Socket
  backend: Backend | undefined
  readonly waiting: Array<Buffer>
  /** Messages that are answered by ReadyForQuery and have not been. */
  unanswered: number
  isKnown: boolean
}

/** "You are who you say", what the first login told of the server, a key for cancelling that cancels nothing, and "go on". */
const welcome = (parameters: ReadonlyArray<Buffer>): Buffer =>
  Buffer.concat([
    Buffer.from([0x52, 0, 0, 0, 8, 0, 0, 0, 0]),
    ...parameters,
    Buffer.from([0x4b, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 1]),
    Buffer.from([0x5a, 0, 0, 0, 5, 0x49])
  ])

const serve = (target: string, size: number) => {
  const { hostname, port } = new URL(target)
  const backends = new Set<Backend>()
  const queue: Array<Client> = []
  const newcomers: Array<Client> = []
  let parameters: Array<Buffer> | undefined

  const send = (client: Client, backend: Backend) => {
    const messages = client.waiting.splice(0)
    client.unanswered += messages.filter((message) => ["S", "Q"].includes(letterOf(message))).length
    backend.socket.write(Buffer.concat(messages))
  }

  const lend = () => {
    for (const backend of backends) {
      if (backend.client !== undefined) continue
      const client = queue.shift()
      if (client === undefined) return
      backend.client = client
      client.backend = backend
      send(client, backend)
    }
  }

  const giveBack = (backend: Backend) => {
    if (backend.client !== undefined) backend.client.backend = undefined
    backend.client = undefined
    lend()
  }

  const greet = (client: Client) => {
    if (parameters === undefined) return void newcomers.push(client)
    client.isKnown = true
    client.socket.write(welcome(parameters))
  }

  /** The first clients log in themselves, and leave their sessions to all. */
  const logIn = (client: Client, startup: Buffer) => {
    const backend: Backend = { socket: connect({ port: Number(port), host: hostname, noDelay: true }), client }
    const seen: Array<Buffer> = []
    const messages = new Messages(() => 1)
    client.backend = backend
    backends.add(backend)
    backend.socket.write(startup)
    backend.socket.on("error", () => {})
    backend.socket.on("close", () => {
      backends.delete(backend)
      backend.client?.socket.destroy()
    })
    backend.socket.on("data", (bytes) => {
      messages.push(bytes)
      for (let message = messages.next(); message !== undefined; message = messages.next()) {
        const owner = backend.client
        owner?.socket.write(message)
        if (letterOf(message) === "S" && owner?.isKnown === false) seen.push(message)
        if (letterOf(message) !== "Z" || owner === undefined) continue
        if (owner.isKnown) owner.unanswered--
        owner.isKnown = true
        parameters ??= seen
        if (owner.unanswered === 0 && message[5] === 0x49) giveBack(backend)
      }
      for (const newcomer of parameters === undefined ? [] : newcomers.splice(0)) greet(newcomer)
    })
  }

  const server = createServer({ noDelay: true }, (socket) => {
    const client: Client = { socket, backend: undefined, waiting: [], unanswered: 0, isKnown: false }
    let hasBegun = false
    const messages = new Messages(() => hasBegun ? 1 : 0)
    socket.on("error", () => {})
    socket.on("close", () => {
      if (queue.includes(client)) queue.splice(queue.indexOf(client), 1)
      // Left in the midst of a transaction: PgBouncer ends the session too.
      client.backend?.socket.destroy()
    })
    socket.on("data", (bytes) => {
      messages.push(bytes)
      for (let message = messages.next(); message !== undefined; message = messages.next()) {
        if (!hasBegun && isAskingForEncryption(message)) {
          socket.write("N")
        } else if (!hasBegun) {
          hasBegun = true
          if (backends.size < size) logIn(client, message)
          else greet(client)
        } else if (!client.isKnown) {
          client.backend?.socket.write(message)
        } else if (letterOf(message) === "X") {
          socket.end()
        } else {
          client.waiting.push(message)
        }
      }
      if (client.waiting.length === 0) return
      if (client.backend !== undefined) return send(client, client.backend)
      if (!queue.includes(client)) queue.push(client)
      lend()
    })
  })
  return {
    server,
    close: () => {
      for (const { client, socket } of backends) {
        client?.socket.destroy()
        socket.destroy()
      }
      server.close()
    }
  }
}

/** The URL through a pooler with so many backends. Closed with the scope. */
export const transactionPooler = (target: string, size: number) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.callback<{ readonly url: string; readonly close: () => void }>((resume) => {
        const { close, server } = serve(target, size)
        server.listen(0, "127.0.0.1", () => {
          const address = server.address()
          const url = new URL(target)
          url.hostname = "127.0.0.1"
          url.port = String(typeof address === "object" && address !== null ? address.port : 0)
          resume(Effect.succeed({ url: url.toString(), close }))
        })
      }),
      ({ close }) => Effect.sync(close)
    ),
    ({ url }) => url
  )

/**
 * The handlers of hostile jobs: each harms what runs it, and has to end as the checker's rule `bounded` says.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { SqlClient } from "effect/sql/SqlClient"
import { CurrentJob } from "../../src/index.ts"
import { begin, write } from "./handlers.ts"
import { hang } from "./intents.ts"
import { send } from "./runnerMessage.ts"
import { Starts } from "./Starts.ts"
import {
  CutJob,
  DieJob,
  HangJob,
  HangKeyedJob,
  IdleInTransactionJob,
  KillBackendJob,
  type Payload,
  UninspectableJob
} from "./work.ts"

/** The process dies before anything can be written. */
const die = (payload: Payload) =>
  Effect.gen(function*() {
    yield* write(payload, yield* begin(payload))
    yield* Effect.sync(() => process.kill(process.pid, "SIGKILL"))
    return yield* Effect.never
  })

/** Ends the session of this job's transaction while a statement is in flight on it. */
const endSession = <E, R>(harm: Effect.Effect<unknown, E, R>, seconds: number) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient
    yield* Effect.forkChild(Effect.andThen(Effect.sleep("200 millis"), Effect.ignore(harm)))
    yield* sql`select pg_sleep(${seconds})`
  })

const ownSession = Effect.gen(function*() {
  const sql = yield* SqlClient
  const [session] = yield* sql<{ pid: number; port: number }>`
    select pg_backend_pid() as pid, inet_client_port() as port`
  return session ?? (yield* Effect.die(new Error("a session that does not know itself")))
})

const killBackend = (payload: Payload) =>
  Effect.gen(function*() {
    const { jobId } = yield* CurrentJob.CurrentJob
    yield* write(payload, yield* begin(payload))
    const { pid } = yield* ownSession
    const kill = Effect.sync(() => {
      send({ session: "killed", job: jobId })
      process.kill(pid, "SIGKILL")
    })
    // A server that was restarted in the meantime has no such process: the statement fails all the same.
    yield* endSession(Effect.catchDefect(kill, () => Effect.void), 30)
    return yield* Effect.die(new Error("the backend was killed and has answered"))
  })

const cut = (payload: Payload) =>
  Effect.gen(function*() {
    const { jobId } = yield* CurrentJob.CurrentJob
    const { count, terminate } = yield* Starts
    const begun = yield* begin(payload)
    yield* write(payload, begun)
    if ((yield* count(payload.ref)) > (payload.cuts ?? 0)) return
    const { pid, port } = yield* ownSession
    const reset = Effect.sync(() => send({ session: "cut", job: jobId, port }))
    const terminated = Effect.andThen(
      Effect.sync(() => send({ session: "terminated", job: jobId })),
      terminate(pid)
    )
    yield* endSession(payload.how === "reset" ? reset : terminated, 3)
  })

const looksBad = (): never => {
  throw new Error("do not look at me")
}

/** Throws at every touch, or at every touch of what an error usually has. */
const uninspectable = (how: string): object => {
  if (how.endsWith("revoked")) {
    const { proxy, revoke } = Proxy.revocable({}, {})
    revoke()
    return proxy
  }
  const names = ["_tag", "name", "message", "stack", "cause", "errorClass", "retryAfter", "toString", "toJSON"]
  return Object.defineProperties({}, {
    ...Object.fromEntries(names.map((name) => [name, { get: looksBad, enumerable: true }])),
    [Symbol.toPrimitive]: { get: looksBad },
    [Symbol.toStringTag]: { get: looksBad }
  })
}

const failUninspectably = (payload: Payload) =>
  Effect.gen(function*() {
    yield* write(payload, yield* begin(payload))
    const { how = "" } = payload
    const poison = uninspectable(how)
    if (how.startsWith("throw")) throw poison
    // As of a library whose types lie.
    return yield* how.startsWith("die") ? Effect.die(poison) : Effect.fail(poison as never)
  })

const forever = Effect.promise(() => new Promise<never>(() => {}))

/** Until some time after the runtime has abandoned the handler. */
const late = Effect.sleep(hang.timeoutMs + hang.abandonMs + 3_000)

const hangAs = (how: string | undefined) =>
  how === "finalizer"
    ? Effect.ensuring(Effect.sleep("1 hour"), forever)
    : Effect.uninterruptible(how === "late" ? late : forever)

const hangPlain = (payload: Payload) => Effect.andThen(begin(payload), hangAs(payload.how))

/** Writes before it hangs, and after it if it comes to that: none of it may be committed. */
const hangInTransaction = (payload: Payload) =>
  Effect.gen(function*() {
    const begun = yield* begin(payload)
    yield* write(payload, begun)
    yield* hangAs(payload.how)
    yield* write(payload, begun)
  }).pipe(payload.how === "late" ? Effect.uninterruptible : (handler) => handler)

/** The server ends the session while nothing is in flight on it. */
const idle = (payload: Payload) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient
    const begun = yield* begin(payload)
    yield* sql`set local idle_in_transaction_session_timeout = 300`
    yield* write(payload, begun)
    yield* Effect.sleep("1500 millis")
    if (payload.how === "writes") yield* write(payload, begun)
  })

export const hostileHandlers = Layer.mergeAll(
  DieJob.toLayer(die),
  KillBackendJob.toLayer(killBackend),
  CutJob.toLayer(cut),
  UninspectableJob.toLayer(failUninspectably),
  HangJob.toLayer(hangPlain),
  HangKeyedJob.toLayer(hangInTransaction),
  IdleInTransactionJob.toLayer(idle)
)

/**
 * A system in a process of its own, seen from the harness: one call at a time, in order. It is killed when the scope closes.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { ChildProcess } from "node:child_process"
import { fileURLToPath } from "node:url"
import * as Child from "../shared/childProcess.ts"
import { BenchError } from "./BenchError.ts"
import type { Call, Calls, Reply, Request } from "./protocol.ts"

export interface Worker {
  readonly call: <Name extends Call>(
    call: Name,
    input: Calls[Name]["input"]
  ) => Effect.Effect<Calls[Name]["output"], BenchError>
}

const program = fileURLToPath(new URL("worker.ts", import.meta.url))

/** Starts a process. What it prints goes to stderr: stdout is for results. */
export const spawn = (
  script: string,
  args: ReadonlyArray<string>,
  environment: Readonly<Record<string, string>> = {}
) => Child.start(script, args, { stdio: ["ignore", 2, 2, "ipc"], serialization: "advanced", env: environment })

/** The next message of a child, whatever it is. A child that ends instead is an error. */
export const nextMessage = (child: ChildProcess, what: string) =>
  Effect.callback<unknown, BenchError>((resume) => {
    const end = () => {
      child.off("message", onMessage)
      child.off("exit", onExit)
    }
    const onMessage = (message: unknown) => {
      end()
      resume(Exit.succeed(message))
    }
    const onExit = (code: number | null, signal: string | null) => {
      end()
      resume(Exit.fail(new BenchError({ message: `${what}: the process ended (${signal ?? `exit code ${code}`})` })))
    }
    child.on("message", onMessage)
    child.on("exit", onExit)
    if (Child.hasEnded(child)) onExit(child.exitCode, child.signalCode)
    return Effect.sync(end)
  })

/** No call takes longer, however slow the system: its jobs are too many then. */
const patience = "15 minutes"

/** A process that runs the system of this adapter. */
export const start = Effect.fnUntraced(function*(adapter: string, driver = program) {
  const child = yield* spawn(driver, [adapter])
  const call: Worker["call"] = (name, input) => {
    const what = `${adapter}: ${name}`
    return Effect.gen(function*() {
      const request: Request = { call: name, input }
      const answer = nextMessage(child, what)
      yield* Effect.sync(() => child.send(request))
      const reply = (yield* answer) as Reply
      if ("error" in reply) return yield* new BenchError({ message: `${what}: ${reply.error}` })
      return reply.output as Calls[typeof name]["output"]
    }).pipe(Effect.timeoutOrElse({
      duration: patience,
      orElse: () => Effect.fail(new BenchError({ message: `${what}: no answer after ${patience}` }))
    }))
  }
  return { call } satisfies Worker
})

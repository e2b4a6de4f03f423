/**
 * A process of a run: started, told, signalled, waited for. It is killed when the scope closes. What it prints goes into a file.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { closeSync, existsSync, openSync, readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import * as Child from "../shared/childProcess.ts"
import { ChaosError } from "./ChaosError.ts"

/** How a process ended. */
export interface Ended {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

export interface Process {
  readonly isAlive: () => boolean
  /** Waits for the first message, its word that it is ready. Fails when it ends before. */
  readonly ready: Effect.Effect<unknown, ChaosError>
  readonly ended: Effect.Effect<Ended>
  readonly tell: (message: object) => void
  readonly signal: (signal: NodeJS.Signals) => void
}

export interface Options {
  /** A file of this folder. */
  readonly script: string
  readonly log: string
  readonly env?: Readonly<Record<string, string>>
  readonly args?: ReadonlyArray<string>
  /** Runs in this network. */
  readonly namespace?: string
  /** Another file of this folder, loaded before the script. */
  readonly preload?: string
  /** Hears what it says once it is ready. */
  readonly onMessage?: (message: unknown) => void
}

const path = (name: string) => fileURLToPath(new URL(name, import.meta.url))

const spawn = ({ args = [], env, log, namespace, preload, script }: Options) =>
  Effect.acquireUseRelease(
    Effect.sync(() => openSync(log, "a")),
    (output) =>
      Child.start(path(script), args, {
        env,
        // `ip` becomes the process that it runs.
        ...namespace !== undefined && { execPath: "ip" },
        execArgv: [
          ...namespace === undefined ? [] : ["netns", "exec", namespace, process.execPath],
          ...preload === undefined ? [] : ["--import", path(preload)]
        ],
        stdio: ["ignore", output, output, "ipc"]
      }),
    (output) => Effect.sync(() => closeSync(output))
  )

/** Of what it has printed. */
export const lastWords = (log: string): string => readFileSync(log, "utf8").trim().split("\n").slice(-20).join("\n")

/** What it has warned of, the last of it: all that is left of a run whose folder is not kept. */
export const warnings = (log: string): ReadonlyArray<string> =>
  existsSync(log)
    ? readFileSync(log, "utf8").split("\n").filter((line) => / (?:WARN|ERROR|FATAL) /.test(line)).slice(-60)
    : []

export const start = (options: Options): Effect.Effect<Process, never, Scope.Scope> =>
  Effect.gen(function*() {
    const ended = Deferred.makeUnsafe<Ended>()
    const ready = Deferred.makeUnsafe<unknown, ChaosError>()
    const child = yield* spawn(options)
    const end = (how: Ended) => {
      Deferred.doneUnsafe(
        ready,
        Effect.fail(
          new ChaosError({ message: `${options.script} ended before it was ready:\n${lastWords(options.log)}` })
        )
      )
      Deferred.doneUnsafe(ended, Effect.succeed(how))
    }
    child.on("message", (message) => {
      if (!Deferred.doneUnsafe(ready, Effect.succeed(message))) options.onMessage?.(message)
    })
    child.once("exit", (code, signal) => end({ code, signal }))
    child.once("error", () => end({ code: null, signal: null }))
    const isAlive = () => !Child.hasEnded(child)
    return {
      isAlive,
      ready: Deferred.await(ready),
      ended: Deferred.await(ended),
      // The channel may be gone a moment before the process is.
      tell: (message) => void (child.connected && child.send(message, () => {})),
      signal: (signal) => void (isAlive() && child.kill(signal))
    }
  })

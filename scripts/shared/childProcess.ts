/**
 * Processes that a script starts, with a channel for messages. They are killed when the scope closes: none outlives the script's interest.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type ChildProcess, fork, type ForkOptions } from "node:child_process"

/** Whether it has ended, or never began. */
export const hasEnded = (child: ChildProcess): boolean =>
  child.exitCode !== null || child.signalCode !== null || child.pid === undefined

/** Waits until it has. */
export const ended = (child: ChildProcess): Effect.Effect<void> =>
  Effect.callback<void>((resume) => {
    if (hasEnded(child)) return resume(Effect.void)
    child.once("exit", () => resume(Effect.void))
  })

/** Starts one. `environment` is laid over this process's own. */
export const start = (
  script: string,
  args: ReadonlyArray<string>,
  { env = {}, ...options }: Omit<ForkOptions, "env"> & { readonly env?: Readonly<Record<string, string>> | undefined }
): Effect.Effect<ChildProcess, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => fork(script, args, { ...options, env: { ...process.env, ...env } })),
    (child) =>
      Effect.suspend(() => {
        child.kill("SIGKILL")
        return ended(child)
      })
  )

/**
 * A program that a script runs to its end. It is killed when the caller is interrupted.
 */
import * as Effect from "effect/Effect"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import * as Stream from "effect/Stream"

/** Its exit code, and what it printed to stdout and stderr. */
export const run = Effect.fnUntraced(function*(program: string, args: ReadonlyArray<string>, folder: string) {
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  const handle = yield* spawner.spawn(ChildProcess.make(program, args, { cwd: folder }))
  const output = yield* Stream.mkString(Stream.decodeText(handle.all))
  return { code: Number(yield* handle.exitCode), output }
}, Effect.scoped)

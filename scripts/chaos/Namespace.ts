/**
 * A network of its own for one runner, behind a cable that can be pulled: Linux, and root. What a proxy cannot show: no reset and no end ever
 * arrives, on either side, and the kernels go on sending.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { execFile } from "node:child_process"
import { ChaosError } from "./ChaosError.ts"

export interface Namespace {
  readonly name: string
  /** This machine as the runner sees it, and the runner as this machine does. */
  readonly host: string
  readonly address: string
  readonly setPlugged: (isPlugged: boolean) => Effect.Effect<void, ChaosError>
}

const ip = (...args: ReadonlyArray<string>): Effect.Effect<void, ChaosError> =>
  Effect.callback((resume) => {
    execFile("ip", args, (error, _, stderr) =>
      resume(
        error === null
          ? Effect.void
          : Effect.fail(
            new ChaosError({ message: `--netns needs root: ip ${args.join(" ")}: ${stderr || error.message}` })
          )
      ))
  })

/** There until the scope closes. */
export const make: Effect.Effect<Namespace, ChaosError, Scope.Scope> = Effect.gen(function*() {
  const number = process.pid % 250
  const name = `chaos${process.pid}`
  // Names of interfaces have 15 characters.
  const [outer, inner] = [`mo${process.pid}`, `mi${process.pid}`]
  const [host, address] = [`10.213.${number}.1`, `10.213.${number}.2`]
  // The pair of interfaces goes with it.
  yield* Effect.acquireRelease(ip("netns", "add", name), () => Effect.ignore(ip("netns", "del", name)))
  yield* ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
  yield* ip("addr", "add", `${host}/30`, "dev", outer)
  yield* ip("link", "set", outer, "up")
  yield* ip("-n", name, "addr", "add", `${address}/30`, "dev", inner)
  yield* ip("-n", name, "link", "set", inner, "up")
  yield* ip("-n", name, "link", "set", "lo", "up")
  return { name, host, address, setPlugged: (is) => ip("-n", name, "link", "set", inner, is ? "up" : "down") }
})

/**
 * Tells of runners that do not answer when they are asked whether they are alive: each once, until it answers again.
 *
 * One that leaves closes its port only after it has left the list: who fails to answer and is listed still has not left. It is told by
 * whichever runner asks at the time; a crash leaves nothing behind, and the next one to ask may tell of it again.
 */
import type { RunnerAddress } from "effect/cluster/RunnerAddress"
import { RunnerStorage } from "effect/cluster/RunnerStorage"
import { ShardingConfig } from "effect/cluster/ShardingConfig"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as Option from "effect/Option"
import * as References from "effect/References"
import type { Settings } from "./runnerSettings.ts"
import { told } from "./told.ts"

/** One check of one runner, which asks it several times. */
export interface Check {
  /** To be run each time that it did not answer. */
  readonly failed: Effect.Effect<void>
  /** To be run at the end. */
  readonly over: (isAlive: boolean) => Effect.Effect<void>
}

const nameOf = ({ host, port }: RunnerAddress) => `${host}:${port}`

/** Remembers whom it has told of. `transport` is that of this runner. */
export const make = Effect.fnUntraced(function*(transport: Settings["transport"]) {
  const storage = yield* RunnerStorage
  const { runnerAddress } = yield* ShardingConfig
  const self = Option.getOrUndefined(runnerAddress)
  const known = new Set<string>()

  const warn = (address: RunnerAddress) => {
    const at = nameOf(address)
    const who = Equal.equals(address, self)
      ? `This runner does not answer itself at ${at}`
      : `The runner ${at} does not answer`
    const line = Effect.logWarning(
      `${who}: its partitions go to others. If it lives, it is frozen or cannot be reached there: see that its \`host\` and \`port\` ` +
        "(MILLRACE_RUNNER_HOST and _PORT) lead to it from here, and that all runners have the same `transport` " +
        `(MILLRACE_RUNNER_TRANSPORT; here ${transport})`
    )
    // Those of the check say where in the cluster it runs.
    return told(Effect.provideService(line, References.CurrentLogAnnotations, {}))
  }

  /** The addresses on the list; nothing, where the database does not say. */
  const listed = storage.getRunners.pipe(
    Effect.timeout("1 second"),
    Effect.map((runners) => new Set(runners.map(([{ address }]) => nameOf(address)))),
    Effect.option
  )

  return {
    ask: (address: RunnerAddress): Check => {
      const at = nameOf(address)
      let isListed = false
      return {
        // At once: of a frozen one the list forgets soon that it has not left.
        failed: Effect.suspend(() => {
          if (isListed || known.has(at)) return Effect.void
          return Effect.map(listed, (addresses) => {
            if (Option.isNone(addresses)) return
            isListed = addresses.value.has(at)
            for (const other of known) if (!addresses.value.has(other)) known.delete(other)
          })
        }),
        over: (isAlive) =>
          Effect.suspend(() => {
            if (isAlive) known.delete(at)
            if (isAlive || !isListed) return Effect.void
            known.add(at)
            return warn(address)
          })
      }
    }
  }
})

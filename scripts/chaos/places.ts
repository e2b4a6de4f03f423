/**
 * Where the runners and submitters of a run are started, again and again, and the lines between them.
 */
import * as Effect from "effect/Effect"
import * as Path from "effect/Path"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type { Events } from "./Events.ts"
import type * as Faults from "./faults.ts"
import type { Hostility } from "./intents.ts"
import type { Namespace } from "./Namespace.ts"
import type { Options } from "./options.ts"
import { freePort } from "./port.ts"
import type { Postgres } from "./Postgres.ts"
import * as Process from "./Process.ts"
import * as Proxy from "./Proxy.ts"
import type { RunnerOptions } from "./runner.ts"
import { RunnerMessage } from "./runnerMessage.ts"
import { dice } from "./Seed.ts"
import * as Slot from "./Slot.ts"
import type { SubmitterOptions } from "./submitter.ts"

/** Shorter runs have no time for a job that kills its process again and again, or for any hostile job. */
const leastForDying = 180_000
const leastForHostile = 30_000

/** One submitter has all hostile jobs. */
const hostilityOf = ({ ms }: Options, submitter: number): Hostility =>
  submitter > 0 || ms < leastForHostile ? "none" : ms < leastForDying ? "bounded" : "deadly"

const isRunnerMessage = Schema.is(RunnerMessage)

const withOptions = (options: object) => ({ CHAOS_OPTIONS: JSON.stringify(options) })

/** What all places of a run share. */
export interface Ground {
  readonly options: Options
  readonly folder: string
  readonly postgres: Postgres
  readonly events: Events
  readonly namespace: Namespace | undefined
  readonly partitions: Faults.World["partitions"]
}

/** How often a runner comes back at another address than it had. */
const movesOften = 0.3

/** A place for a runner with lines of its own: to the database, and from the others under two addresses. */
export const runnerOf = ({ events, folder, namespace, options, partitions, postgres }: Ground) => (number: number) =>
  Effect.gen(function*() {
    const { join } = yield* Path.Path
    const own = dice(options.seed, `runner/${number}`)
    // All runners know each other by addresses that are good in all networks of the run.
    const host = namespace?.host ?? Proxy.loopback
    const home = number === options.runners - 1 ? namespace : undefined
    const listen = { host: home?.address ?? Proxy.loopback, port: yield* freePort }
    const database = yield* Proxy.start(host, { host: Proxy.loopback, port: Number(new URL(postgres.url).port) })
    const peers = [yield* Proxy.start(host, listen), yield* Proxy.start(host, listen)] as const
    let [address] = peers
    const slot = yield* Slot.make({
      what: "runner",
      number,
      events,
      dice: own,
      start: (incarnation) =>
        Effect.suspend(() => {
          if (own.chance(movesOften)) address = own.pick(peers)
          return Process.start({
            script: "runner.ts",
            preload: "skew.ts",
            ...home !== undefined && { namespace: home.name },
            log: join(folder, `runner-${number}.log`),
            onMessage: (message) => {
              if (!isRunnerMessage(message)) return
              if ("stood" in message) {
                events.note({ what: "runner", number, incarnation, is: "stood", forMs: message.stood })
              } else {
                events.note({ what: "session", is: message.session, by: message.job })
                if (message.port !== undefined) database.cutFrom(message.port)
              }
            },
            env: withOptions(
              {
                url: Proxy.through(postgres.url, database),
                runner: number,
                incarnation,
                runtime: options.runtime,
                partitions: partitions.wanted,
                host,
                port: address.port,
                listenHost: listen.host,
                listenPort: listen.port
              } satisfies RunnerOptions
            )
          })
        })
    })
    return { slot, database, peers } satisfies Faults.Runner
  })

export const submitterOf = ({ events, folder, options, partitions, postgres }: Ground) => (number: number) =>
  Effect.gen(function*() {
    const { join } = yield* Path.Path
    return yield* Slot.make({
      what: "submitter",
      number,
      events,
      dice: dice(options.seed, `submitter/${number}`),
      start: (incarnation) =>
        Process.start({
          script: "submitter.ts",
          log: join(folder, `submitter-${number}.log`),
          env: withOptions(
            {
              url: postgres.url,
              folder,
              seed: options.seed,
              submitter: number,
              incarnation,
              perSecond: options.perSecond / options.submitters,
              partitions: partitions.wanted,
              hostility: hostilityOf(options, number)
            } satisfies SubmitterOptions
          )
        })
    })
  })

/** Opens them all, and waits until whoever is first there is ready. */
export const untilUp = (slots: ReadonlyArray<Slot.Slot>) =>
  Effect.forEach(slots, (slot) =>
    Effect.gen(function*() {
      yield* slot.open
      const process = yield* Effect.repeat(Effect.sync(slot.current), {
        until: (process) => process !== undefined,
        schedule: Schedule.spaced("10 millis")
      })
      yield* process?.ready ?? Effect.void
    }), { discard: true, concurrency: "unbounded" })

/** Nobody follows, and whoever is up ends as it is told; killed after a while. */
export const untilDown = (slots: ReadonlyArray<Slot.Slot>, tell: (process: Process.Process) => void) =>
  Effect.forEach(slots, (slot) =>
    Effect.gen(function*() {
      yield* slot.close
      const process = slot.current()
      if (process === undefined) return
      tell(process)
      yield* Effect.timeoutOrElse(process.ended, {
        duration: "40 seconds",
        orElse: () => Effect.andThen(Effect.sync(() => process.signal("SIGKILL")), process.ended)
      })
    }), { discard: true, concurrency: "unbounded" })

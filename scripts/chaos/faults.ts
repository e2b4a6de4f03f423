/**
 * What each fault of the schedule does to the processes, lines and sessions of a run.
 */
import * as Effect from "effect/Effect"
import { messageOf } from "../shared/messageOf.ts"
import { ChaosError } from "./ChaosError.ts"
import type { Events } from "./Events.ts"
import type { Namespace } from "./Namespace.ts"
import type { Postgres } from "./Postgres.ts"
import type { Process } from "./Process.ts"
import type { Proxy } from "./Proxy.ts"
import type { Fault, KindName } from "./schedule.ts"
import type { Slot } from "./Slot.ts"

/** A runner and its lines. */
export interface Runner {
  readonly slot: Slot
  readonly database: Proxy
  /** Its addresses for other runners. */
  readonly peers: ReadonlyArray<Proxy>
}

/** All that can be hurt. */
export interface World {
  readonly postgres: Postgres
  readonly events: Events
  readonly runners: ReadonlyArray<Runner>
  /** Joins and leaves. */
  readonly guest: Runner
  readonly submitters: ReadonlyArray<Slot>
  /** The last runner's, if it has one. */
  readonly namespace: Namespace | undefined
  /** Of `tx`, for whoever starts next. */
  readonly partitions: { wanted: number }
  /** Those that are stopped now. */
  readonly frozen: Set<Process>
}

/** `undefined`: there is nothing to hurt, it is down already. */
type Harm = Effect.Effect<void, ChaosError> | undefined

const sessions: Readonly<Record<string, string>> = {
  locks: "application_name = 'millrace locks'",
  handlers: "application_name = 'chaos handlers'",
  own: "application_name = 'millrace' and query not ilike 'listen%'",
  listen: "query ilike 'listen%'",
  starts: "application_name = 'chaos starts'"
}

const signalled = (process: Process | undefined, signal: NodeJS.Signals): Harm =>
  process === undefined ? undefined : Effect.sync(() => process.signal(signal))

const frozen = ({ frozen }: World, process: Process | undefined, forMs: number): Harm =>
  process === undefined || frozen.has(process) ? undefined : Effect.gen(function*() {
    frozen.add(process)
    process.signal("SIGSTOP")
    yield* Effect.sleep(forMs)
  }).pipe(Effect.ensuring(Effect.sync(() => {
    frozen.delete(process)
    process.signal("SIGCONT")
  })))

const stalled = (lines: ReadonlyArray<Proxy>, forMs: number): Harm =>
  lines.some((line) => line.isStalled()) ? undefined : Effect.gen(function*() {
    for (const line of lines) line.setStalled(true)
    yield* Effect.sleep(forMs)
  }).pipe(Effect.ensuring(Effect.sync(() => {
    for (const line of lines) line.setStalled(false)
  })))

const unplugged = ({ setPlugged }: Namespace, forMs: number): Harm =>
  setPlugged(false).pipe(
    Effect.andThen(Effect.sleep(forMs)),
    Effect.ensuring(Effect.ignore(setPlugged(true)))
  )

const refused = ({ guest, runners }: World, forMs: number): Harm => {
  const lines = [...runners, guest].map(({ database }) => database)
  return Effect.gen(function*() {
    for (const line of lines) {
      line.setRefusing(true)
      line.cut()
    }
    yield* Effect.sleep(forMs)
  }).pipe(Effect.ensuring(Effect.sync(() => {
    for (const line of lines) line.setRefusing(false)
  })))
}

const joined = ({ guest: { slot } }: World, forMs: number): Harm =>
  slot.current() !== undefined ? undefined : Effect.gen(function*() {
    yield* slot.open
    yield* Effect.sleep(forMs)
  }).pipe(Effect.ensuring(Effect.andThen(slot.close, Effect.sync(() => slot.current()?.signal("SIGTERM")))))

/** How long to look for a backend with a statement in flight. */
const lookMs = 5_000

const backendKilled = ({ events, postgres }: World): Harm =>
  !postgres.isUp() ? undefined : Effect.gen(function*() {
    const until = performance.now() + lookMs
    while (performance.now() < until) {
      const [row] = yield* postgres.query(
        "select pid from pg_stat_activity where application_name = 'chaos handlers' and state = 'active' order by random() limit 1"
      )
      if (row !== undefined) {
        yield* Effect.try({
          try: () => globalThis.process.kill(Number(row[0]), "SIGKILL"),
          catch: (error) => new ChaosError({ message: messageOf(error) })
        })
        return events.note({ what: "session", is: "killed", by: "fault" })
      }
      yield* Effect.sleep("20 millis")
    }
  })

const harmOf = (world: World, { forMs, kind, mode, target }: Fault): Harm => {
  const { postgres, runners, submitters } = world
  const runner = runners[target]
  const process = runner?.slot.current()
  switch (kind) {
    case "kill":
      return signalled(process, "SIGKILL")
    case "term":
      return signalled(process, "SIGTERM")
    case "killSubmitter":
      return signalled(submitters[target]?.current(), "SIGKILL")
    case "freeze":
      return frozen(world, process, forMs)
    case "cut":
      return runner === undefined || process === undefined ? undefined : Effect.sync(runner.database.cut)
    case "stall":
      return runner === undefined || process === undefined ? undefined : stalled([runner.database], forMs)
    case "peerCut":
      return runner === undefined || process === undefined ? undefined : Effect.sync(() => {
        for (const line of runner.peers) line.cut()
      })
    case "peerStall":
      return runner === undefined || process === undefined ? undefined : stalled(runner.peers, forMs)
    case "unplug":
      return world.namespace === undefined ? undefined : unplugged(world.namespace, forMs)
    case "restart":
      return postgres.isUp() ? postgres.restart("fast") : undefined
    case "crash":
      return postgres.isUp() ? postgres.restart("immediate") : undefined
    case "backendKill":
      return backendKilled(world)
    case "refuse":
      return refused(world, forMs)
    case "terminate":
      return postgres.isUp()
        ? Effect.asVoid(
          postgres.query(`select pg_terminate_backend(pid) from pg_stat_activity where ${sessions[mode] ?? "false"}`)
        )
        : undefined
    case "clock":
      return process === undefined ? undefined : Effect.sync(() => process.tell({ setClock: Number(mode) }))
    case "join":
      return joined(world, forMs)
    case "repartition":
      world.partitions.wanted = Number(mode)
      return signalled(process, "SIGTERM")
  }
}

/** What was injected, and what there was nothing to hurt for. */
export type Counts = { readonly [Kind in KindName | "skipped"]?: number }

/** Injects a fault, says what was injected, and waits until it is over. */
export const inject = (
  world: World,
  fault: Fault,
  count: (injected: KindName | "skipped") => void
): Effect.Effect<void, ChaosError> =>
  Effect.suspend(() => {
    const { forMs, kind, mode, target } = fault
    const harm = harmOf(world, fault)
    count(harm === undefined ? "skipped" : kind)
    world.events.note(
      harm === undefined ? { what: "skipped", kind, target } : { what: "fault", kind, target, mode, forMs }
    )
    return harm ?? Effect.void
  })

/**
 * A place for a process that a supervisor keeps up, as systemd or Kubernetes would: whoever ends is followed by the next incarnation, a
 * moment later.
 */
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import type * as Scope from "effect/Scope"
import type { Events } from "./Events.ts"
import type { Process } from "./Process.ts"
import type { Dice } from "./Seed.ts"

export interface Slot {
  readonly number: number
  /** The one that is up, if any. */
  readonly current: () => Process | undefined
  /** Starts one, and the next ones after it. */
  readonly open: Effect.Effect<void>
  /** Nobody follows any more. Whoever is up stays up. */
  readonly close: Effect.Effect<void>
}

export interface Options {
  readonly what: "runner" | "submitter"
  readonly number: number
  readonly events: Events
  /** Decides how long a place stays empty. */
  readonly dice: Dice
  readonly start: (incarnation: number) => Effect.Effect<Process, never, Scope.Scope>
}

/** An empty place, kept until the scope closes. */
export const make = ({ dice, events, number, start, what }: Options): Effect.Effect<Slot, never, Scope.Scope> =>
  Effect.gen(function*() {
    const wanted = Latch.makeUnsafe(false)
    let current: Process | undefined
    let incarnation = 0
    yield* Effect.gen(function*() {
      yield* wanted.await
      const note = (is: "started" | "ready" | "killed" | "ended", of: number) =>
        Effect.sync(() => events.note({ what, number, incarnation: of, is }))
      const turn = Effect.gen(function*() {
        const own = incarnation++
        const process = yield* start(own)
        current = process
        yield* note("started", own)
        yield* Effect.forkScoped(Effect.ignore(Effect.andThen(process.ready, note("ready", own))))
        const { signal } = yield* process.ended
        yield* note(signal === "SIGKILL" ? "killed" : "ended", own)
        current = undefined
      })
      yield* Effect.scoped(turn)
      yield* Effect.sleep(dice.between(300, 2_000))
    }).pipe(Effect.forever, Effect.forkScoped)
    return { number, current: () => current, open: Effect.asVoid(wanted.open), close: Effect.asVoid(wanted.close) }
  })

/**
 * The PostgreSQL of a run: a process of its own that is restarted on the same folder and port, in order or as after a power cut.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { messageOf } from "../shared/messageOf.ts"
import * as Session from "../shared/session.ts"
import { ChaosError } from "./ChaosError.ts"
import type { Events } from "./Events.ts"
import { freePort } from "./port.ts"
import * as Process from "./Process.ts"

export interface Postgres {
  /** Straight to it. */
  readonly url: string
  readonly isUp: () => boolean
  /** Stops it and starts it again; returns when it takes sessions. */
  readonly restart: (how: "fast" | "immediate") => Effect.Effect<void, ChaosError>
  /** One statement on a session of its own, rows as arrays. */
  readonly query: (sql: string) => Effect.Effect<Session.Rows, ChaosError>
}

/** A session on a run's database, as long as the scope. */
export const connect = (url: string) =>
  Session.connect(url, (message) => new ChaosError({ message }), { applicationName: "chaos" })

const Said = Schema.Struct({ url: Schema.String })

/** Runs until the scope closes, its data in `folder`. */
export const start = (folder: string, events: Events) =>
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const { join } = yield* Path.Path
    const dataDir = join(folder, "postgres")
    const outer = yield* Effect.scope

    const port = yield* freePort
    const launch = Effect.gen(function*() {
      const scope = yield* Scope.fork(outer)
      const process = yield* Process.start({
        script: "server.ts",
        log: join(folder, "postgres.log"),
        env: { CHAOS_OPTIONS: JSON.stringify({ dataDir, port }) }
      }).pipe(Scope.provide(scope))
      const { url } = yield* Effect.flatMap(process.ready, Schema.decodeUnknownEffect(Said)).pipe(
        Effect.mapError((error) => new ChaosError({ message: messageOf(error) }))
      )
      events.note({ what: "database", is: "up" })
      return { process, url, scope }
    })

    let running = yield* launch
    let isUp = true
    const { url } = running
    // Registered after the process, hence before it is killed: in order, so that nothing of the server stays behind.
    yield* Effect.addFinalizer(() =>
      Effect.suspend(() => {
        running.process.signal("SIGTERM")
        return Effect.ignore(Effect.timeout(running.process.ended, "30 seconds"))
      })
    )

    /** The whole server at once, without a word to anybody: the next start recovers. */
    const quit = fs.readFileString(join(dataDir, "data", "postmaster.pid")).pipe(
      Effect.map((text) => globalThis.process.kill(Number.parseInt(text, 10), "SIGQUIT")),
      Effect.mapError((error) => new ChaosError({ message: messageOf(error) }))
    )

    const restart = (how: "fast" | "immediate") =>
      Effect.gen(function*() {
        isUp = false
        events.note({ what: "database", is: "down" })
        if (how === "immediate") yield* quit
        running.process.signal("SIGTERM")
        yield* running.process.ended
        yield* Scope.close(running.scope, Exit.void)
        running = yield* launch
        isUp = true
      }).pipe(Effect.uninterruptible)

    const query = (sql: string) => Effect.scoped(Effect.flatMap(connect(url), (session) => session.query(sql)))

    return { url, isUp: () => isUp, restart, query } satisfies Postgres
  })

/**
 * Holds PostgreSQL: started by Postgres.ts on the same folder and port again and again. SIGTERM is a fast shutdown.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
// Nothing else of it: the server is away until this is loaded.
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.ts"

/** What it is started with. */
export const ServerOptions = Schema.Struct({ dataDir: Schema.String, port: Schema.Int })

const program = ({ dataDir, port }: typeof ServerOptions.Type) =>
  Effect.gen(function*() {
    const { url } = yield* EmbeddedPostgres.make({
      dataDir,
      port,
      database: "chaos",
      serverOptions: { max_connections: "200" }
    })
    yield* Effect.sync(() => process.send?.({ url }))
    return yield* Effect.never
  }).pipe(Effect.scoped)

// Nobody survives the run that started it; the server ends with us.
process.on("disconnect", () => process.kill(process.pid, "SIGTERM"))
NodeRuntime.runMain(
  program(Schema.decodeUnknownSync(Schema.fromJsonString(ServerOptions))(process.env["CHAOS_OPTIONS"]))
)

/**
 * `npm run demo [folder]`: the command line, and which database.
 */
import { Argument, Command, Flag } from "effect/cli"
import * as Config from "effect/Config"
import * as Console from "effect/Console"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import { fileURLToPath } from "node:url"
import { EmbeddedPostgres, Postgres, Telemetry } from "../../src/index.ts"
import { atLeast, runCommand } from "../shared/commandLine.ts"
import { givenDatabase } from "../shared/givenDatabase.ts"
import * as Demo from "./demo.ts"
import * as Folder from "./folder.ts"

const ownSource = fileURLToPath(new URL("../../src", import.meta.url))

const saidWhere = Layer.effectDiscard(Effect.flatMap(
  EmbeddedPostgres.EmbeddedPostgres,
  ({ dataDir }) => Console.log(`Database: an embedded PostgreSQL, its data in ${dataDir}.`)
))

/** `DATABASE_URL` where it is set, or else a PostgreSQL of the demo's own. */
const database = Layer.unwrap(Effect.gen(function*() {
  if (Option.isSome(yield* givenDatabase)) {
    yield* Console.log("Database: DATABASE_URL, schemas \"millrace\" and \"demo\".")
    return Postgres.layer()
  }
  return Layer.provideMerge(saidWhere, EmbeddedPostgres.layer())
}))

/** npm starts scripts in the package's folder; a path means the one where the user stands. */
const fromWhereTheUserStands = Effect.fnUntraced(function*(folder: string) {
  const { resolve } = yield* Path.Path
  const standing = yield* Config.String("INIT_CWD").pipe(Config.withDefault("."))
  return resolve(standing, folder)
})

const command = Command.make(
  "demo",
  {
    folder: Argument.String("folder").pipe(
      Argument.withDescription("Folder to index"),
      Argument.withDefault(ownSource)
    ),
    delay: Flag.Int("delay").pipe(
      Flag.withDescription("Milliseconds that each file takes longer"),
      atLeast(0, "delay"),
      Flag.withDefault(0)
    ),
    slow: Flag.Boolean("slow").pipe(
      Flag.withDescription("A second a file: time to try kill -9"),
      Flag.withDefault(false)
    ),
    unsupported: Flag.String("unsupported").pipe(
      Flag.withDescription("The format that fails until the fix, such as .md (default: the rarest in the folder)"),
      Flag.optional
    )
  },
  Effect.fnUntraced(function*({ delay, folder, slow, unsupported }) {
    const listed = yield* Folder.list(yield* fromWhereTheUserStands(folder))
    yield* Demo.run({
      folder: listed,
      delay: Duration.millis(slow ? Math.max(delay, 1_000) : delay),
      unsupported: yield* Folder.unsupportedFormat(listed, unsupported)
    }).pipe(
      Effect.provide(Layer.provideMerge(database, Telemetry.layer({ resource: { serviceName: "millrace-demo" } }))),
      Effect.catchTags({
        PostgresError: ({ message }) => Effect.fail(new Folder.Unusable({ message })),
        EmbeddedPostgresError: ({ message }) => Effect.fail(new Folder.Unusable({ message })),
        MigrationError: ({ message }) => Effect.fail(new Folder.Unusable({ message })),
        TelemetryError: ({ message }) => Effect.fail(new Folder.Unusable({ message }))
      })
    )
  })
).pipe(
  Command.withDescription(
    "Indexes a folder with durable jobs. Kill it in the middle and start it again: nothing is lost, nothing is done twice."
  )
)

runCommand(command)

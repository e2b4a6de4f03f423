/**
 * `node scripts/bench/report.ts [results]`: the results of a run as a page's tables, between its markers, and as a picture.
 */
import { Argument, Command, Flag } from "effect/cli"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import { fileURLToPath } from "node:url"
import { runCommand } from "../shared/commandLine.ts"
import { BenchError } from "./BenchError.ts"
import { page } from "./report/page.ts"
import { picture } from "./report/picture.ts"
import * as Results from "./results.ts"

const path = (relative: string) => fileURLToPath(new URL(relative, import.meta.url))

const begin = "<!-- bench:begin -->"
const end = "<!-- bench:end -->"

/** The text with the results where its markers are. */
const placed = (file: string, text: string, results: string): Effect.Effect<string, BenchError> => {
  const from = text.indexOf(begin)
  const to = text.indexOf(end, from)
  return from === -1 || to === -1
    ? Effect.fail(new BenchError({ message: `${file} needs a place for the results: ${begin} ... ${end}` }))
    : Effect.succeed(`${text.slice(0, from)}${begin}\n\n${results}\n\n${text.slice(to)}`)
}

const command = Command.make("report", {
  results: Argument.String("results").pipe(
    Argument.withDescription("What the bench wrote"),
    Argument.withDefault("coverage/bench.jsonl")
  ),
  into: Flag.String("into").pipe(
    Flag.withDescription(`The page, with ${begin} and ${end} in it`),
    Flag.withDefault(path("../../README.md"))
  ),
  svg: Flag.String("svg").pipe(Flag.withDescription("The picture"), Flag.withDefault(path("results.svg")))
}, ({ into, results, svg }) =>
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const { dirname, relative } = yield* Path.Path
    const { rows, run } = yield* Results.read(results)
    if (run.against !== undefined) {
      return yield* new BenchError({
        message: `${results} compares two commits (--against). A report needs a run of "npm run bench" without it`
      })
    }
    const text = yield* placed(into, yield* fs.readFileString(into), page(run, rows, relative(dirname(into), svg)))
    yield* fs.writeFileString(svg, picture(run, rows))
    yield* fs.writeFileString(into, text)
    yield* Console.log(`wrote ${into} and ${svg}`)
  }).pipe(Effect.mapError((error) => new BenchError({ message: error.message })))).pipe(
    Command.withDescription("Writes the results of a bench run into a page, and draws them.")
  )

runCommand(command)

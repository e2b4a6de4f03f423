/**
 * Files that a script writes and that are committed. With `--check` they are compared instead, and the exit code is 1 where one differs.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { readFile, writeFile } from "node:fs/promises"
import { relative } from "node:path"
import { fileURLToPath } from "node:url"

const firstDifference = (left: ReadonlyArray<string>, right: ReadonlyArray<string>) => {
  const at = left.findIndex((line, index) => line !== right[index])
  return at === -1 ? left.length : at
}

const root = fileURLToPath(new URL("../..", import.meta.url))

/** Writes the file, or compares it. `by`: the command that writes it. */
export const written = Effect.fnUntraced(function*(file: string, text: string, by: string) {
  const old = yield* Effect.promise(() => readFile(file, "utf8").catch(() => ""))
  if (old === text) return
  const name = relative(root, file)
  if (!process.argv.includes("--check")) {
    yield* Effect.promise(() => writeFile(file, text))
    return yield* Console.log(`wrote ${name}`)
  }
  const [ours, theirs] = [text.split("\n"), old.split("\n")]
  const at = firstDifference(ours, theirs)
  yield* Console.error(
    `${name} is not what ${by} writes, first at line ${at + 1}:\n- ${theirs[at] ?? "(end)"}\n+ ${
      ours[at] ?? "(end)"
    }\nRun ${by} and commit the result.`
  )
  process.exitCode = 1
})

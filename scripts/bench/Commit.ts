/**
 * Another commit of this repository as a system: a worktree in a temporary folder, whose own worker.ts and adapter run in the worker
 * processes. The worktree is removed when the scope closes, also after a failure or an interruption. After a SIGKILL the folder
 * `millrace-against-*` stays until it is deleted; `git worktree prune` then forgets it.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import { fileURLToPath } from "node:url"
import { run } from "../shared/run.ts"
import { BenchError } from "./BenchError.ts"
import * as Registry from "./Registry.ts"

const root = fileURLToPath(new URL("../..", import.meta.url))

export interface Commit {
  readonly hash: string
  /** Names its system, in results and messages. */
  readonly name: string
}

const failed = (error: { readonly message: string }) => new BenchError({ message: `--against: ${error.message}` })

const git = (...args: ReadonlyArray<string>) => run("git", args, root)

/** The commit of a hash, a branch, a tag or an expression such as `HEAD~1`. */
export const resolve = Effect.fnUntraced(function*(revision: string) {
  const { output } = yield* git("rev-parse", "--verify", "--quiet", `${revision}^{commit}`)
  const [hash] = /^[0-9a-f]{40,64}$/m.exec(output) ?? []
  if (hash !== undefined) return { hash, name: `millrace@${hash.slice(0, 7)}` } satisfies Commit
  const reason = output.trim() === "" ? "" : ` (git: ${output.trim()})`
  return yield* new BenchError({
    message: `"${revision}" is not a commit of ${root}${reason}. In a shallow clone it may have to be fetched first`
  })
}, Effect.mapError(failed))

/** The packages of this checkout where both have the same lock file, or else its own. */
const install = Effect.fnUntraced(function*({ name }: Commit, folder: string) {
  const fs = yield* FileSystem.FileSystem
  const { join } = yield* Path.Path
  const lockOf = (checkout: string) => fs.readFileString(join(checkout, "package-lock.json"))
  yield* (yield* lockOf(folder)) === (yield* lockOf(root))
    ? fs.symlink(join(root, "node_modules"), join(folder, "node_modules"))
    : Registry.npmCi(name, folder)
})

const temporaryFolder = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  return yield* Effect.acquireRelease(
    fs.makeTempDirectory({ prefix: "millrace-against-" }),
    (folder) =>
      fs.remove(folder, { recursive: true, force: true }).pipe(
        Effect.andThen(git("worktree", "prune")),
        Effect.catch(({ message }) => Console.error(`The worktree in ${folder} was not removed: ${message}`))
      )
  )
})

/** Its Millrace. */
export const system = Effect.fnUntraced(function*(commit: Commit) {
  const fs = yield* FileSystem.FileSystem
  const { join } = yield* Path.Path
  const folder = join(yield* temporaryFolder, commit.name)
  const { code, output } = yield* git("worktree", "add", "--detach", folder, commit.hash)
  if (code !== 0) return yield* new BenchError({ message: `git worktree add failed:\n${output}` })
  const worker = join(folder, "scripts/bench/worker.ts")
  if (!(yield* fs.exists(worker))) {
    return yield* new BenchError({
      message: `${commit.name} has no scripts/bench/worker.ts to run. Name a later commit`
    })
  }
  yield* install(commit, folder)
  return {
    name: commit.name,
    adapter: join(folder, "scripts/bench/systems/millrace.ts"),
    worker
  } satisfies Registry.Entry
}, Effect.mapError(failed))

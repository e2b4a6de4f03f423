/**
 * Which files there are to index.
 */
import { CliError } from "effect/cli"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import * as Runtime from "effect/Runtime"
import * as Schema from "effect/Schema"

/** The demo cannot go on. Shown to its user as it is, without a stack; the exit code is 1. */
export class Unusable extends Schema.TaggedError<Unusable>()("Unusable", { message: Schema.String }) {
  override readonly [Runtime.errorReported] = false
  override get [CliError.userMessage]() {
    return this.message
  }
}

/** A folder, and the files below it. */
export interface Folder {
  readonly root: string
  /** Relative to `root`, sorted. */
  readonly files: ReadonlyArray<string>
}

/** A file's format is its extension. */
export const formatOf = (path: string): string => /[^/.]([.][^/.]+)$/.exec(path)?.[1]?.toLowerCase() ?? "extensionless"

/** The format with the fewest files; of several the first in the alphabet. */
export const rarestFormat = (files: ReadonlyArray<string>): string => {
  const counts = new Map<string, number>()
  for (const format of files.map(formatOf)) counts.set(format, (counts.get(format) ?? 0) + 1)
  const [rarest] = [...counts].toSorted(([a, some], [b, others]) => some - others || a.localeCompare(b, "en"))
  return rarest?.[0] ?? "extensionless"
}

/** The format that shall fail: one of the folder's, or else nothing would. */
export const unsupportedFormat = (
  { files, root }: Folder,
  asked: Option.Option<string>
): Effect.Effect<string, Unusable> => {
  const format = Option.getOrElse(asked, () => rarestFormat(files))
  const formats = [...new Set(files.map(formatOf))].toSorted((a, b) => a.localeCompare(b, "en"))
  return formats.includes(format)
    ? Effect.succeed(format)
    : Effect.fail(
      new Unusable({
        message: `--unsupported: no file of ${root} has the format "${format}". There are: ${formats.join(", ")}`
      })
    )
}

/** Every file below a folder, hidden ones and `node_modules` left out. A broken link counts: its job will say what is wrong with it. */
export const list = Effect.fnUntraced(function*(given: string) {
  const fs = yield* FileSystem.FileSystem
  const { join } = yield* Path.Path
  const unusable = (why: string) => new Unusable({ message: `${given} ${why}` })

  const root = yield* Effect.mapError(
    fs.realPath(given),
    ({ reason }) =>
      unusable(
        reason._tag === "NotFound" ? "does not exist: name a folder with files" : `cannot be opened: ${reason.message}`
      )
  )
  const { type } = yield* Effect.mapError(
    fs.stat(root),
    ({ reason }) => unusable(`cannot be opened: ${reason.message}`)
  )
  if (type !== "Directory") return yield* unusable("is not a folder: name the folder it lies in")

  const entries = yield* fs.glob("**/*", { root, exclude: ["**/node_modules"] }).pipe(
    Effect.mapError(({ reason }) => unusable(`cannot be read: ${reason.message}`))
  )
  const files = yield* Effect.filter(
    entries,
    (path) =>
      Effect.match(fs.stat(join(root, path)), { onSuccess: ({ type }) => type === "File", onFailure: () => true }),
    { concurrency: 16 }
  )
  if (files.length === 0) return yield* unusable("has no files to index (hidden ones and node_modules do not count)")
  return { root, files: files.toSorted() } satisfies Folder
})

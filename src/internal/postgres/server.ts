/**
 * One run of the embedded server: started, ready, stopped. The server outlives Ctrl-C (a session of its own: our finalizers decide
 * when it stops) but not us: a watcher holds the end of a pipe, and when the kernel closes ours, however we died, it sends the server
 * a fast shutdown.
 */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import { type ChildProcess, spawn } from "node:child_process"
import { type FileHandle, open, readFile, stat } from "node:fs/promises"
import { createServer } from "node:net"
import { platform } from "node:os"
import type { Binaries } from "./binaries.ts"
import { type DataFolder, readPassword, superuser } from "./dataFolder.ts"
import { type EmbeddedPostgresError, failure } from "./EmbeddedPostgresError.ts"
import * as OsProcess from "./process.ts"

/** `fast`: transactions are rolled back, everything is written out. `immediate`: as if the power went; recovery on the next start. */
export type StopMode = "fast" | "immediate"

export interface Server {
  readonly port: number
  /** Process number of the postmaster. */
  readonly pid: number
  /** Ends the server and waits until it is gone. Ending it twice is fine. */
  readonly stop: (mode: StopMode) => Effect.Effect<void>
}

export interface StartOptions {
  readonly port: number
  readonly isDurable: boolean
  readonly serverOptions: Readonly<Record<string, string>>
}

/** Runs in the data folder, as the account of the server. The watcher is an orphan: the postmaster must have no child of ours. */
const script = `
exec 3<&0 </dev/null
pid=$$
( (
  IFS= read -r _ <&3
  [ "$(head -n 1 postmaster.pid 2>/dev/null)" = "$pid" ] && kill -INT "$pid"
) >/dev/null 2>&1 & )
exec 3<&-
exec "$@"
`

const onWindows = platform() === "win32"

const signals = { fast: "SIGINT", immediate: "SIGQUIT" } as const

/** A port that nothing listens on now; the system's choice. */
export const freePort: Effect.Effect<number, EmbeddedPostgresError> = Effect.callback((resume) => {
  const server = createServer()
  server.once(
    "error",
    (cause) => resume(Effect.fail(failure("PortTaken", "This system has no free port on 127.0.0.1.", cause)))
  )
  server.listen(0, "127.0.0.1", () => {
    const address = server.address()
    const port = typeof address === "object" && address !== null ? address.port : 0
    server.close(() => resume(Effect.succeed(port)))
  })
})

const portTaken = (port: number, cause?: unknown) =>
  failure(
    "PortTaken",
    `Port ${port} on 127.0.0.1 is taken. Stop what listens there, give another port, or leave it out for a free one.`,
    cause
  )

/** Fails with `PortTaken`. */
export const checkPort = (port: number): Effect.Effect<void, EmbeddedPostgresError> =>
  Effect.callback((resume) => {
    const server = createServer()
    server.once("error", (cause) => resume(Effect.fail(portTaken(port, cause))))
    server.listen(port, "127.0.0.1", () => server.close(() => resume(Effect.void)))
  })

const settings = (options: StartOptions): ReadonlyArray<string> => {
  const all: Record<string, string> = {
    listen_addresses: "127.0.0.1",
    unix_socket_directories: "",
    logging_collector: "off",
    lc_messages: "C",
    // Commits still reach the kernel before they are answered: a killed server loses none of them, a power failure may.
    ...(!options.isDurable && { fsync: "off", full_page_writes: "off" }),
    ...options.serverOptions
  }
  return Object.entries(all).flatMap(([name, value]) => ["-c", `${name}=${value}`])
}

const largestLog = 1_000_000

/** The log continues where the last run left it, unless it has grown long. */
const openLog = (
  path: string
): Effect.Effect<{ readonly file: FileHandle; readonly from: number }, EmbeddedPostgresError> =>
  Effect.tryPromise({
    try: () =>
      stat(path).then(({ size }) => size < largestLog ? size : 0, () => 0).then((from) =>
        open(path, from === 0 ? "w" : "a").then((file) => ({ file, from }))
      ),
    catch: (cause) => failure("FolderUnwritable", `The log ${path} cannot be written.`, cause)
  })

/** What this run has logged. */
const readLog = (path: string, from: number): Effect.Effect<string> =>
  Effect.orElseSucceed(
    Effect.tryPromise(() => readFile(path).then((bytes) => bytes.subarray(from).toString())),
    () => ""
  )

const lastLines = (log: string): string => log.trim().split("\n").slice(-15).join("\n")

/** Why a server that ended before it was ready did so. */
const startFailure = (folder: DataFolder, port: number, log: string): EmbeddedPostgresError => {
  if (/could not bind .*: (?:Address already in use|Only one usage)/.test(log)) return portTaken(port)
  if (/lock file "postmaster\.pid" already exists|pre-existing shared memory block/.test(log)) {
    return failure("FolderInUse", `Another server runs in ${folder.root}:\n${lastLines(log)}`)
  }
  return failure(
    "StartFailed",
    `The embedded PostgreSQL did not start. Its last words (${folder.log}):\n${lastLines(log)}`
  )
}

const launch = (binaries: Binaries, folder: DataFolder, options: StartOptions, log: number): ChildProcess => {
  const args = ["-D", folder.data, "-p", String(options.port), ...settings(options)]
  return onWindows
    ? spawn(binaries.postgres, args, { detached: true, stdio: ["pipe", log, log], windowsHide: true })
    : spawn("/bin/sh", ["-c", script, "postgres", binaries.postgres, ...args], {
      ...OsProcess.asAccount(folder.account),
      env: OsProcess.environment,
      cwd: folder.data,
      detached: true,
      stdio: ["pipe", log, log]
    })
}

/** Connects, as often as it takes: the server is ready when it lets a session in. */
const untilReady = (port: number, password: string): Effect.Effect<void> =>
  Effect.scoped(PgConnection.make({
    host: "127.0.0.1",
    port,
    username: superuser,
    password: Redacted.make(password),
    database: "postgres",
    connectTimeout: "2 seconds"
  })).pipe(Effect.asVoid, Effect.retry(Schedule.spaced("10 millis")), Effect.orDie)

/** The process of the server, and when it has exited. */
const spawned = (binaries: Binaries, folder: DataFolder, options: StartOptions, log: FileHandle) => {
  const child = launch(binaries, folder, options, log.fd)
  const exited = Deferred.makeUnsafe<void>()
  child.once("exit", () => {
    // Lets the watcher go.
    child.stdin?.destroy()
    Deferred.doneUnsafe(exited, Effect.void)
  })
  // The watcher's pipe may break when the server ends first.
  child.stdin?.on("error", () => {})
  return Effect.callback<
    { readonly child: ChildProcess; readonly exited: Deferred.Deferred<void> },
    EmbeddedPostgresError
  >(
    (resume) => {
      child.once(
        "error",
        (cause) => resume(Effect.fail(failure("StartFailed", `PostgreSQL cannot be run: ${cause.message}`, cause)))
      )
      child.once("spawn", () => resume(Effect.succeed({ child, exited })))
    }
  ).pipe(Effect.ensuring(Effect.promise(() => log.close())))
}

/**
 * Starts the server and waits until it lets sessions in; crash recovery may take its time. The caller stops it.
 *
 * Fails with `PortTaken`, `FolderInUse`, `FolderUnwritable` or `StartFailed`, and then nothing runs. Interruption stops
 * what was started.
 */
export const start = (
  binaries: Binaries,
  folder: DataFolder,
  options: StartOptions
): Effect.Effect<Server, EmbeddedPostgresError> =>
  Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    const password = yield* readPassword(folder)
    const log = yield* openLog(folder.log)
    const { child, exited } = yield* spawned(binaries, folder, options, log.file)

    const ask = (mode: StopMode): Effect.Effect<void> =>
      onWindows
        ? Effect.ignore(OsProcess.run(binaries.pgCtl, ["stop", "-D", folder.data, "-m", mode, "--no-wait"], {}))
        : Effect.sync(() => child.kill(signals[mode]))
    const hasExited = (patience: Duration.Input) =>
      Effect.map(Effect.timeoutOption(Deferred.await(exited), patience), Option.isSome)
    const stop = Effect.fnUntraced(function*(mode: StopMode) {
      if (yield* Deferred.isDone(exited)) return
      yield* ask(mode)
      if (yield* hasExited("20 seconds")) return
      yield* ask("immediate")
      if (yield* hasExited("5 seconds")) return
      child.kill("SIGKILL")
      yield* Deferred.await(exited)
    })

    const died = Effect.andThen(
      Deferred.await(exited),
      Effect.flatMap(readLog(folder.log, log.from), (text) => Effect.fail(startFailure(folder, options.port, text)))
    )
    yield* restore(Effect.raceFirst(untilReady(options.port, password), died)).pipe(
      Effect.onError(() => stop("immediate"))
    )
    return { port: options.port, pid: child.pid ?? -1, stop }
  }))

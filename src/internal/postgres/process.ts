/**
 * Processes of this machine: which are alive, and running one to its end.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import { spawn, type SpawnOptions } from "node:child_process"
import { readFile, readlink } from "node:fs/promises"
// Numbers and signals of processes have no other door; nothing else of it is used.
import { getuid, kill, pid as ownPid, platform } from "node:process"

/** The account that a child process runs under, where it is not our own. */
export interface Account {
  readonly name: string
  readonly uid: number
  readonly gid: number
}

/** The name that identifies a process for as long as the machine is up: numbers alone are used again. */
export interface Identity {
  readonly pid: number
  /** When it started, in the kernel's ticks; empty where the system does not tell. */
  readonly startedAt: string
}

const codeOf = (cause: unknown): string => Predicate.hasProperty(cause, "code") ? String(cause.code) : ""

/** Whether a process with this number exists. */
const exists = (pid: number): Effect.Effect<boolean> =>
  Effect.match(Effect.try({ try: () => kill(pid, 0), catch: codeOf }), {
    onFailure: (code) => code === "EPERM",
    onSuccess: () => true
  })

/** State and start time out of `/proc`; none where there is no such file. */
const stat = (pid: number): Effect.Effect<Option.Option<{ readonly state: string; readonly startedAt: string }>> =>
  Effect.tryPromise(() => readFile(`/proc/${pid}/stat`, "utf8")).pipe(
    Effect.map((text) => {
      // The name of the program, in parentheses, may hold anything; what follows is fields 3 and up.
      const fields = text.slice(text.lastIndexOf(")") + 2).split(" ")
      return { state: fields[0] ?? "", startedAt: fields[19] ?? "" }
    }),
    Effect.option
  )

/** Whether we are root, which PostgreSQL refuses to be. */
export const isRoot = Effect.sync(() => getuid?.() === 0)

/** This process. */
export const self: Effect.Effect<Identity> = Effect.map(stat(ownPid), (found) => ({
  pid: ownPid,
  startedAt: Option.match(found, { onNone: () => "", onSome: ({ startedAt }) => startedAt })
}))

/** Whether the very process is still alive. One that is dead but not yet reaped by its parent is not. */
export const isAlive = Effect.fnUntraced(function*({ pid, startedAt }: Identity) {
  if (!(yield* exists(pid))) return false
  const found = yield* stat(pid)
  if (Option.isNone(found)) return true
  if (found.value.state === "Z" || found.value.state === "X") return false
  return startedAt === "" || found.value.startedAt === startedAt
})

/** Whether the process works in `folder`; `undefined` where the system does not tell. */
export const worksIn = (pid: number, folder: string): Effect.Effect<boolean | undefined> =>
  Effect.tryPromise(() => readlink(`/proc/${pid}/cwd`)).pipe(
    Effect.match({ onFailure: () => undefined, onSuccess: (cwd) => cwd === folder })
  )

/** Sends a signal. A process that is gone is none. */
export const signal = (pid: number, name: "SIGINT" | "SIGQUIT" | "SIGKILL" | "SIGTERM"): Effect.Effect<void> =>
  Effect.ignore(Effect.try({ try: () => kill(pid, name), catch: codeOf }))

export const asAccount = (account: Account | undefined): SpawnOptions =>
  account === undefined ? {} : { uid: account.uid, gid: account.gid }

/** A clean environment: PostgreSQL reads PGDATA, PGPORT and others, and its messages are read back. */
export const environment: SpawnOptions["env"] = platform === "win32"
  ? undefined
  : { LC_ALL: "C", PATH: "/usr/local/bin:/usr/bin:/bin" }

/** Runs a program to its end: its exit code (-1 for a signal) and all it wrote. Interruption kills it. Fails if it cannot be started. */
export const run = (
  program: string,
  args: ReadonlyArray<string>,
  options: SpawnOptions
): Effect.Effect<{ readonly code: number; readonly output: string }, unknown> =>
  Effect.callback((resume) => {
    const child = spawn(program, args, {
      ...options,
      stdio: ["ignore", "pipe", "pipe"],
      env: environment,
      windowsHide: true
    })
    let output = ""
    const collect = (chunk: Uint8Array) => {
      output += chunk.toString()
    }
    child.stdout?.on("data", collect)
    child.stderr?.on("data", collect)
    child.once("error", (cause) => resume(Effect.fail(cause)))
    child.once("close", (code) => resume(Effect.succeed({ code: code ?? -1, output })))
    return Effect.sync(() => child.kill("SIGKILL"))
  })

/**
 * The built package, made when it is missing or older than the source.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { glob, stat } from "node:fs/promises"
import { fileURLToPath } from "node:url"
import { messageOf } from "../../shared/messageOf.ts"
import { BenchError } from "../BenchError.ts"

const root = fileURLToPath(new URL("../../..", import.meta.url))

const changedAt = (file: string) => stat(`${root}/${file}`).then(({ mtimeMs }) => mtimeMs, () => 0)

const isBuilt = async () => {
  const builtAt = await changedAt("dist/index.js")
  for await (const file of glob("src/**/*.ts", { cwd: root })) if (await changedAt(file) > builtAt) return false
  return builtAt > 0
}

/** What it prints goes to stderr. */
const npmRunBuild = async () => {
  const child = spawn("npm", ["run", "build"], { cwd: root, stdio: ["ignore", 2, 2] })
  const [code] = await once(child, "exit")
  if (code !== 0) throw new Error(`npm run build ended with exit code ${code}`)
}

const failed = (cause: unknown) => new BenchError({ message: messageOf(cause) })

export const ensureBuilt = Effect.gen(function*() {
  if (yield* Effect.tryPromise({ try: isBuilt, catch: failed })) return
  yield* Console.error("Building the package: npm run build")
  yield* Effect.tryPromise({ try: npmRunBuild, catch: failed })
})

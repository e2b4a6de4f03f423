/**
 * Millrace as it is installed: the built package, driven by a worker without type annotations. Reading TypeScript costs a process about
 * 50 MB, which is nothing of Millrace's.
 */
import * as Effect from "effect/Effect"
import { mkdir, readFile, writeFile } from "node:fs/promises"
import { stripTypeScriptTypes } from "node:module"
import { dirname } from "node:path"
import { fileURLToPath } from "node:url"
import { messageOf } from "../shared/messageOf.ts"
import { BenchError } from "./BenchError.ts"
import * as Registry from "./Registry.ts"
import { ensureBuilt } from "./startup/build.ts"

/** As deep as this folder, so that relative paths stay right. */
const path = (name: string) => fileURLToPath(new URL(`../../coverage/bench/${name}`, import.meta.url))

const plain = async (name: string): Promise<string> => {
  const source = await readFile(new URL(`${name}.ts`, import.meta.url), "utf8")
  const target = path(`${name}.mjs`)
  await mkdir(dirname(target), { recursive: true })
  await writeFile(target, stripTypeScriptTypes(source).replace("/src/index.ts", "/dist/index.js"))
  return target
}

/** Millrace's entry on the built package. */
export const millrace = Effect.gen(function*() {
  yield* ensureBuilt
  return yield* Effect.tryPromise({
    try: async () => ({
      ...Registry.millrace,
      worker: await plain("worker"),
      adapter: await plain("systems/millrace")
    }),
    catch: (cause) => new BenchError({ message: messageOf(cause) })
  })
})

/**
 * The server of the whole test run: the one of DATABASE_URL, or an embedded one that is gone afterwards.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import type { TestProject } from "vitest/node"
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.ts"

declare module "vitest" {
  export interface ProvidedContext {
    /** A database of the server that tests make theirs on. */
    readonly serverUrl: string
  }
}

export default async function setup(project: TestProject): Promise<(() => Promise<void>) | undefined> {
  const given = process.env["DATABASE_URL"]
  if (given !== undefined && given !== "") {
    project.provide("serverUrl", given)
    return undefined
  }
  const scope = Effect.runSync(Scope.make())
  const server = await Effect.runPromise(
    EmbeddedPostgres.make({ isTemporary: true, durable: false, serverOptions: { max_connections: "300" } }).pipe(
      Scope.provide(scope)
    )
  )
  project.provide("serverUrl", server.url)
  return () => Effect.runPromise(Scope.close(scope, Exit.void))
}

/**
 * Programs of this process, several of them on one database: each is a runtime of its own that can be stopped, as if it were a process.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Jobs from "../../src/Jobs.ts"

/** Starts one. It is stopped when the scope closes, or before. */
export const startProgram = Effect.fnUntraced(function*<A, E, R>(runtime: Layer.Layer<A | Jobs.Jobs, E, R>) {
  const scope = yield* Scope.fork(yield* Effect.scope)
  const context = yield* Layer.buildWithScope(Layer.fresh(runtime), scope)
  return { context, jobs: Context.get(context, Jobs.Jobs), stop: Scope.close(scope, Exit.void) }
})

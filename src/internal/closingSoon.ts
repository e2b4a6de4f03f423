/**
 * A layer whose end is not waited for beyond a time: it goes on by itself then. For what a database that does not answer, or a handler that
 * does not end, would hold up for ever.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { atMost } from "./time/liveClock.ts"

/** The same services, closed within `millis` as far as its dependents and dependencies see. */
export const closingSoon = <A, E, R>(millis: number, layer: Layer.Layer<A, E, R>): Layer.Layer<A, E, R> =>
  Layer.effectContext(Effect.gen(function*() {
    const scope = yield* Scope.make()
    yield* Effect.addFinalizer((exit) => atMost(millis, Scope.close(scope, exit)))
    return yield* Layer.buildWithScope(layer, scope)
  }))

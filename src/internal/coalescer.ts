/**
 * Batches for fibers: each sends one item with whatever travels at the same time, and waits for its own answer.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Batches from "./batches.ts"

/** Sends one item with whatever travels at the same time, and waits for its own answer. */
export type Coalescer<A, B, E> = (item: A) => Effect.Effect<B, E>

/** Waits for the answer to what is pushed. A caller that is interrupted stops waiting; its item is sent all the same. */
export const waiting = <A, B, E>(push: Batches.Push<A, B, E>): Coalescer<A, B, E> => (item) =>
  Effect.suspend(() => {
    const answer = Deferred.makeUnsafe<B, E>()
    push(item, (exit) => Deferred.doneUnsafe(answer, exit))
    return Deferred.await(answer)
  })

/** See {@link Batches.make}. */
export const make = <A, B, E>(
  options: Parameters<typeof Batches.make<A, B, E>>[0]
): Effect.Effect<Coalescer<A, B, E>, never, Scope.Scope> => Effect.map(Batches.make(options), waiting)

/**
 * A bus that only writes down what it is told: what another implementation of the port gets to hear, and a bus whose events never arrive.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { EventBus } from "../../src/EventBus.ts"
import type * as JobEvent from "../../src/JobEvent.ts"

/** Everything published, in order. */
export class Recorded
  extends Context.Service<Recorded, { readonly events: ReadonlyArray<JobEvent.JobEvent> }>()("millrace/test/Recorded")
{}

/** The bus, and what it recorded. Give the same value to the runtime and to the test. */
export const layerRecordingBus: Layer.Layer<EventBus | Recorded> = Layer.effectContext(Effect.sync(() => {
  const events: Array<JobEvent.JobEvent> = []
  return Context.make(Recorded, { events }).pipe(Context.add(
    EventBus,
    EventBus.of({
      publish: (event) => Effect.sync(() => void events.push(event)),
      stream: () => Stream.never,
      subscribe: () => Effect.succeed(Stream.never)
    })
  ))
}))

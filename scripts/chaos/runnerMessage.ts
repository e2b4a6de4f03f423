/**
 * What a runner reports to the run, once it is ready.
 */
import * as Schema from "effect/Schema"

/** It did nothing for so many milliseconds. */
const Stood = Schema.Struct({ stood: Schema.Finite })

/** One of its jobs ends its own session: has killed the backend, terminates it, or asks the run to cut the connection from this port. */
const Ended = Schema.Struct({
  session: Schema.Literals(["killed", "terminated", "cut"]),
  job: Schema.String,
  port: Schema.optionalKey(Schema.Int)
})

export const RunnerMessage = Schema.Union([Stood, Ended])
export type RunnerMessage = typeof RunnerMessage.Type

/** From inside the runner. */
export const send = (message: RunnerMessage): void => void process.send?.(message)

/**
 * What stops a measurement, or the whole run: a message that says what to do.
 */
import * as Schema from "effect/Schema"

export class BenchError extends Schema.TaggedError<BenchError>()("BenchError", { message: Schema.String }) {}

/** Any failure's words. */
export const messageOf = (cause: unknown): string => cause instanceof Error ? cause.message : String(cause)

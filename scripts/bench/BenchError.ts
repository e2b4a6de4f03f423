/**
 * What stops a measurement, or the whole run: a message that says what to do.
 */
import { CliError } from "effect/cli"
import * as Runtime from "effect/Runtime"
import * as Schema from "effect/Schema"

/** Shown as it is, without a stack; the exit code is 1. */
export class BenchError extends Schema.TaggedError<BenchError>()("BenchError", { message: Schema.String }) {
  override readonly [Runtime.errorReported] = false
  override get [CliError.userMessage]() {
    return this.message
  }
}

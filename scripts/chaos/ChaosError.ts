/**
 * What keeps a run from being one: a message that says what to do. A breach is no error of the run, it is its result.
 */
import { CliError } from "effect/cli"
import * as Runtime from "effect/Runtime"
import * as Schema from "effect/Schema"

/** Shown as it is, without a stack. The exit code is 2: 1 is for a promise that was not kept. */
export class ChaosError extends Schema.TaggedError<ChaosError>()("ChaosError", { message: Schema.String }) {
  override readonly [Runtime.errorReported] = false
  override readonly [Runtime.errorExitCode] = 2
  override get [CliError.userMessage]() {
    return this.message
  }
}

/**
 * Telling somebody, where more depends on what comes next: a logger of the user's that throws keeps nobody from going on.
 */
import * as Effect from "effect/Effect"

/** A log line that cannot fail. */
export const told = (line: Effect.Effect<void>): Effect.Effect<void> => Effect.catchDefect(line, () => Effect.void)

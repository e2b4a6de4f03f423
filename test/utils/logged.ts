/**
 * What a runtime logs, as an operator would read it.
 */
import * as Logger from "effect/Logger"
import type * as LogLevel from "effect/LogLevel"
import * as References from "effect/References"

/** One line. */
export interface Logged {
  readonly level: LogLevel.LogLevel
  readonly text: string
  /** It shows an error, or a cause: mostly with a stack. */
  readonly hasStack: boolean
  readonly annotations: Readonly<Record<string, unknown>>
}

/** A log that keeps what it is told, in place of all others. */
export const recordLog = () => {
  const lines: Array<Logged> = []
  const logger = Logger.make<unknown, void>(({ cause, fiber, logLevel, message }) => {
    const parts: ReadonlyArray<unknown> = Array.isArray(message) ? message : [message]
    lines.push({
      level: logLevel,
      text: parts.filter((part) => typeof part === "string").join(" "),
      hasStack: cause.reasons.length > 0 || parts.some((part) => typeof part === "object"),
      annotations: fiber.getRef(References.CurrentLogAnnotations)
    })
  })
  return {
    lines,
    layer: Logger.layer([logger]),
    /** Those that have these words. */
    of: (words: string | RegExp): ReadonlyArray<string> =>
      lines.map(({ text }) => text).filter((text) =>
        typeof words === "string" ? text.includes(words) : words.test(text)
      )
  }
}

/** A log that fails at every line. */
export const brokenLog = Logger.layer([Logger.make<unknown, void>(() => {
  throw new Error("the logger is broken")
})])

/**
 * What is logged, for tests that read it.
 */
import type * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"

/** One line, and how much it matters. */
export interface Line {
  readonly level: string
  readonly message: string
}

/** Keeps every line that is logged under `layer`, in their order. */
export const makeLines = (): { readonly lines: Array<Line>; readonly layer: Layer.Layer<never> } => {
  const lines: Array<Line> = []
  const keep = Logger.make(({ logLevel, message }) => {
    lines.push({ level: logLevel, message: Array.isArray(message) ? message.join(" ") : String(message) })
  })
  return { lines, layer: Logger.layer([keep]) }
}

/**
 * How long something took, as people read it.
 */
import * as Duration from "effect/Duration"

/** From a second on in whole seconds, below that in tenths; what is shorter is only said to be. */
export const inWords = (millis: number): string => {
  if (millis < 100) return "less than 100ms"
  const unit = millis < 1_000 ? 100 : 1_000
  return Duration.format(Duration.millis(Math.round(millis / unit) * unit))
}

/**
 * How long something took, as people read it.
 */
import * as Duration from "effect/Duration"

/** From a second on in whole seconds, below that in tenths. */
export const inWords = (millis: number): string => {
  const unit = millis < 1_000 ? 100 : 1_000
  return Duration.format(Duration.millis(Math.max(Math.round(millis / unit) * unit, 100)))
}

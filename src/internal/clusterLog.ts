/**
 * What Effect's cluster logs: lines that only repeat what this process tells in its own words become Debug, all others stay as they are.
 *
 * It goes by their words, and by causes that are known. Should Effect choose other words, they show again: too much is better than too little.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Predicate from "effect/Predicate"
import * as References from "effect/References"
import { Outage } from "./outage.ts"
import { unanswered } from "./sql/unanswered.ts"
import type { Standstill } from "./time/standstill.ts"
import { holds } from "./words/safely.ts"

/** What a connection says that another runner has left, or that has outlasted a standstill: the runners see to it themselves. */
const gone = /^(?:ECONNRESET|EPIPE|ETIMEDOUT|ECONNABORTED|EHOSTUNREACH|ENETUNREACH|ERR_STREAM_\w+)$/

const isGone = (error: unknown, depth = 10): boolean =>
  Predicate.isTagged(error, "SocketCloseError") ||
  Predicate.hasProperty(error, "code") && typeof error.code === "string" && gone.test(error.code) ||
  depth > 0 && (
      Predicate.hasProperty(error, "cause") && isGone(error.cause, depth - 1) ||
      Predicate.isTagged(error, "SocketError") && Predicate.hasProperty(error, "reason") &&
        isGone(error.reason, depth - 1)
    )

const unhealthy = "Shard lock storage is unhealthy"
const recovered = "Shard lock storage has recovered"
const pending = "Forced shard release is still pending"
/** Lines with the cause of a trouble that whoever uses the locks tells of (supervisor.ts). */
const ofLocks = new Set([
  unhealthy,
  "Shard lock storage is still unhealthy",
  "Could not release shards, retrying",
  "Could not acquire/release shards"
])

type Line = Logger.Options<unknown>

const textOf = ({ message }: Line): string => {
  const first: unknown = Array.isArray(message) ? message[0] : message
  return typeof first === "string" ? first : ""
}

/** Whether a line repeats what is told: `isTold` says that something is. */
export const makeIsRepeated = (isTold: () => boolean): (line: Line) => boolean => {
  let wasShown = false
  return (line) => {
    const text = textOf(line)
    const errors = line.cause.reasons.map((reason) =>
      "error" in reason ? reason.error : "defect" in reason ? reason.defect : undefined
    )
    if (text.startsWith("Unhandled error in SocketServer")) {
      return errors.length > 0 && errors.every((error) => holds(() => isGone(error)))
    }
    if (text === recovered) return !wasShown
    if (text.startsWith(pending)) return isTold()
    if (!ofLocks.has(text)) return false
    const isRepeated = isTold() && errors.every((error) => unanswered(error) !== undefined)
    if (text === unhealthy) wasShown = !isRepeated
    return isRepeated
  }
}

/** For the layers of the cluster. */
export const layer = (standstill: Standstill): Layer.Layer<never> =>
  Layer.effect(
    Logger.CurrentLoggers,
    Effect.gen(function*() {
      const loggers = yield* Logger.CurrentLoggers
      const outage = yield* Outage
      const isRepeated = makeIsRepeated(() => outage.isTold() || standstill.isRecent())
      const logger = Logger.make((line: Line) => {
        if (!isRepeated(line)) return loggers.forEach((logger) => void logger.log(line))
        if (LogLevel.isGreaterThan(line.fiber.getRef(References.MinimumLogLevel), "Debug")) return
        loggers.forEach((logger) => void logger.log({ ...line, logLevel: "Debug" }))
      })
      return new Set([logger])
    })
  )

/**
 * Why the database did not do what it was asked, in words, where that is no fault of the program's: it is away, starts, stops, or has no room.
 */
import * as Cause from "effect/Cause"
import * as Predicate from "effect/Predicate"
import { isSqlError } from "effect/sql/SqlError"
import { StoreError } from "../../JobStore.ts"
import { holds, read } from "../words/safely.ts"
import { messageOf, toStoreError } from "./database.ts"

/** How deep an error may be wrapped. */
const depths = 10

/** What an error says. One that stands for several (a name with two addresses) says nothing, and has a code. */
const wordsOf = (cause: unknown): string => {
  const message = cause instanceof Error ? cause.message : String(cause)
  if (message !== "") return message
  return Predicate.hasProperty(cause, "code") && typeof cause.code === "string" ? cause.code : "it says nothing more"
}

/** All that Effect's cluster leaves of an interruption that it passes on as an error. */
const interrupted = String(Cause.squash(Cause.interrupt()))

const isInterrupted = (error: unknown, depth: number): boolean =>
  Cause.isCause(error)
    ? Cause.hasInterruptsOnly(error) || isInterrupted(Cause.squash(error), depth)
    : error instanceof Error && String(error) === interrupted ||
      depth > 0 && Predicate.hasProperty(error, "cause") && isInterrupted(error.cause, depth - 1)

/** Whether somebody else's giving up ended it. What became of the question is known to them. */
export const isInterruption = (error: unknown, depth = depths): boolean => holds(() => isInterrupted(error, depth))

const reasonsOf = (error: unknown, depth: number): string | undefined => {
  if (error instanceof StoreError) return error.reason === "Refused" ? undefined : wordsOf(error.cause)
  if (isSqlError(error)) {
    return toStoreError("")(error).reason === "Refused" ? undefined : messageOf(error) || wordsOf(error.reason.cause)
  }
  if (Cause.isTimeoutError(error)) return "no answer in time"
  if (isInterruption(error, 0)) return "the question was given up"
  if (Cause.isCause(error)) return reasonsOf(Cause.squash(error), depth)
  return depth > 0 && Predicate.hasProperty(error, "cause") ? reasonsOf(error.cause, depth - 1) : undefined
}

/** The reason, wherever it is in an error or cause. `undefined`: something else is wrong, and somebody should look at all of it. */
export const unanswered = (error: unknown): string | undefined => read(() => reasonsOf(error, depths))

/**
 * When a failed attempt is tried again. A policy is data; {@link decide} is pure and the only place of the project that decides.
 */
import type * as Duration from "effect/Duration"
import { dual } from "effect/Function"
import * as Predicate from "effect/Predicate"
import { check, checkFields, durationLike, millisOf } from "./internal/words/options.ts"
import { ErrorClass } from "./JobError.ts"

/** What a custom policy is told. `attempt` counts from 1 and is the one that has just failed. */
export interface Failure {
  readonly attempt: number
  readonly class: ErrorClass
  readonly error: unknown
}

type Delays =
  | { readonly _tag: "None" }
  | {
    readonly _tag: "Exponential"
    readonly baseMs: number
    readonly factor: number
    readonly capMs: number
    readonly jitter: number
  }
  | { readonly _tag: "Explicit"; readonly delaysMs: ReadonlyArray<number> }
  | { readonly _tag: "Custom"; readonly next: (failure: Failure) => Duration.Input | undefined }

/** When and how often to try again. */
export interface RetryPolicy {
  /** Attempts in all, the first one included. */
  readonly maxAttempts: number
  readonly delays: Delays
  /** Policies of their own for some classes; `maxAttempts` of that policy then counts. */
  readonly classes: { readonly [Class in ErrorClass]?: RetryPolicy }
}

const isAttempts = (value: unknown): value is number =>
  typeof value === "number" && Number.isInteger(value) && value >= 1 && value <= 32_000

const make = (where: string, maxAttempts: number, delays: Delays): RetryPolicy => {
  check(isAttempts(maxAttempts), where, "maxAttempts", "an integer from 1 to 32000", maxAttempts)
  return { maxAttempts, delays, classes: {} }
}

/** Of an option: a pause without an end is as long as a due time can be. */
const pauseOf = (where: string, field: string, input: Duration.Input): number => {
  const millis = millisOf(input)
  check(millis >= 0, where, field, `a duration that is not negative, ${durationLike}`, input)
  return millis
}

/** What a policy of the user's names. One below zero is none. */
const namedBy = (next: Duration.Input): number => {
  const millis = millisOf(next)
  check(
    !Number.isNaN(millis),
    "RetryPolicy.custom",
    "next",
    `it to return undefined or a duration, ${durationLike}`,
    next
  )
  return millis
}

/** Whether this is what the functions below make. */
export const isRetryPolicy = (value: unknown): value is RetryPolicy =>
  Predicate.hasProperty(value, "maxAttempts") && isAttempts(value.maxAttempts) &&
  Predicate.hasProperty(value, "delays") && Predicate.hasProperty(value.delays, "_tag") &&
  Predicate.hasProperty(value, "classes")

/** What is expected where a policy is. */
export const expected = "a policy of RetryPolicy, such as RetryPolicy.exponential()"

/** One attempt, whatever happens. */
export const none: RetryPolicy = { maxAttempts: 1, delays: { _tag: "None" }, classes: {} }

/**
 * `base * factor^n`, at most `cap`, each delay spread by `jitter` to both sides (0.2: between 80 % and 120 %), so that jobs which failed
 * together do not come back together. Defaults: 5 attempts, 1 s, x 2, 60 s, 0.2.
 */
export const exponential = (options: {
  readonly maxAttempts?: number
  readonly base?: Duration.Input
  readonly factor?: number
  readonly cap?: Duration.Input
  readonly jitter?: number
} = {}): RetryPolicy => {
  const where = "RetryPolicy.exponential"
  checkFields(where, options, ["maxAttempts", "base", "factor", "cap", "jitter"])
  const { base = "1 second", cap = "60 seconds", factor = 2, jitter = 0.2, maxAttempts = 5 } = options
  check(Number.isFinite(factor) && factor > 0, where, "factor", "a finite number above 0", factor)
  check(typeof jitter === "number" && jitter >= 0 && jitter <= 1, where, "jitter", "a number from 0 to 1", jitter)
  return make(where, maxAttempts, {
    _tag: "Exponential",
    baseMs: pauseOf(where, "base", base),
    factor,
    capMs: pauseOf(where, "cap", cap),
    jitter
  })
}

/** The same delay each time. */
export const fixed = (delay: Duration.Input, options: { readonly maxAttempts: number }): RetryPolicy => {
  const where = "RetryPolicy.fixed"
  checkFields(where, options, ["maxAttempts"])
  return make(where, options.maxAttempts, { _tag: "Explicit", delaysMs: [pauseOf(where, "delay", delay)] })
}

/** One attempt more than there are delays: `delays(["1 second", "5 seconds", "30 seconds"])` makes four. At least one. */
export const delays = (list: ReadonlyArray<Duration.Input>): RetryPolicy => {
  const where = "RetryPolicy.delays"
  check(
    Array.isArray(list) && list.length >= 1 && list.length < 32_000,
    where,
    "list",
    "1 to 31999 delays (RetryPolicy.none is one attempt without another)",
    list
  )
  const delaysMs = list.map((delay, index) => pauseOf(where, `list[${index}]`, delay))
  return make(where, list.length + 1, { _tag: "Explicit", delaysMs })
}

/** `next` names the delay, or `undefined` to give up. */
export const custom = (
  next: (failure: Failure) => Duration.Input | undefined,
  options: { readonly maxAttempts: number }
): RetryPolicy => {
  const where = "RetryPolicy.custom"
  check(typeof next === "function", where, "next", "a function", next)
  checkFields(where, options, ["maxAttempts"])
  return make(where, options.maxAttempts, { _tag: "Custom", next })
}

/** Gives one class of errors a policy of its own. */
export const forClass: {
  (errorClass: ErrorClass, policy: RetryPolicy): (self: RetryPolicy) => RetryPolicy
  (self: RetryPolicy, errorClass: ErrorClass, policy: RetryPolicy): RetryPolicy
} = dual(3, (self: RetryPolicy, errorClass: ErrorClass, policy: RetryPolicy): RetryPolicy => {
  const where = "RetryPolicy.forClass"
  const { literals } = ErrorClass
  check(isRetryPolicy(self), where, "self", expected, self)
  check(literals.includes(errorClass), where, "errorClass", `one of ${literals.join(", ")}`, errorClass)
  check(isRetryPolicy(policy), where, "policy", expected, policy)
  return { ...self, classes: { ...self.classes, [errorClass]: policy } }
})

/** What happens after a failed attempt. */
export type Decision =
  | { readonly _tag: "Retry"; readonly delayMs: number }
  | { readonly _tag: "DeadLetter" }
  | { readonly _tag: "Snooze"; readonly delayMs: number }
  | { readonly _tag: "Discard"; readonly because: string }

/** Everything a decision rests on. `jitter` is a random number in [0, 1). */
export interface Question extends Failure {
  readonly policy: RetryPolicy
  /** The error's own wish, in milliseconds; wins over the policy's delay, not over its `maxAttempts`. */
  readonly retryAfterMs: number | undefined
  /** Set when the handler asked for it, see `Snooze` and `Discard` of JobError. */
  readonly asked: { readonly snoozeMs: number } | { readonly discard: string } | undefined
  readonly jitter: number
}

const delayOf = (delays: Delays, question: Question): number | undefined => {
  switch (delays._tag) {
    case "None":
      return undefined
    case "Explicit":
      return delays.delaysMs[Math.min(question.attempt, delays.delaysMs.length) - 1]
    case "Custom": {
      const next = delays.next(question)
      return next === undefined ? undefined : namedBy(next)
    }
    case "Exponential": {
      const plain = Math.min(delays.baseMs * delays.factor ** (question.attempt - 1), delays.capMs)
      return plain * (1 + delays.jitter * (2 * question.jitter - 1))
    }
  }
}

/** 100 years: a due time beyond what the store can hold would be refused again and again, and its job never settled. */
const maxDelayMs = 3_155_760_000_000

/** Whole milliseconds from 0 to {@link maxDelayMs}; `NaN` is 0. */
const bounded = (delayMs: number): number => delayMs > 0 ? Math.min(Math.round(delayMs), maxDelayMs) : 0

/** Retry, dead-letter, snooze or discard: pure. Delays are whole milliseconds, never negative, at most 100 years. */
export const decide = (question: Question): Decision => {
  const { asked, policy } = question
  if (asked !== undefined) {
    return "discard" in asked
      ? { _tag: "Discard", because: asked.discard }
      : { _tag: "Snooze", delayMs: bounded(asked.snoozeMs) }
  }
  const own = policy.classes[question.class]
  if (own === undefined && (question.class === "Permanent" || question.class === "Validation")) {
    return { _tag: "DeadLetter" }
  }
  const chosen = own ?? policy
  if (question.attempt >= chosen.maxAttempts) return { _tag: "DeadLetter" }
  const delayMs = question.retryAfterMs ?? delayOf(chosen.delays, question)
  return delayMs === undefined ? { _tag: "DeadLetter" } : { _tag: "Retry", delayMs: bounded(delayMs) }
}

/**
 * A queue: a named, durable, priority-weighted mailbox. Declared in code, agreed on through the table `queues`.
 */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Priority from "./Priority.ts"

/** How long a final job is kept at least: its row goes when the day (UTC) on which that ends is over. `failed` jobs are dead letters, kept until replayed or purged by hand. */
export interface Retention {
  readonly completedMs: number
  readonly cancelledMs: number
  readonly expiredMs: number
}

/** A declared queue. */
export interface JobQueue {
  readonly name: string
  /** How many handlers of this queue run at once, in all. */
  readonly concurrency: number
  readonly weights: Priority.Weights
  readonly retention: Retention
  readonly maxPayloadBytes: number
}

/** What {@link make} takes. */
export interface Options {
  /** How many handlers run at once. Default 10. */
  readonly concurrency?: number
  /** Weights of the lanes. Default 8:4:2:1. */
  readonly weights?: Partial<Priority.Weights>
  /** How long final jobs are kept at least: they go when the day (UTC) on which that ends is over. Default 7 days each. */
  readonly retention?: {
    readonly completed?: Duration.Input
    readonly cancelled?: Duration.Input
    readonly expired?: Duration.Input
  }
  /** The largest payload taken, in bytes of JSON. Default 1 MiB, at most 8 MiB, see {@link maxJsonBytes}. */
  readonly maxPayloadBytes?: number
}

/**
 * The most JSON that one payload or one result may be: 8 MiB. The driver reads messages up to a limit, a job's row is one message, and a
 * row above it could never be read again: neither run, nor cancelled, nor looked at. Larger data belongs elsewhere, and a reference here.
 */
export const maxJsonBytes = 8 * 1024 * 1024

const namePattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/

/** Whether a queue may have this name: 1 to 100 letters, digits, `.`, `_`, `-`, the first one a letter or a digit. */
export const isName = (name: string): boolean => namePattern.test(name)

const refuse = (name: string, field: string, expected: string, received: unknown): never => {
  throw new RangeError(`JobQueue.make("${name}"): ${field}: expected ${expected}, received ${String(received)}`)
}

const positive = (name: string, field: string, value: number, most: number): number =>
  Number.isInteger(value) && value >= 1 && value <= most
    ? value
    : refuse(name, field, `an integer from 1 to ${most}`, value)

const mostDays = 36_500

/** Forever would put the day of purge beyond any date, and no job could be settled. */
const keptFor = (
  name: string,
  field: "completed" | "cancelled" | "expired",
  input: Duration.Input = "7 days"
): number => {
  const kept = Duration.fromInput(input)
  const millis = Option.isSome(kept) ? Duration.toMillis(kept.value) : NaN
  return millis >= 0 && millis <= mostDays * 86_400_000
    ? millis
    : refuse(name, `retention.${field}`, `0 to ${mostDays} days`, input)
}

/**
 * Declares a queue. Wrong options are a mistake of the program and throw a `RangeError` that names the field.
 *
 * @example
 * const Documents = JobQueue.make("documents", { concurrency: 20 })
 */
export const make = (name: string, options: Options = {}): JobQueue => {
  if (!isName(name)) refuse(name, "name", "1 to 100 letters, digits, '.', '_' or '-'", name)
  return {
    name,
    concurrency: positive(name, "concurrency", options.concurrency ?? 10, 10_000),
    weights: Result.getOrElse(
      Priority.makeWeights({ ...Priority.defaultWeights, ...options.weights }),
      (issue) => refuse(name, "weights", "an integer from 1 to 1000 for each lane", String(issue))
    ),
    retention: {
      completedMs: keptFor(name, "completed", options.retention?.completed),
      cancelledMs: keptFor(name, "cancelled", options.retention?.cancelled),
      expiredMs: keptFor(name, "expired", options.retention?.expired)
    },
    maxPayloadBytes: positive(name, "maxPayloadBytes", options.maxPayloadBytes ?? 1024 * 1024, maxJsonBytes)
  }
}

/** The queue of requests that name none. Declared by every runtime. */
export const fallback: JobQueue = make("default")

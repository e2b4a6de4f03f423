/**
 * A queue: a named, durable, priority-weighted mailbox. Declared in code, agreed on through the table `queues`.
 */
import type * as Duration from "effect/Duration"
import * as Predicate from "effect/Predicate"
import * as Result from "effect/Result"
import { check, checkFields, durationLike, fieldsOf, millisOf, refuse, shown } from "./internal/words/options.ts"
import * as Priority from "./Priority.ts"

/** How long a final job is kept at least: its row goes when the day (UTC) on which that ends is over. `failed` jobs are dead letters, kept until replayed or purged by hand. */
export interface Retention {
  readonly completedMs: number
  readonly cancelledMs: number
  readonly expiredMs: number
}

/**
 * What decides on a job's partition: its id, which spreads them evenly; its tenant, so that all jobs of one tenant are in one partition; or
 * its tenant and `key` together. A job without a key, which an ordered queue does not take, goes by its id.
 */
export type PartitionBy = "job" | "tenant" | "key"

/** All of them, as numbered in the table `queues`. */
export const partitionings: ReadonlyArray<PartitionBy> = ["job", "tenant", "key"]

/** A declared queue. */
export interface JobQueue {
  readonly name: string
  /** How many handlers of this queue run at once, in all. */
  readonly concurrency: number
  /** Into how many partitions its jobs are divided, each owned by one runner. */
  readonly partitions: number
  readonly partitionBy: PartitionBy
  /** Whether jobs of one key run in the order of their submission, one at a time. */
  readonly isOrdered: boolean
  /** The shard group: only runners that name it host the queue. */
  readonly group: string
  readonly weights: Priority.Weights
  readonly retention: Retention
  readonly maxPayloadBytes: number
}

/** What {@link make} takes. */
export interface Options {
  /** How many handlers run at once, in all partitions together: each gets its share. Default 10. */
  readonly concurrency?: number
  /**
   * Into how many partitions its jobs are divided: each runs in one process at a time. Default 1, at most 1,000 and not more than
   * `concurrency`. The latest program to start decides, for all; a program that does not declare the queue leaves it as it is.
   */
  readonly partitions?: number
  /** What decides on a job's partition. Default `"job"`. The other two, and `ordered`, can only be changed while the queue is empty, their `partitions` too. */
  readonly partitionBy?: PartitionBy
  /**
   * For `partitionBy: "key"`: jobs of one key (and tenant) start in the order of their submission, one at a time. One that waits for its next
   * attempt holds back those behind it, a dead letter lets them go. A delayed one joins when it is due. Submissions that overlap in time
   * have no order. A request without a key is refused. Default false.
   */
  readonly ordered?: boolean
  /** The shard group: only runners that name it host the queue, so that some machines take only their own queues. Default `"default"`. */
  readonly group?: string
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
export const isName = (name: unknown): name is string => typeof name === "string" && namePattern.test(name)

const positive = (where: string, field: string, value: number, most: number): number =>
  Number.isInteger(value) && value >= 1 && value <= most
    ? value
    : refuse(where, field, `an integer from 1 to ${most}`, value)

/** The most partitions of one queue. Its runners hold a lock and a few timers for each. */
const mostPartitions = 1_000

const divided = (where: string, partitions: number, concurrency: number): number =>
  positive(where, "partitions", partitions, mostPartitions) <= concurrency
    ? partitions
    : refuse(
      where,
      "partitions",
      `at most the concurrency of ${concurrency}, of which each partition gets its share`,
      partitions
    )

const orderedBy = (where: string, isOrdered: boolean, partitionBy: PartitionBy): boolean => {
  check(typeof isOrdered === "boolean", where, "ordered", "true or false", isOrdered)
  check(!isOrdered || partitionBy === "key", where, "ordered", "true only with partitionBy \"key\"", isOrdered)
  return isOrdered
}

const mostDays = 36_500

/** Forever would put the day of purge beyond any date, and no job could be settled. */
const keptFor = (
  where: string,
  field: "completed" | "cancelled" | "expired",
  input: Duration.Input = "7 days"
): number => {
  const millis = millisOf(input)
  return millis >= 0 && millis <= mostDays * 86_400_000
    ? millis
    : refuse(where, `retention.${field}`, `a duration from 0 to ${mostDays} days, ${durationLike}`, input)
}

const laneNames = Priority.lanes.map(({ name }) => name)

const weightsOf = (where: string, given: Partial<Priority.Weights> = {}): Priority.Weights => {
  checkFields(where, given, laneNames, "weights")
  const weights: Priority.Weights = { ...Priority.defaultWeights, ...given }
  const wrong = laneNames.find((lane) =>
    Result.isFailure(Priority.makeWeights({ ...Priority.defaultWeights, [lane]: weights[lane] }))
  )
  return wrong === undefined
    ? weights
    : refuse(where, `weights.${wrong}`, "an integer from 1 to 1000", weights[wrong])
}

/** Whether this is what {@link make} makes. */
export const isJobQueue = (value: unknown): value is JobQueue =>
  Predicate.hasProperty(value, "name") && isName(value.name) && Predicate.hasProperty(value, "partitionBy") &&
  Predicate.hasProperty(value, "weights") && Predicate.hasProperty(value, "retention")

const fields = fieldsOf<Options>({
  concurrency: true,
  partitions: true,
  partitionBy: true,
  ordered: true,
  group: true,
  weights: true,
  retention: true,
  maxPayloadBytes: true
})

/**
 * Declares a queue. Wrong options are a mistake of the program and throw a `RangeError` that names the field.
 *
 * @example
 * const Documents = JobQueue.make("documents", { concurrency: 20 })
 */
export const make = (name: string, options: Options = {}): JobQueue => {
  const where = `JobQueue.make(${shown(name)})`
  const words = "1 to 100 letters, digits, '.', '_' or '-'"
  if (!isName(name)) return refuse(where, "name", words, name)
  checkFields(where, options, fields)
  const {
    concurrency = 10,
    group = "default",
    maxPayloadBytes = 1024 * 1024,
    ordered = false,
    partitionBy = "job",
    partitions = 1,
    retention = {},
    weights
  } = options
  check(isName(group), where, "group", words, group)
  check(partitionings.includes(partitionBy), where, "partitionBy", `one of ${partitionings.join(", ")}`, partitionBy)
  positive(where, "concurrency", concurrency, 10_000)
  checkFields(where, retention, ["completed", "cancelled", "expired"], "retention")
  return {
    name,
    concurrency,
    partitions: divided(where, partitions, concurrency),
    partitionBy,
    isOrdered: orderedBy(where, ordered, partitionBy),
    group,
    weights: weightsOf(where, weights),
    retention: {
      completedMs: keptFor(where, "completed", retention.completed),
      cancelledMs: keptFor(where, "cancelled", retention.cancelled),
      expiredMs: keptFor(where, "expired", retention.expired)
    },
    maxPayloadBytes: positive(where, "maxPayloadBytes", maxPayloadBytes, maxJsonBytes)
  }
}

/**
 * How many handlers one of `partitions` runs at once: together they run `concurrency` of them. Never less than one, also where the table has
 * more partitions than this program's concurrency, or one left over from a larger count.
 */
export const shareOf = ({ concurrency }: JobQueue, partition: number, partitions: number): number =>
  partition < partitions
    ? Math.max(1, Math.floor(concurrency / partitions) + (partition < concurrency % partitions ? 1 : 0))
    : 1

/** How a queue is divided, and among whom: what all programs have to agree on. */
export type Layout = Pick<JobQueue, "partitions" | "partitionBy" | "isOrdered" | "group">

/** A field of a layout that jobs in the queue may forbid to change, as {@link Options} calls it. */
export type LayoutField = "partitionBy" | "ordered" | "group"

/** What the table says of a queue that no program has declared otherwise. */
export const defaultLayout: Layout = { partitions: 1, partitionBy: "job", isOrdered: false, group: "default" }

export const isSameLayout = (one: Layout, other: Layout): boolean =>
  one.partitions === other.partitions && one.partitionBy === other.partitionBy &&
  one.isOrdered === other.isOrdered && one.group === other.group

/**
 * The first difference that jobs in the queue forbid: by what they are divided is in their rows already. Which processes host a queue matters
 * to order only: two of them may run it at the same time for a moment.
 */
export const fixedWhileUsed = (stored: Layout, wanted: Layout): LayoutField | undefined => {
  if (stored.partitionBy !== wanted.partitionBy) return "partitionBy"
  if (stored.partitionBy === "job") return undefined
  if (stored.isOrdered !== wanted.isOrdered) return "ordered"
  return stored.isOrdered && stored.group !== wanted.group ? "group" : undefined
}

/** Whether jobs have to follow: those of tenants and keys belong where the count says. */
export const isMove = (stored: Layout, wanted: Layout): boolean =>
  stored.partitionBy !== "job" && stored.partitions !== wanted.partitions

/** What is different, in words: each field, as {@link Options} calls it, from what and to what. */
export const changesOf = (from: Layout, to: Layout): string => {
  const told = ({ group, isOrdered, partitionBy, partitions }: Layout) => ({
    partitions,
    partitionBy,
    ordered: isOrdered,
    group
  })
  const after = new Map(Object.entries(told(to)))
  return Object.entries(told(from))
    .filter(([field, value]) => after.get(field) !== value)
    .map(([field, value]) => `${field} from ${value} to ${after.get(field)}`)
    .join(", ")
}

/** The queue of requests that name none. Declared by every runtime. */
export const fallback: JobQueue = make("default")

/**
 * How this process reaches the owners of partitions. Implemented by QueueEntity; a submitting-only process reaches none.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { PartitionUnavailable } from "../JobError.ts"
import type { JobId } from "../JobId.ts"
import type { Ready } from "../JobStore.ts"

/** A partition by its queue's name. */
export interface Address {
  readonly queue: string
  readonly partition: number
}

/** What an owner knows of a ready job. */
export interface View {
  readonly isRunning: boolean
  readonly startedAt?: number
  readonly progress?: number
  readonly message?: string
}

/** The name of a partition, for people. */
export const partitionName = ({ partition, queue }: Address): string => `${queue}/${partition}`

/**
 * How an owner is reached. `here`: this process owns the partition. `cluster`: by a message to another runner, if anybody owns it.
 * `database`: not at all from here, it only hears what is announced.
 */
export type Reach = "here" | "cluster" | "database"

/** Reaches owners of partitions. */
export class Owners extends Context.Service<Owners, {
  readonly reach: (address: Address) => Reach
  /** Tells an owner in this very process, at once. `false`: it is not here. */
  readonly tell: (queueId: number, partition: number, ready: ReadonlyArray<Ready>) => boolean
  /** Bounded, never fails. `false`: nobody has surely heard of it; a lost wake is found by the owner's sweep. */
  readonly wake: (address: Address, ready: ReadonlyArray<Ready>) => Effect.Effect<boolean>
  /** `false`: the job is neither ready nor running there. */
  readonly cancel: (
    address: Address,
    jobId: JobId,
    by: string | undefined
  ) => Effect.Effect<boolean, PartitionUnavailable>
  /** Has an owner in this very process cancel a job. `undefined`: it is not here. */
  readonly cancelHere: (
    queueId: number,
    partition: number,
    jobId: JobId,
    by: string | undefined
  ) => Effect.Effect<boolean> | undefined
  readonly view: (address: Address, jobId: JobId) => Effect.Effect<View | undefined, PartitionUnavailable>
}>()("millrace/internal/Owners") {}

/** The owner is another process, which this one cannot reach. */
export const outOfReach = (address: Address): Effect.Effect<never, PartitionUnavailable> =>
  Effect.fail(new PartitionUnavailable({ entity: partitionName(address) }))

/** No owner is in reach: this process only submits. */
export const layerNone: Layer.Layer<Owners> = Layer.succeed(
  Owners,
  Owners.of({
    reach: () => "database",
    tell: () => false,
    wake: () => Effect.succeed(false),
    cancel: outOfReach,
    cancelHere: () => undefined,
    view: outOfReach
  })
)

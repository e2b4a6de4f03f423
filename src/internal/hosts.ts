/**
 * Who hosts the queues of which shard group: this process, if the others reach it, and the others that are alive. Implemented by
 * runnerList.ts.
 */
import * as Context from "effect/Context"
import * as Layer from "effect/Layer"

/** Answers by a group's number. */
export class Hosts extends Context.Service<Hosts, {
  readonly isHere: (shardGroup: number) => boolean
  /** Whether another process that is alive does. Also as long as nobody has looked. */
  readonly isElsewhere: (shardGroup: number) => boolean
  /** Where this process was asked in vain whether it is alive, as long as it is given no shards for that. */
  readonly unreachedAt: () => string | undefined
}>()("millrace/internal/Hosts") {}

/** Of a process that only submits: groups do not concern it. */
export const layerClient: Layer.Layer<Hosts> = Layer.succeed(
  Hosts,
  Hosts.of({ isHere: () => true, isElsewhere: () => true, unreachedAt: () => undefined })
)

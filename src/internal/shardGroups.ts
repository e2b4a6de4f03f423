/**
 * The shard groups of a cluster, the same in every process for ever: the numbers of the shard locks follow from their order.
 */

/** How many there are. */
export const count = 32

/** The name of a group in the cluster. Queues that name no group are in group 0. */
export const nameOf = (group: number): string => `a${String(group).padStart(2, "0")}`

/** Holds no queue: Effect's own health check runs in it, so every runner has to host it. */
export const health = "default"

/**
 * All of them, in the order that numbers the locks. Group 0 is first, and so has the numbers that `single` has: a single-process runtime and
 * a runner of a cluster never own a partition of it at the same time.
 */
export const all: ReadonlyArray<string> = [...Array.from({ length: count }, (_, group) => nameOf(group)), health]

/** The one group of a runtime of one process, which holds every queue. */
export const single = "default"

/** The number of a shard's lock, as Effect's SqlRunnerStorage counts them in the groups of a runtime. Of a shard that may hold queues. */
export const lockNumber = ({ group, id }: { readonly group: string; readonly id: number }): number =>
  ((group === single ? 0 : all.indexOf(group)) + 1) * 1_000_000 + id

/** Whether who is assigned these hosts the queues of a group. A runner has at least one beside `health`; who has none is a `single`. */
export const isHostedBy = (assigned: ReadonlyArray<string>, group: number): boolean =>
  assigned.includes(nameOf(group)) || assigned.every((name) => name === single)

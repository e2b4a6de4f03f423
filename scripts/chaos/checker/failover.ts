/**
 * How long the partitions of a runner that was killed had no owner: until the monitor saw the next epoch.
 */
import type { Evidence } from "./evidence.ts"

/** Whoever is not succeeded within so long had no partition, or the run was over. */
const mostMs = 60_000

/** In milliseconds, over all partitions that such a runner had started the latest job of. */
export const failovers = ({ events, rows, samples, starts }: Evidence) => {
  const partitionOf = new Map(rows.map(({ id, partition, queue }) => [id, `${queue}/${partition}`]))
  const kills = events.filter(({ is, what }) => what === "runner" && is === "killed")
  const took = kills.flatMap((kill) => {
    const latest = new Map(
      starts.filter(({ at }) => at <= kill.at).map(({ incarnation, job, runner }) => [
        partitionOf.get(job),
        runner === kill.number && incarnation === kill.incarnation
      ])
    )
    return [...latest].flatMap(([partition, isOwn]) => {
      if (partition === undefined || !isOwn) return []
      const epochs = samples.flatMap(({ at, epochs }) =>
        epochs?.[partition] === undefined ? [] : [{ at, epoch: epochs[partition] }]
      )
      const before = epochs.findLast(({ at }) => at <= kill.at)?.epoch ?? 0
      const next = epochs.find(({ at, epoch }) => at > kill.at && epoch > before)
      return next === undefined || next.at - kill.at > mostMs ? [] : [next.at - kill.at]
    })
  })
  const sum = took.reduce((sum, one) => sum + one, 0)
  return {
    failovers: took.length,
    meanFailoverMs: took.length === 0 ? undefined : Math.round(sum / took.length),
    longestFailoverMs: took.length === 0 ? undefined : Math.max(...took)
  }
}

/**
 * The longest time in which a job was ready and nothing at all was started: of all partitions together, and of the worst one.
 */
import type { Evidence, Row } from "./evidence.ts"

/** A time of nothing, in milliseconds. `At`: since the run began. `WithoutOutage`: less the time in which the database was away. */
export interface Stall {
  readonly longestStallMs: number
  readonly longestStallAt: number
  readonly stallWithoutOutageMs: number
  /** The faults shortly before it, and in it. */
  readonly meanwhile: ReadonlyArray<string>
}

const beforeMs = 5_000

interface Span {
  readonly from: number
  readonly to: number
}

/** Times in which the database was away. */
const outages = ({ events }: Evidence): ReadonlyArray<Span> => {
  const spans: Array<Span> = []
  let from: number | undefined
  for (const { at, forMs = 0, is, kind, what } of events) {
    if (what === "database" && is === "down") from = at
    if (what === "database" && is === "up" && from !== undefined) {
      spans.push({ from, to: at })
      from = undefined
    }
    if (what === "fault" && kind === "refuse") spans.push({ from: at, to: at + forMs })
  }
  return spans
}

const without = (spans: ReadonlyArray<Span>, holes: ReadonlyArray<Span>): ReadonlyArray<Span> =>
  holes.reduce<ReadonlyArray<Span>>(
    (left, hole) =>
      left.flatMap(({ from, to }) =>
        [{ from, to: Math.min(to, hole.from) }, { from: Math.max(from, hole.to), to }].filter(({ from, to }) =>
          to > from
        )
      ),
    spans
  )

const lengthOf = ({ from, to }: Span): number => to - from

const longestOf = (spans: ReadonlyArray<Span>): Span =>
  spans.reduce((longest, span) => lengthOf(span) > lengthOf(longest) ? span : longest, { from: 0, to: 0 })

/** From when a job was ready to when it was started, for each of its runs. */
const waits = (row: Row, starts: ReadonlyArray<number>, readyAt: number): ReadonlyArray<Span> => {
  // Ready when it was stored or came due, and again whenever a run of it was over: the next start tells that there was one.
  const ready = [
    readyAt,
    ...row.history.flatMap(({ endedAt, outcome, at, kind }) =>
      outcome === "retried" && endedAt !== undefined
        ? [endedAt + 1_000]
        : kind === "replayed" && at !== undefined
        ? [at]
        : []
    )
  ]
  return ready.flatMap((from) => {
    const to = starts.find((start) => start >= from)
    return to === undefined ? [] : [{ from, to }]
  })
}

/** Of those waits, the times in between all starts. */
const gaps = (waits: ReadonlyArray<Span>, starts: ReadonlyArray<number>): ReadonlyArray<Span> => {
  const inOrder = waits.toSorted((a, b) => a.from - b.from)
  const found: Array<Span> = []
  let next = 0
  let earliest = Number.POSITIVE_INFINITY
  let before = Number.NEGATIVE_INFINITY
  let open: Array<Span> = []
  for (const start of starts) {
    while (next < inOrder.length && inOrder[next]!.from < start) open.push(inOrder[next++]!)
    open = open.filter(({ to }) => to >= start)
    earliest = open.reduce((least, { from }) => Math.min(least, from), Number.POSITIVE_INFINITY)
    if (earliest < start) found.push({ from: Math.max(earliest, before), to: start })
    before = start
  }
  return found
}

/** Of all partitions together, and of the worst one. */
export const stalls = (evidence: Evidence) => {
  const readyAt = new Map<string, number>()
  for (const { answer, answeredAt, at, ids, op, orders } of evidence.calls) {
    if (op !== "submit" || answer !== "ack") continue
    for (const [index, id] of ids.entries()) {
      const { delayMs } = orders[index] ?? {}
      if (!readyAt.has(id)) readyAt.set(id, delayMs === undefined ? answeredAt : at + delayMs)
    }
  }
  const startsOf = Map.groupBy(evidence.starts, ({ job }) => job)
  const holes = outages(evidence)
  const began = evidence.events.find(({ what }) => what === "began")?.at ?? 0
  const measured = (rows: ReadonlyArray<Row>): Stall => {
    const runs = rows.map((row) => ({ row, starts: (startsOf.get(row.id) ?? []).map(({ at }) => at) }))
    const all = runs.flatMap(({ row, starts }) => {
      const at = readyAt.get(row.id)
      return at === undefined ? [] : waits(row, starts, at)
    })
    const found = gaps(all, runs.flatMap(({ starts }) => starts).toSorted((a, b) => a - b))
    const longest = longestOf(found)
    return {
      longestStallMs: Math.round(lengthOf(longest)),
      longestStallAt: Math.max(0, Math.round(longest.from - began)),
      stallWithoutOutageMs: Math.round(lengthOf(longestOf(without(found, holes)))),
      meanwhile: evidence.events.flatMap(({ at, kind, mode = "", target, what }) =>
        what === "fault" && at > longest.from - beforeMs && at < longest.to
          ? [`${((at - began) / 1_000).toFixed(1)} s ${kind} ${mode === "" ? target : mode}`]
          : []
      )
    }
  }
  const apart = [...Map.groupBy(evidence.rows, ({ partition, queue }) => `${queue}/${partition}`)].map(
    ([name, rows]) => ({ name, ...measured(rows) })
  )
  return {
    ...measured(evidence.rows),
    worstPartition: apart.toSorted((a, b) => b.longestStallMs - a.longestStallMs)[0]
  }
}

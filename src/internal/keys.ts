/**
 * The lines of an ordered queue: of each key one job is in hand, and the next one is looked for when its outcome is confirmed. Those behind it
 * stay in the table, read but not held: a key with a million jobs takes no more room than one with two.
 *
 * Promise: no two jobs of a key are in hand at the same time, and none is passed over for ever. A crash loses this memory only: the next
 * owner's first reading of each line gives its head.
 */
import type { Line, ReadyJob } from "../JobStore.ts"

/** One line that has a job in hand, or had a moment ago. */
interface Place extends Line {
  inHand: string | undefined
  /** Others may stand behind it. */
  isLonger: boolean
}

/** A line to be looked for, and the row that left it. */
interface Due extends Line {
  readonly left?: string
}

/** The lines of one ownership. */
export interface Keys {
  /**
   * Whether a job that was read may be taken in hand, which it then is. Of the same key another is in hand, or comes before it: it is found
   * again when that has ended. A job without a key always may. `mayBeLonger`: something is known to stand behind it, or may.
   */
  readonly admit: (job: ReadyJob, mayBeLonger?: boolean) => boolean
  /** The job is no longer in hand. `isReady`: it is still there, to be read again. */
  readonly leave: (job: ReadyJob, isReady: boolean) => void
  /**
   * Nothing of the line of this job, which is in hand, is taken in hand before the answer is run: the abandoned run of it may still do
   * something. Its own outcome does not end that.
   */
  readonly hold: (job: ReadyJob) => () => void
  /** The head of this line may be ready. Of more lines than are looked for at a time some are left to the sweep. */
  readonly look: (line: Line) => void
  /** Lines whose head has to be looked for, some of them; they are due no more. */
  readonly due: () => ReadonlyArray<Line>
  /** Lines that have been in hand and are not now are forgotten: a sweep reads everything again. */
  readonly sweep: () => void
}

const atOnce = 256
/** As many are told of only while nothing can be read: the rest would be told of for nothing. */
export const mostDue = 20_000

/** No line yet. `onDue`: there is one to be looked for. */
export const make = (onDue: () => void): Keys => {
  const places = new Map<string, Place>()
  const due = new Map<string, Due>()
  /** Rows that left without an outcome, of the lines asked for last: the database takes none for them, and they must not run on and on. */
  let stuck: ReadonlySet<string> = new Set()
  const nameOf = ({ key, tenant }: Line) => `${tenant}\n${key}`

  const rowOf = ({ id, version }: ReadyJob) => `${id} ${version}`

  const look = (line: Due) => {
    const name = nameOf(line)
    const place = places.get(name)
    if (place?.inHand !== undefined) {
      place.isLonger = true
      return
    }
    if (due.size < mostDue || due.has(name)) due.set(name, line)
    onDue()
  }

  return {
    // Of a row that was written before nobody knows what was read behind it meanwhile.
    admit: (job, mayBeLonger = job.attempt > 0 || job.version > 0) => {
      const { id, standing, tenant } = job
      if (standing === undefined) return true
      const { isHead, key, move } = standing
      // Whoever has those in front of it will say when they have ended.
      if (move === "waits") return false
      const isLonger = mayBeLonger || move === "leaves"
      const line = { tenant, key }
      const name = nameOf(line)
      const place = places.get(name)
      if (place?.inHand === id) return true
      if (place?.inHand !== undefined) {
        place.isLonger = true
        return false
      }
      if (!isHead) {
        // Its head has ended meanwhile, or is not read yet.
        look(line)
        return false
      }
      if (stuck.has(rowOf(job))) return false
      places.set(name, { ...line, inHand: id, isLonger: isLonger || place?.isLonger === true })
      return true
    },
    leave: (job, isReady) => {
      const { id, standing, tenant } = job
      if (standing === undefined) return
      const name = nameOf({ tenant, key: standing.key })
      const place = places.get(name)
      if (place?.inHand !== id) return
      if (isReady) {
        place.inHand = undefined
        return
      }
      places.delete(name)
      if (place.isLonger) look({ tenant, key: place.key, left: rowOf(job) })
    },
    hold: ({ id, standing, tenant }) => {
      if (standing === undefined) return () => {}
      const line = { tenant, key: standing.key }
      const name = nameOf(line)
      const place = places.get(name)
      if (place?.inHand !== id) return () => {}
      const held = `abandoned ${id}`
      place.inHand = held
      return () => {
        if (places.get(name)?.inHand !== held) return
        places.delete(name)
        look(line)
      }
    },
    look,
    due: () => {
      const lines: Array<Line> = []
      const left = new Set<string>()
      for (const [name, line] of due) {
        if (lines.length === atOnce) break
        due.delete(name)
        const place = places.get(name)
        if (place?.inHand !== undefined) {
          place.isLonger = true
          continue
        }
        lines.push(line)
        if (line.left !== undefined) left.add(line.left)
      }
      stuck = left
      return lines
    },
    sweep: () => {
      stuck = new Set()
      for (const [name, { inHand }] of places) if (inHand === undefined) places.delete(name)
    }
  }
}

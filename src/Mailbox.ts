// The in-memory scheduler of one partition: weighted lanes, tenants in turn inside a lane, FIFO by `seq` inside a tenant.
// Promise: a lane with work starts within W - w + 1 starts of the mailbox (guarantee 6); nothing is lost or given twice.
// A crash loses memory only: the table is the durable mailbox, and the partition's next owner reads it again.
// Floor 0: pure and synchronous, no clock, no IO. It knows no limits, it asks.
import * as Result from "effect/Result"
import { type Lane, lanes, makeWeights, type Weights } from "./Priority.ts"

/**
 * What the mailbox must know of a job: `id` is unique in it, `lane` is 0 (`critical`) to 3 (`low`), `seq` is the order of
 * arrival. A job that comes back after a retry brings its old `seq`, and with it its old place.
 */
export interface Item {
  readonly id: string
  readonly tenantId: string
  readonly lane: number
  readonly seq: number
}

/**
 * How an offer ended: `accepted`, `duplicate` (the id is here already, and stays as it was) or `full` (the lane has no
 * room: the job stays in the table, for a later intake).
 */
export type Offered = "accepted" | "duplicate" | "full"

/** One lane as people see it, with its tenants in the order of their turns. */
export interface LaneDepth {
  readonly lane: Lane
  readonly size: number
  readonly room: number
  readonly tenants: ReadonlyArray<{ readonly tenantId: string; readonly size: number }>
}

/**
 * A mutable scheduler for one reader.
 *
 * **Which job is next**
 *
 * Lanes share the starts by weight through self-clocked fair queueing (S. J. Golestani, "A Self-Clocked Fair Queueing
 * Scheme for Broadband Applications", INFOCOM 1994), a job being one unit of work. Inside a lane tenants take turns: the
 * one served goes to the end, and so does one that ran empty and comes back, so re-joining gains nothing. Inside a tenant
 * the lowest `seq` goes first.
 *
 * The *head* of a lane is the job that it gives when it is chosen: of the first tenant in turn that has a runnable job,
 * the runnable one with the lowest `seq`.
 *
 * **The bound**
 *
 * A lane of weight `w` with a runnable job starts one within `1 + sum of ceil(w' / w) over the other lanes` starts: 4, 5,
 * 8 and 15 for 8:4:2:1, never more than `W - w + 1` (W is the sum of the weights), whatever arrives elsewhere, and also
 * when lanes run empty and come back. Starts made while limits hold back the whole lane do not count. So the head starts
 * within that bound, unless an older job of its tenant comes in front or an earlier tenant is released. Of T tenants in a
 * lane, each with a runnable job is served within T starts of that lane.
 *
 * **Cost**
 *
 * Offering in order and taking cost O(lanes); an offer out of order and a removal cost a binary search and a move of
 * memory. Each held job that a take passes costs one question, or each tenant one, with `isTenantRunnable`.
 */
export interface Mailbox<A extends Item> {
  readonly offer: (item: A) => Offered
  /**
   * Removes and returns the next job; `undefined` when none is runnable.
   *
   * `isRunnable` false means that a limit holds the job back: it keeps its place, its lane pays nothing, and the next job
   * of the tenant, the next tenant, the next lane are asked. The first `true` ends the search, so the caller may take its
   * permits while answering. `isTenantRunnable` false passes over all jobs of that tenant with one question; `true`
   * promises nothing. Neither may touch the mailbox.
   */
  readonly take: (
    isRunnable?: (item: A) => boolean,
    isTenantRunnable?: (tenantId: string) => boolean
  ) => A | undefined
  /** Takes out a job that is cancelled, has expired or moves to another lane. Its lane keeps its turn. */
  readonly remove: (id: string) => A | undefined
  readonly size: number
  readonly sizeOf: (lane: number) => number
  /** How many more jobs the lane takes in: each has its own room, so a full one never shuts out another. */
  readonly room: (lane: number) => number
  readonly depth: () => ReadonlyArray<LaneDepth>
  /** The new weights' bound holds from here on; each lane keeps the fraction of its wait that it has behind it. */
  readonly setWeights: (weights: Weights) => void
  /** Empties the mailbox and returns what it held. */
  readonly clear: () => ReadonlyArray<A>
}

/**
 * Makes an empty mailbox; `capacityPerLane` is counted in jobs.
 *
 * Weights that `Priority.makeWeights` refuses, a capacity below 1 and a lane that does not exist are defects.
 */
export const make = <A extends Item>(options: {
  readonly weights: Weights
  readonly capacityPerLane: number
}): Mailbox<A> => {
  const capacity = options.capacityPerLane
  if (!Number.isSafeInteger(capacity) || capacity < 1) {
    throw new RangeError(`Mailbox: capacityPerLane must be a positive integer, got ${capacity}`)
  }
  const items = new Map<string, A>()
  const queues = steps(options.weights).map((step, lane): LaneQueue<A> => ({
    bit: 1 << lane,
    step,
    wait: step,
    since: 0,
    size: 0,
    tenants: new Map(),
    turns: new Line((tenant) => tenant.turn)
  }))
  let starts = 0
  let turns = 0

  const queueOf = (lane: number): LaneQueue<A> => {
    const queue = queues[lane]
    if (queue === undefined) throw new RangeError(`Mailbox: no lane ${lane}`)
    return queue
  }

  const becomeHead = (queue: LaneQueue<A>) => {
    queue.wait = queue.step
    queue.since = starts
  }

  const leave = (queue: LaneQueue<A>, tenant: TenantQueue<A>, item: A, place: number) => {
    tenant.jobs.removeAt(place)
    if (tenant.jobs.length === 0) queue.tenants.delete(tenant.tenantId)
    queue.size--
    items.delete(item.id)
  }

  const takeFrom = (
    queue: LaneQueue<A>,
    isRunnable: (item: A) => boolean,
    isTenantRunnable: (tenantId: string) => boolean
  ): A | undefined => {
    for (let turn = 0; turn < queue.turns.length; turn++) {
      const tenant = queue.turns.at(turn)
      if (!isTenantRunnable(tenant.tenantId)) continue
      for (let place = 0; place < tenant.jobs.length; place++) {
        const item = tenant.jobs.at(place)
        if (!isRunnable(item)) continue
        queue.turns.removeAt(turn)
        leave(queue, tenant, item, place)
        tenant.turn = ++turns
        if (tenant.jobs.length > 0) queue.turns.add(tenant)
        return item
      }
    }
    return undefined
  }

  const remove = (id: string): A | undefined => {
    const item = items.get(id)
    if (item === undefined) return undefined
    const queue = queueOf(item.lane)
    const tenant = queue.tenants.get(item.tenantId)!
    if (tenant.jobs.length === 1) queue.turns.removeAt(queue.turns.indexOf(tenant))
    leave(queue, tenant, item, tenant.jobs.indexOf(item))
    return item
  }

  return {
    offer(item) {
      if (items.has(item.id)) return "duplicate"
      const queue = queueOf(item.lane)
      if (queue.size >= capacity) return "full"
      if (queue.size === 0) becomeHead(queue)
      let tenant = queue.tenants.get(item.tenantId)
      if (tenant === undefined) {
        tenant = { tenantId: item.tenantId, turn: ++turns, jobs: new Line((job) => job.seq) }
        queue.tenants.set(item.tenantId, tenant)
        queue.turns.add(tenant)
      }
      tenant.jobs.add(item)
      queue.size++
      items.set(item.id, item)
      return "accepted"
    },
    take(isRunnable = always, isTenantRunnable = always) {
      for (let asked = 0;;) {
        const served = earliest(queues, asked)
        if (served === undefined) return undefined
        const item = takeFrom(served, isRunnable, isTenantRunnable)
        if (item !== undefined) {
          // Virtual time moves on to the tag in service. A lane that limits held back past its own tag is due now, not
          // earlier: it gets the one start that it missed, no more.
          const elapsed = served.wait
          for (const queue of queues) queue.wait = Math.max(0, queue.wait - elapsed)
          starts++
          becomeHead(served)
          return item
        }
        asked |= served.bit
      }
    },
    remove,
    get size() {
      return items.size
    },
    sizeOf: (lane) => queueOf(lane).size,
    room: (lane) => capacity - queueOf(lane).size,
    depth: () =>
      lanes.map(({ index, name }) => {
        const { size, turns } = queueOf(index)
        const tenants = turns.toArray().map(({ jobs, tenantId }) => ({ tenantId, size: jobs.length }))
        return { lane: name, size, room: capacity - size, tenants }
      }),
    setWeights(weights) {
      steps(weights).forEach((step, lane) => {
        const queue = queueOf(lane)
        queue.wait = Math.round(queue.wait * (step / queue.step))
        queue.step = step
      })
    },
    clear() {
      const held = Array.from(items.values())
      for (const { id } of held) remove(id)
      return held
    }
  }
}

// ---- lanes: self-clocked fair queueing ----

interface TenantQueue<A extends Item> {
  readonly tenantId: string
  readonly jobs: Line<A>
  /** Its place among the tenants: the lowest is next. */
  turn: number
}

/**
 * A lane. The paper's tag of its head is `F = v + 1 / w`, v being the virtual time in which it became the head. `wait` is
 * what is left, `F - v`: it stays within 0 and `step`, so nothing grows, and its unit is 1 / lcm(weights), so it is exact.
 */
interface LaneQueue<A extends Item> {
  /** Marks it in the set of lanes that a take has asked. */
  readonly bit: number
  readonly tenants: Map<string, TenantQueue<A>>
  readonly turns: Line<TenantQueue<A>>
  size: number
  step: number
  wait: number
  /** How many starts there had been when its head became the head. */
  since: number
}

/**
 * The lane with the earliest tag, of those that have jobs and were not asked yet.
 *
 * Of equal tags the one that has waited longer goes first, then the more urgent lane. Always the urgent one first would
 * break the bound: lanes could pass a lane that arrives in a tie at both ends of its wait (17 starts instead of 15 for
 * `low`, 6 instead of 4 for the last of four equal weights).
 */
const earliest = <A extends Item>(queues: ReadonlyArray<LaneQueue<A>>, asked: number): LaneQueue<A> | undefined => {
  let best: LaneQueue<A> | undefined
  for (const queue of queues) {
    if (queue.size === 0 || (asked & queue.bit) !== 0) continue
    if (best === undefined || queue.wait < best.wait || (queue.wait === best.wait && queue.since < best.since)) {
      best = queue
    }
  }
  return best
}

/** The virtual time that a job of each lane costs: 1 / weight in units of 1 / lcm(weights), which is below 10^12. */
const steps = (weights: Weights): ReadonlyArray<number> => {
  const checked = Result.getOrThrow(makeWeights(weights))
  const each = lanes.map(({ name }) => checked[name])
  const unit = each.reduce((a, b) => (a / gcd(a, b)) * b)
  return each.map((weight) => unit / weight)
}

const gcd = (a: number, b: number): number => (b === 0 ? a : gcd(b, a % b))

const always = () => true

// ---- lines: tenants in the order of their turns, jobs in the order of `seq` ----

/** Values in ascending order of a key. Adding the highest and removing the first are O(1), amortised. */
class Line<V extends object> {
  private readonly key: (value: V) => number
  private readonly values: Array<V | undefined> = []
  /** Values removed from the front leave a gap, closed when it is half of the array. */
  private gap = 0

  constructor(key: (value: V) => number) {
    this.key = key
  }

  get length(): number {
    return this.values.length - this.gap
  }

  at(place: number): V {
    return this.values[this.gap + place]!
  }

  toArray(): ReadonlyArray<V> {
    return Array.from({ length: this.length }, (_, place) => this.at(place))
  }

  /** Equal keys stay in the order in which they came. */
  add(value: V): void {
    const key = this.key(value)
    if (this.length === 0 || this.key(this.at(this.length - 1)) <= key) this.values.push(value)
    else this.values.splice(this.gap + this.firstPlace((other) => other > key), 0, value)
  }

  /** The place of a value that is in the line. */
  indexOf(value: V): number {
    const key = this.key(value)
    return this.values.indexOf(value, this.gap + this.firstPlace((other) => other >= key)) - this.gap
  }

  removeAt(place: number): void {
    if (place > 0) this.values.splice(this.gap + place, 1)
    else this.values[this.gap++] = undefined
    if (this.gap * 2 >= this.values.length) {
      this.values.splice(0, this.gap)
      this.gap = 0
    }
  }

  /** Binary search: `isAfter` is false up to some key and true from there on. */
  private firstPlace(isAfter: (key: number) => boolean): number {
    let low = 0
    let high = this.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (isAfter(this.key(this.at(middle)))) high = middle
      else low = middle + 1
    }
    return low
  }
}

/**
 * What the owner of a partition holds, and how far it has read: pure bookkeeping for the read-only intake (store rule R4).
 *
 * Promise: no row that is held is asked for again, and no ready row is passed over for ever. Of what it is told while nothing is read it
 * remembers a bounded number, for however long that is.
 */
import type { Demand, Intake, LaneDemand, Mark, Ready, ReadyJob, TenantKey } from "../JobStore.ts"

/**
 * Jobs of one lane and tenant. `mark`: every ready row at or below it is held, or told of by a wake yet to come, or passed over: it stands
 * behind another of its key, and is found when that has ended.
 */
interface Group {
  readonly lane: number
  readonly tenant: TenantKey
  readonly seqs: Set<number>
  mark: number
  /** The mark says something though nothing is held: rows were passed over. */
  hasPassed: boolean
}

/** How one lane is being read. */
interface Reading {
  /** Tenants after this one come next; `""` is the start. */
  cursor: TenantKey | ""
  /** There may be ready rows that were not read. */
  hasMore: boolean
  /** ... though none was told of: a sweep only makes sure. */
  isSweep: boolean
  /** Tenants seen in the last pass, to share the room among. */
  tenants: number
  /** Of the pass under way, which may take several answers: whether every tenant was read to its end, and nothing was told of meanwhile. */
  isWhole: boolean
  wasTold: boolean
  /** The highest `seq` that was ever read: what is told of later with a lower one may have been read, and be over. */
  passed: number
  /** Tenants told of while nothing of them was held and the lane had no room: they shall not wait behind another's flood. */
  readonly newcomers: Set<TenantKey>
  /** Told of while an intake is under way: its snapshot may be older, so its answer must not raise these tenants' marks past them. */
  readonly told: Map<TenantKey, number>
  /** The lowest of those that were too many to remember: it counts for every tenant of the lane. */
  toldLowest: number
}

const maxTenants = 64
const perNewcomer = 8
/** How many it remembers at the most, of each kind and lane, beside the jobs it holds. */
const maxRemembered = 1_000

/** The bookkeeping of one ownership. */
export interface Held {
  readonly has: (id: string) => boolean
  readonly get: (id: string) => ReadyJob | undefined
  readonly size: number
  /** How much else is remembered, of tenants and jobs told of: bounded. */
  readonly remembered: number
  /** Rows have become ready. */
  readonly told: (ready: Ready) => void
  /**
   * Takes in a job that was stored a moment ago, without reading it. `false`, and nothing happens, unless everything in its lane that was
   * told of has been read: it shall not pass what waits in the table. Nor if it may have been read itself: between a commit and the word of
   * it there is time enough for a job to run and end.
   */
  readonly given: (job: ReadyJob) => boolean
  /** Takes in a job that was read by itself, while no intake is under way. `false`: it is held already. */
  readonly admit: (job: ReadyJob) => boolean
  /** A row of this `seq` may be gone before anybody told of it. */
  readonly passed: (lane: number, seq: number) => void
  /** Whether everything in a lane that was told of has been read. */
  readonly isRead: (lane: number) => boolean
  /** Forget all marks: the next demands find whatever was missed. */
  readonly sweep: () => void
  /**
   * What to ask for, given each lane's room; `undefined` when nothing is worth asking. `reserve`: the room that a lane without any still
   * has for tenants it holds nothing of.
   */
  readonly demand: (room: ReadonlyArray<number>, reserve?: ReadonlyArray<number>) => Demand | undefined
  /** Takes an answer in; returns the jobs that are new. One that `isAdmitted` refuses is passed over: others see to it that it is found. */
  readonly took: (
    demand: Demand,
    intake: Intake,
    isAdmitted?: (job: ReadyJob) => boolean
  ) => ReadonlyArray<ReadyJob>
  /** The job's outcome is confirmed: nothing is held of it any more. `isReady`: its row is still there and ready, read it again. */
  readonly release: (job: ReadyJob, isReady: boolean) => void
}

const none: ReadonlyArray<ReadyJob> = []
const everyone = () => true

/** A cursor right before this tenant, in the order of code points; `undefined` where there is no simple one. */
const before = (tenant: TenantKey): TenantKey | undefined => {
  const last = tenant.charCodeAt(tenant.length - 1)
  const isPlain = last > 1 && last < 0xd800
  return isPlain ? `${tenant.slice(0, -1)}${String.fromCharCode(last - 1)}\u{10ffff}` : undefined
}

/** Nothing held, nothing read: everything may be there. */
export const make = (lanes: number, atMost = maxRemembered): Held => {
  const jobs = new Map<string, ReadyJob>()
  const groups = new Map<string, Group>()
  const readings = Array.from(
    { length: lanes },
    (): Reading => ({
      cursor: "",
      hasMore: true,
      isSweep: false,
      tenants: 0,
      isWhole: true,
      wasTold: false,
      passed: 0,
      newcomers: new Set(),
      told: new Map(),
      toldLowest: Infinity
    })
  )
  // Given while a sweep's intake is under way: its answer may name them, and they may have ended when it comes.
  const givenMeanwhile = new Set<string>()
  let isReading = false
  const keyOf = (lane: number, tenant: TenantKey) => `${lane}${tenant}`

  const remember = (reading: Reading, tenant: TenantKey, mark: number) => {
    const known = reading.told.get(tenant)
    if (known === undefined && reading.told.size >= atMost) reading.toldLowest = Math.min(reading.toldLowest, mark)
    else reading.told.set(tenant, Math.min(known ?? Infinity, mark))
  }

  const lower = (lane: number, tenant: TenantKey, mark: number) => {
    const group = groups.get(keyOf(lane, tenant))
    if (group !== undefined) group.mark = Math.min(group.mark, mark)
    const reading = readings[lane]
    if (reading === undefined) return
    if (isReading) remember(reading, tenant, mark)
    reading.hasMore = true
    reading.isSweep = false
    reading.wasTold = true
    if ((group === undefined || group.seqs.size === 0) && reading.newcomers.size < atMost) {
      reading.newcomers.add(tenant)
    }
  }

  /** No intake is under way any more. */
  const forgetMeanwhile = () => {
    isReading = false
    givenMeanwhile.clear()
    for (const reading of readings) {
      reading.told.clear()
      reading.toldLowest = Infinity
    }
  }

  /** The next newcomer of a lane that has no room for more of the others. */
  const newcomerDemand = (reading: Reading, lane: number, reserve: number): LaneDemand | undefined => {
    if (reserve < perNewcomer) return undefined
    for (const tenant of reading.newcomers) {
      reading.newcomers.delete(tenant)
      const after = before(tenant)
      if (after === undefined || (groups.get(keyOf(lane, tenant))?.seqs.size ?? 0) > 0) continue
      return { lane, after, tenants: 1, perTenant: perNewcomer, room: perNewcomer + 1 }
    }
    return undefined
  }

  const laneDemand = (room: number, lane: number, reserve: number): LaneDemand | undefined => {
    const reading = readings[lane]
    if (reading === undefined || !reading.hasMore) return undefined
    if (room <= 0) return newcomerDemand(reading, lane, reserve)
    reading.newcomers.clear()
    if (reading.cursor === "") {
      reading.isWhole = true
      reading.wasTold = false
    }
    // One row less than the room, so that a pass over the same tenants is seen to be complete.
    const perTenant = Math.max(1, Math.floor((room - 1) / Math.max(reading.tenants, 1)))
    return { lane, after: reading.cursor, tenants: maxTenants, perTenant, room }
  }

  const groupOf = (lane: number, tenant: TenantKey): Group =>
    groups.get(keyOf(lane, tenant)) ?? { lane, tenant, seqs: new Set(), mark: 0, hasPassed: false }

  const tookLane = (
    asked: LaneDemand,
    reading: Reading,
    rows: Map<TenantKey, Array<ReadyJob>>,
    isAdmitted: (job: ReadyJob) => boolean
  ) => {
    const tenants = [...rows.keys()]
    // A tenant with nothing new comes as one row too, and fills room like any other.
    const count = [...rows.values()].reduce((sum, found) => sum + Math.max(found.length, 1), 0)
    const isCut = count >= asked.room
    const isEnd = !isCut && tenants.length < asked.tenants
    const fresh: Array<ReadyJob> = []
    tenants.forEach((tenant, index) => {
      const found = rows.get(tenant) ?? none
      const isTenantWhole = found.length === 0 ||
        (found.length < asked.perTenant && !(isCut && index === tenants.length - 1))
      if (!isTenantWhole) reading.isWhole = false
      const group = groupOf(asked.lane, tenant)
      for (const job of found) {
        reading.passed = Math.max(reading.passed, job.seq)
        if (jobs.has(job.id) || givenMeanwhile.has(job.id)) continue
        if (!isAdmitted(job)) {
          group.hasPassed = true
          continue
        }
        jobs.set(job.id, job)
        group.seqs.add(job.seq)
        fresh.push(job)
      }
      const last = found.at(-1)?.seq ?? group.mark
      const read = isTenantWhole ? Math.max(group.mark, last, ...group.seqs) : last
      group.mark = Math.min(read, reading.told.get(tenant) ?? reading.toldLowest)
      if (group.seqs.size > 0 || group.hasPassed) groups.set(keyOf(asked.lane, tenant), group)
    })
    // A newcomer was asked for beside the pass.
    if (asked.after !== reading.cursor) return fresh
    reading.tenants = asked.after === "" ? tenants.length : reading.tenants + tenants.length
    reading.cursor = isEnd ? "" : tenants.at(-1) ?? ""
    if (isEnd && reading.isWhole && !reading.wasTold) {
      reading.hasMore = false
      reading.isSweep = false
    }
    return fresh
  }

  const isRead = (lane: number): boolean => {
    const reading = readings[lane]
    return reading !== undefined && (!reading.hasMore || reading.isSweep)
  }

  return {
    has: (id) => jobs.has(id),
    get: (id) => jobs.get(id),
    get size() {
      return jobs.size
    },
    get remembered() {
      return readings.reduce((sum, { newcomers, told }) => sum + newcomers.size + told.size, givenMeanwhile.size)
    },
    told: ({ lane, seq, tenant }) => lower(lane, tenant, seq - 1),
    isRead,
    given: (job) => {
      const reading = readings[job.lane]
      if (reading === undefined || !isRead(job.lane) || job.seq <= reading.passed || jobs.has(job.id)) return false
      if (isReading && givenMeanwhile.size >= atMost) return false
      if (isReading) givenMeanwhile.add(job.id)
      const group = groupOf(job.lane, job.tenant)
      jobs.set(job.id, job)
      group.seqs.add(job.seq)
      // Of a sweep under way the mark is low on purpose.
      if (!reading.hasMore) group.mark = Math.max(group.mark, job.seq)
      groups.set(keyOf(job.lane, job.tenant), group)
      return true
    },
    admit: (job) => {
      if (jobs.has(job.id)) return false
      const group = groupOf(job.lane, job.tenant)
      jobs.set(job.id, job)
      group.seqs.add(job.seq)
      groups.set(keyOf(job.lane, job.tenant), group)
      return true
    },
    passed: (lane, seq) => {
      const reading = readings[lane]
      if (reading !== undefined) reading.passed = Math.max(reading.passed, seq)
    },
    sweep: () => {
      const wereRead = readings.map((_, lane) => isRead(lane))
      for (const [key, group] of groups) {
        lower(group.lane, group.tenant, 0)
        group.hasPassed = false
        if (group.seqs.size === 0) groups.delete(key)
      }
      readings.forEach((reading, lane) => {
        reading.cursor = ""
        reading.hasMore = true
        reading.isSweep = wereRead[lane] === true
        reading.wasTold = true
      })
    },
    demand: (room, reserve = []) => {
      // The one before has been answered, or never will be.
      forgetMeanwhile()
      const asked = room.flatMap((free, lane) => laneDemand(free, lane, reserve[lane] ?? 0) ?? [])
      if (asked.length === 0) return undefined
      isReading = true
      const marks: Array<Mark> = []
      const held: Array<number> = []
      for (const group of groups.values()) {
        if (!asked.some(({ lane }) => lane === group.lane)) continue
        if (group.mark > 0) marks.push({ lane: group.lane, tenant: group.tenant, seq: group.mark })
        for (const seq of group.seqs) if (seq > group.mark) held.push(seq)
      }
      return { lanes: asked, marks, held }
    },
    took: (demand, intake, isAdmitted = everyone) => {
      const fresh = demand.lanes.flatMap((asked) => {
        const reading = readings[asked.lane]
        if (reading === undefined) return []
        const rows = new Map<TenantKey, Array<ReadyJob>>()
        for (const { lane, tenant } of intake.visited) if (lane === asked.lane) rows.set(tenant, [])
        for (const job of intake.jobs) if (job.lane === asked.lane) rows.get(job.tenant)?.push(job)
        return tookLane(asked, reading, rows, isAdmitted)
      })
      forgetMeanwhile()
      return fresh
    },
    release: (job, isReady) => {
      // Given back before, and read again since: what is held now is another reading.
      if (jobs.get(job.id)?.version !== job.version) return
      jobs.delete(job.id)
      const key = keyOf(job.lane, job.tenant)
      const group = groups.get(key)
      group?.seqs.delete(job.seq)
      if (isReady) lower(job.lane, job.tenant, job.seq - 1)
      if (group?.seqs.size === 0 && !group.hasPassed) groups.delete(key)
    }
  }
}

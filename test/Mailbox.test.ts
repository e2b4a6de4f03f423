import { assert, describe, it } from "@effect/vitest"
import { Arbitrary, Schema } from "effect"
import * as Mailbox from "../src/Mailbox.ts"
import { defaultWeights, lanes, type Weights } from "../src/Priority.ts"

// ---- inputs ----

const between = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))

const weightsBetween = (minimum: number, maximum: number) => {
  const weight = between(minimum, maximum)
  return Schema.Struct({ critical: weight, high: weight, normal: weight, low: weight })
}

/** Small weights are as likely as large ones: they tie more often. */
const AnyWeights = Schema.Union([Schema.Literal("8:4:2:1"), weightsBetween(1, 3), weightsBetween(1, 20)])

const weightsOf = (weights: typeof AnyWeights.Type): Weights => weights === "8:4:2:1" ? defaultWeights : weights

const Lane = between(0, 3)
const Tenant = between(0, 5)
const Offer = Schema.TaggedStruct("Offer", {
  lane: Lane,
  tenant: Tenant,
  count: between(1, 6),
  lateness: between(0, 9)
})
/** Fills lanes, a bit mask, up to 30 jobs. */
const Flood = Schema.TaggedStruct("Flood", { lanes: between(0, 15) })
const Take = Schema.TaggedStruct("Take", { count: between(1, 12) })
const Remove = Schema.TaggedStruct("Remove", { nth: between(0, 99) })
/** Which lanes, tenants and job types a limit holds back from now on, as bit masks. */
const Hold = Schema.TaggedStruct("Hold", { lanes: between(0, 15), tenants: between(0, 63), types: between(0, 7) })

type Command =
  | typeof Offer.Type
  | typeof Flood.Type
  | typeof Take.Type
  | typeof Remove.Type
  | typeof Hold.Type
  | { readonly _tag: "Reweigh"; readonly weights: Weights }

const arrivals = Schema.Union([Offer, Take, Flood])
const cancels = Schema.Union([Offer, Take, Flood, Remove])
const everything = Schema.Union([Offer, Take, Flood, Remove, Hold])
const commands = <S extends Schema.Codec<Command>>(command: S) => Arbitrary.array(Arbitrary.schema(command))
const thorough = { arbitrary: { runs: 300, size: 120 } }

// ---- runs ----

interface Job extends Mailbox.Item {
  readonly type: number
}

interface Limits {
  readonly isRunnable: (job: Job) => boolean
  readonly isTenantRunnable: (tenantId: string) => boolean
}

type Event =
  | { readonly _tag: "Arrived"; readonly job: Job }
  | { readonly _tag: "Removed"; readonly job: Job }
  | { readonly _tag: "Asked"; readonly job: Job | undefined; readonly limits: Limits | undefined }
  | { readonly _tag: "Reweighed" }

const noHold: typeof Hold.Type = { _tag: "Hold", lanes: 0, tenants: 0, types: 0 }

const limitsOf = (hold: typeof Hold.Type): Limits | undefined =>
  hold === noHold ? undefined : {
    isRunnable: (job) => (hold.lanes & (1 << job.lane)) === 0 && (hold.types & (1 << job.type)) === 0,
    isTenantRunnable: (tenantId) => (hold.tenants & (1 << Number(tenantId))) === 0
  }

type Scheduler = Pick<Mailbox.Mailbox<Job>, "offer" | "take" | "remove" | "setWeights">

/** Runs the commands, then lets go of all limits and takes what is left. */
const run = (
  scheduler: Omit<Scheduler, "setWeights"> & Partial<Scheduler>,
  input: ReadonlyArray<Command>
): ReadonlyArray<Event> => {
  const events: Array<Event> = []
  const present = new Map<string, Job>()
  let arrived = 0
  let hold = noHold

  const offer = (lane: number, tenant: number, lateness: number) => {
    const id = ++arrived
    const job = { id: `job-${id}`, lane, tenantId: `${tenant}`, seq: id * 10 - lateness * 25, type: id % 3 }
    scheduler.offer(job)
    present.set(job.id, job)
    events.push({ _tag: "Arrived", job })
  }
  const take = () => {
    const limits = limitsOf(hold)
    const job = scheduler.take(limits?.isRunnable, limits?.isTenantRunnable)
    if (job !== undefined) present.delete(job.id)
    events.push({ _tag: "Asked", job, limits })
    return job
  }

  for (const command of input) {
    switch (command._tag) {
      case "Offer": {
        for (let n = 0; n < command.count; n++) offer(command.lane, command.tenant, command.lateness)
        break
      }
      case "Flood": {
        for (const { index } of lanes) {
          if ((command.lanes & (1 << index)) === 0) continue
          for (let n = Array.from(present.values()).filter((job) => job.lane === index).length; n < 30; n++) {
            offer(index, n % 6, 0)
          }
        }
        break
      }
      case "Take": {
        for (let n = 0; n < command.count; n++) take()
        break
      }
      case "Remove": {
        const job = Array.from(present.values())[command.nth % Math.max(1, present.size)]
        if (job === undefined) break
        assert.strictEqual(scheduler.remove(job.id), job)
        present.delete(job.id)
        events.push({ _tag: "Removed", job })
        break
      }
      case "Hold": {
        hold = command
        break
      }
      case "Reweigh": {
        scheduler.setWeights?.(command.weights)
        events.push({ _tag: "Reweighed" })
        break
      }
    }
  }
  hold = noHold
  while (take() !== undefined);
  return events
}

const runMailbox = (weights: Weights, input: ReadonlyArray<Command>) =>
  run(Mailbox.make<Job>({ weights, capacityPerLane: 100_000 }), input)

// ---- judging a run by its events alone ----

const isRunnable = (job: Job, limits: Limits | undefined) =>
  limits === undefined || (limits.isTenantRunnable(job.tenantId) && limits.isRunnable(job))

/** Walks through the events other than arrivals, with the jobs that were there just before each. */
const walk = (
  events: ReadonlyArray<Event>,
  visit: (event: Exclude<Event, { readonly _tag: "Arrived" }>, present: ReadonlyArray<Job>) => void
): void => {
  const present = new Map<string, Job>()
  for (const event of events) {
    if (event._tag === "Arrived") present.set(event.job.id, event.job)
    else {
      visit(event, Array.from(present.values()))
      if (event._tag !== "Reweighed" && event.job !== undefined) present.delete(event.job.id)
    }
  }
}

/**
 * For each lane the most starts, its own included, from having a runnable job to starting one. Weights that change begin
 * a new count.
 */
const longestWaits = (events: ReadonlyArray<Event>): ReadonlyArray<number> => {
  const waits = [0, 0, 0, 0]
  const longest = [0, 0, 0, 0]
  walk(events, (event, present) => {
    if (event._tag === "Reweighed") {
      waits.fill(0)
      longest.fill(0)
    } else if (event.job !== undefined) {
      const { lane } = event.job
      if (event._tag === "Asked") {
        for (const waiting of new Set(present.filter((job) => isRunnable(job, event.limits)).map((job) => job.lane))) {
          longest[waiting] = Math.max(longest[waiting]!, ++waits[waiting]!)
        }
        waits[lane] = 0
      }
      if (present.filter((job) => job.lane === lane).length === 1) waits[lane] = 0
    }
  })
  return longest
}

const assertBounded = (weights: Weights, waits: ReadonlyArray<number>) => {
  const total = weights.critical + weights.high + weights.normal + weights.low
  for (const { index, name } of lanes) {
    const w = weights[name]
    const tight = lanes.reduce((sum, lane) => lane.name === name ? sum : sum + Math.ceil(weights[lane.name] / w), 1)
    assert.isAtMost(waits[index]!, tight, `${name}: the bound of the docstring`)
    assert.isAtMost(waits[index]!, total - w + 1, `${name}: guarantee 6`)
  }
}

/** How often a tenant with a runnable job was passed by as many starts of its lane as the lane had tenants when its wait began. */
const missedTurns = (events: ReadonlyArray<Event>): number => {
  const waiting = new Map<string, { readonly passed: number; readonly tenants: number }>()
  let missed = 0
  walk(events, (event, present) => {
    if (event._tag === "Reweighed" || event.job === undefined) return
    const { job } = event
    const key = (tenantId: string) => `${job.lane}/${tenantId}`
    const inLane = present.filter((other) => other.lane === job.lane)
    if (inLane.filter((other) => other.tenantId === job.tenantId).length === 1) waiting.delete(key(job.tenantId))
    if (event._tag === "Removed") return
    const tenants = new Set(inLane.map((other) => other.tenantId))
    const runnable = new Set(inLane.filter((other) => isRunnable(other, event.limits)).map((other) => other.tenantId))
    for (const tenantId of tenants) {
      if (tenantId === job.tenantId || !runnable.has(tenantId)) waiting.delete(key(tenantId))
      else {
        const wait = waiting.get(key(tenantId)) ?? { passed: 0, tenants: tenants.size }
        waiting.set(key(tenantId), { ...wait, passed: wait.passed + 1 })
        if (wait.passed + 1 >= wait.tenants) missed++
      }
    }
  })
  return missed
}

// ---- a naive model: absolute tags, everything searched for ----

const makeModel = (weights: Weights): Omit<Scheduler, "setWeights"> => {
  const unit = BigInt(weights.critical * weights.high * weights.normal * weights.low)
  const jobs: Array<Job> = []
  const state = lanes.map(({ index, name }) => ({
    index,
    cost: unit / BigInt(weights[name]),
    tag: 0n,
    since: 0,
    tenants: Array<string>()
  }))
  let virtualTime = 0n
  let starts = 0
  const becomeHead = (lane: typeof state[number]) => {
    lane.tag = virtualTime + lane.cost
    lane.since = starts
  }
  const drop = (job: Job) => {
    jobs.splice(jobs.indexOf(job), 1)
    const lane = state[job.lane]!
    const isLast = !jobs.some((other) => other.lane === job.lane && other.tenantId === job.tenantId)
    if (isLast) lane.tenants = lane.tenants.filter((tenantId) => tenantId !== job.tenantId)
  }
  return {
    offer(job) {
      const lane = state[job.lane]!
      if (!jobs.some((other) => other.lane === job.lane)) becomeHead(lane)
      if (!lane.tenants.includes(job.tenantId)) lane.tenants.push(job.tenantId)
      jobs.push(job)
      return "accepted"
    },
    take(isJobRunnable = () => true, isTenantRunnable = () => true) {
      const runnable = jobs.filter((job) => isTenantRunnable(job.tenantId) && isJobRunnable(job))
      const due = (lane: typeof state[number]) => lane.tag > virtualTime ? lane.tag : virtualTime
      const lane = state
        .filter(({ index }) => runnable.some((job) => job.lane === index))
        .sort((a, b) => Number(due(a) - due(b)) || a.since - b.since || a.index - b.index)[0]
      if (lane === undefined) return undefined
      const inLane = runnable.filter((job) => job.lane === lane.index)
      const tenantId = lane.tenants.find((tenantId) => inLane.some((job) => job.tenantId === tenantId))
      const job = inLane.filter((job) => job.tenantId === tenantId).sort((a, b) => a.seq - b.seq)[0]!
      lane.tenants.sort((a, b) => Number(a === tenantId) - Number(b === tenantId))
      drop(job)
      virtualTime = due(lane)
      starts++
      becomeHead(lane)
      return job
    },
    remove(id) {
      const job = jobs.find((job) => job.id === id)
      if (job !== undefined) drop(job)
      return job
    }
  }
}

/** The lanes in the order of Golestani's paper, which stamps every job when it arrives. Ties: who became the head first. */
const lanesOfPaper = (weights: Weights, events: ReadonlyArray<Event>): ReadonlyArray<number | undefined> => {
  const unit = BigInt(weights.critical * weights.high * weights.normal * weights.low)
  const tags = lanes.map(() => Array<bigint>())
  const last = [0n, 0n, 0n, 0n]
  const since = [0, 0, 0, 0]
  let virtualTime = 0n
  let starts = 0
  return events.flatMap((event) => {
    if (event._tag === "Arrived") {
      const { lane } = event.job
      if (tags[lane]!.length === 0) since[lane] = starts
      last[lane] = (last[lane]! > virtualTime ? last[lane]! : virtualTime) + unit / BigInt(weights[lanes[lane]!.name])
      tags[lane]!.push(last[lane])
      return []
    }
    if (event._tag !== "Asked") return []
    const first = lanes
      .map(({ index }) => index)
      .filter((lane) => tags[lane]!.length > 0)
      .sort((a, b) => Number(tags[a]![0]! - tags[b]![0]!) || since[a]! - since[b]! || a - b)[0]
    if (first === undefined) return [undefined]
    virtualTime = tags[first]!.shift()!
    since[first] = ++starts
    return [first]
  })
}

// ---- examples ----

const job = (id: string, lane: number, options: { readonly tenantId?: string; readonly seq?: number } = {}): Job => ({
  id,
  lane,
  tenantId: options.tenantId ?? "a",
  seq: options.seq ?? 0,
  type: 0
})

const makeDefault = (capacityPerLane = 1000) => Mailbox.make<Job>({ weights: defaultWeights, capacityPerLane })

const takeIds = (mailbox: Mailbox.Mailbox<Job>, count: number) =>
  Array.from({ length: count }, () => mailbox.take()?.id)

describe("Mailbox: lanes", () => {
  it.prop(
    "no arrivals elsewhere make a lane wait past its bound, also when lanes fall empty and come back",
    [AnyWeights, commands(arrivals)],
    ([weights, input]) => assertBounded(weightsOf(weights), longestWaits(runMailbox(weightsOf(weights), input))),
    thorough
  )

  it.prop(
    "cancelling jobs, even whole lanes, makes no other lane wait past its bound",
    [AnyWeights, commands(cancels)],
    ([weights, input]) => assertBounded(weightsOf(weights), longestWaits(runMailbox(weightsOf(weights), input))),
    thorough
  )

  it.prop(
    "lanes, tenants and types held back by limits and let go again break no bound of the runnable ones",
    [AnyWeights, commands(everything)],
    ([weights, input]) => assertBounded(weightsOf(weights), longestWaits(runMailbox(weightsOf(weights), input))),
    thorough
  )

  it.prop(
    "the order of lanes is that of the paper, which stamps every job when it arrives",
    [AnyWeights, commands(arrivals)],
    ([weights, input]) => {
      const events = runMailbox(weightsOf(weights), input)
      const order = events.flatMap((event) => event._tag === "Asked" ? [event.job?.lane] : [])
      assert.deepStrictEqual(order, lanesOfPaper(weightsOf(weights), events))
    },
    thorough
  )

  it.prop(
    "under saturation each W starts are shared exactly by weight, from the first on",
    [weightsBetween(1, 20), between(1, 5)],
    ([weights, rounds]) => {
      const mailbox = Mailbox.make<Job>({ weights, capacityPerLane: 200 })
      for (const { index } of lanes) {
        for (let n = 0; n < 101; n++) mailbox.offer(job(`${index}-${n}`, index, { seq: n, tenantId: `${n % 7}` }))
      }
      const total = weights.critical + weights.high + weights.normal + weights.low
      const started = [0, 0, 0, 0]
      for (let n = 0; n < rounds * total; n++) started[mailbox.take()!.lane]!++
      assert.deepStrictEqual(started, lanes.map(({ name }) => rounds * weights[name]))
    }
  )

  it("a lane that arrives in a tie is not passed at both ends of its wait", () => {
    const mailbox = makeDefault()
    for (const { index } of lanes.slice(0, 3)) {
      for (let n = 0; n < 40; n++) mailbox.offer(job(`${index}-${n}`, index, { seq: n }))
    }
    const waits = Array.from({ length: 28 }, (_, starts) => {
      mailbox.offer(job(`low-${starts}`, 3, { seq: starts }))
      let wait = 1
      while (mailbox.take()!.lane !== 3) wait++
      return wait
    })
    assert.isAtMost(Math.max(...waits), 15)

    const equal = Mailbox.make<Job>({
      weights: { critical: 1, high: 1, normal: 1, low: 1 },
      capacityPerLane: 100
    })
    for (let n = 0; n < 9; n++) equal.offer(job(`${n}`, n % 3, { seq: n }))
    assert.strictEqual(equal.take()!.lane, 0)
    equal.offer(job("late", 3))
    assert.deepStrictEqual(Array.from({ length: 4 }, () => equal.take()!.lane), [1, 2, 0, 3])
  })

  it("a lane held back for long starts one job at once when it is let go, not all that it missed", () => {
    const mailbox = makeDefault()
    for (let n = 0; n < 100; n++) {
      mailbox.offer(job(`critical-${n}`, 0, { seq: n }))
      mailbox.offer(job(`low-${n}`, 3, { seq: n }))
    }
    for (let n = 0; n < 50; n++) assert.strictEqual(mailbox.take((job) => job.lane === 3)!.lane, 3)
    assert.deepStrictEqual(
      Array.from({ length: 18 }, () => mailbox.take()!.lane),
      [0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    )
  })

  it.prop(
    "new weights hold from the next start on, whatever was under way",
    [AnyWeights, AnyWeights, commands(everything), commands(everything)],
    ([before, after, first, second]) => {
      const reweigh: Command = { _tag: "Reweigh", weights: weightsOf(after) }
      assertBounded(weightsOf(after), longestWaits(runMailbox(weightsOf(before), [...first, reweigh, ...second])))
    },
    thorough
  )

  it("setting the weights that are set already changes nothing", () => {
    const weights = { critical: 997, high: 991, normal: 983, low: 977 }
    const touched = Mailbox.make<Job>({ weights, capacityPerLane: 1000 })
    const untouched = Mailbox.make<Job>({ weights, capacityPerLane: 1000 })
    for (let n = 0; n < 2000; n++) {
      touched.offer(job(`${n}`, n % 4, { seq: n }))
      untouched.offer(job(`${n}`, n % 4, { seq: n }))
    }
    for (let n = 0; n < 2000; n++) {
      touched.setWeights(weights)
      assert.strictEqual(touched.take()!.id, untouched.take()!.id)
    }
  })
})

describe("Mailbox: jobs", () => {
  it.prop(
    "no job is lost and none is given twice, whatever is held back, cancelled or late",
    [AnyWeights, commands(everything)],
    ([weights, input]) => {
      const events = runMailbox(weightsOf(weights), input)
      const arrived = events.flatMap((event) => event._tag === "Arrived" ? [event.job.id] : [])
      const gone = events.flatMap((event) =>
        (event._tag === "Asked" || event._tag === "Removed") && event.job !== undefined ? [event.job.id] : []
      )
      assert.deepStrictEqual(gone.toSorted(), arrived.toSorted())
    },
    thorough
  )

  it.prop(
    "a job that a limit holds back is never given, and a runnable one never left lying",
    [AnyWeights, commands(everything)],
    ([weights, input]) =>
      walk(runMailbox(weightsOf(weights), input), (event, present) => {
        if (event._tag !== "Asked") return
        if (event.job === undefined) assert.isFalse(present.some((job) => isRunnable(job, event.limits)))
        else assert.isTrue(isRunnable(event.job, event.limits))
      }),
    thorough
  )

  it.prop(
    "no job overtakes an older runnable one of its lane and tenant, also when it comes late or comes back",
    [AnyWeights, commands(everything)],
    ([weights, input]) =>
      walk(runMailbox(weightsOf(weights), input), (event, present) => {
        if (event._tag !== "Asked" || event.job === undefined) return
        const { lane, seq, tenantId } = event.job
        const older = present.filter((job) => job.lane === lane && job.tenantId === tenantId && job.seq < seq)
        assert.isFalse(older.some((job) => isRunnable(job, event.limits)))
      }),
    thorough
  )

  it.prop(
    "every choice is that of a naive model that searches all jobs with absolute tags",
    [AnyWeights, commands(everything)],
    ([weights, input]) => {
      const choices = (events: ReadonlyArray<Event>) =>
        events.flatMap((event) => event._tag === "Asked" ? [event.job?.id] : [])
      assert.deepStrictEqual(
        choices(runMailbox(weightsOf(weights), input)),
        choices(run(makeModel(weightsOf(weights)), input))
      )
    },
    { arbitrary: { runs: 200, size: 60 } }
  )

  it("a job offered again while it is here is not run twice", () => {
    const mailbox = makeDefault()
    assert.strictEqual(mailbox.offer(job("1", 0)), "accepted")
    assert.strictEqual(mailbox.offer(job("1", 3, { tenantId: "b" })), "duplicate")
    assert.deepStrictEqual(takeIds(mailbox, 2), ["1", undefined])
    assert.strictEqual(mailbox.offer(job("1", 0)), "accepted")
  })

  it("a job that was cancelled or is unknown is not there to cancel, and a cancelled one never starts", () => {
    const mailbox = makeDefault()
    for (let n = 0; n < 5; n++) mailbox.offer(job(`${n}`, 2, { seq: 7 }))
    assert.strictEqual(mailbox.remove("3")?.id, "3")
    assert.isUndefined(mailbox.remove("3"))
    assert.isUndefined(mailbox.remove("unknown"))
    assert.deepStrictEqual(takeIds(mailbox, 5), ["0", "1", "2", "4", undefined])
  })

  it("a permit taken while answering is not taken for a job that does not start", () => {
    const mailbox = makeDefault()
    for (let n = 0; n < 20; n++) mailbox.offer(job(`${n}`, n % 4, { seq: n, tenantId: `${n % 3}` }))
    const permitted: Array<string> = []
    const started = Array.from({ length: 20 }, () =>
      mailbox.take((job) => {
        if (job.seq % 2 === 0) return false
        permitted.push(job.id)
        return true
      })?.id)
    assert.deepStrictEqual(started, [...permitted, ...Array(10).fill(undefined)])
    assert.strictEqual(mailbox.size, 10)
  })
})

describe("Mailbox: tenants", () => {
  it.prop(
    "no tenant is passed by others that hold more, leave and re-join, or are held back and let go",
    [AnyWeights, commands(everything)],
    ([weights, input]) => assert.strictEqual(missedTurns(runMailbox(weightsOf(weights), input)), 0),
    thorough
  )

  it.prop(
    "with T tenants backlogged in a lane each has one of any T starts of that lane",
    [between(1, 12), Lane, between(1, 6)],
    ([tenants, lane, rounds]) => {
      const mailbox = makeDefault()
      for (let n = 0; n < tenants * rounds; n++) {
        // Arriving in blocks: all jobs of a tenant before those of the next one.
        mailbox.offer(job(`${n}`, lane, { seq: n, tenantId: `${Math.floor(n / rounds)}` }))
        mailbox.offer(job(`other-${n}`, 3 - lane, { seq: n, tenantId: "0" }))
      }
      const turns = Array.from({ length: 2 * tenants * rounds }, () => mailbox.take()!)
        .filter((job) => job.lane === lane)
        .map((job) => job.tenantId)
      for (let from = 0; from + tenants <= turns.length; from++) {
        assert.strictEqual(new Set(turns.slice(from, from + tenants)).size, tenants)
      }
    }
  )

  it("a tenant gains nothing by running empty and re-joining", () => {
    const mailbox = makeDefault()
    for (let n = 0; n < 6; n++) {
      mailbox.offer(job(`a${n}`, 1, { seq: n, tenantId: "a" }))
      mailbox.offer(job(`b${n}`, 1, { seq: n, tenantId: "b" }))
    }
    mailbox.offer(job("c0", 1, { tenantId: "c" }))
    const turns = Array.from({ length: 9 }, (_, n) => {
      const taken = mailbox.take()!
      if (taken.tenantId === "c") mailbox.offer(job(`c${n + 1}`, 1, { tenantId: "c" }))
      return taken.tenantId
    })
    assert.deepStrictEqual(turns, ["a", "b", "c", "a", "b", "c", "a", "b", "c"])
  })

  it("a tenant held back keeps its turn, and one question passes over all its jobs", () => {
    const mailbox = makeDefault()
    for (let n = 0; n < 3; n++) {
      mailbox.offer(job(`a${n}`, 1, { seq: n, tenantId: "a" }))
      mailbox.offer(job(`b${n}`, 1, { seq: n, tenantId: "b" }))
    }
    const asked: Array<string> = []
    const onlyB = () => mailbox.take((job) => asked.push(job.id) > 0, (tenantId) => tenantId === "b")?.id
    assert.deepStrictEqual([onlyB(), onlyB()], ["b0", "b1"])
    assert.deepStrictEqual(asked, ["b0", "b1"])
    assert.deepStrictEqual(takeIds(mailbox, 5), ["a0", "b2", "a1", "a2", undefined])
  })
})

describe("Mailbox: room", () => {
  it.prop(
    "a full lane never takes another lane's room",
    [between(1, 20), Schema.Array(Schema.Union([Lane, Schema.Literal("take")]))],
    ([capacity, input]) => {
      const mailbox = makeDefault(capacity)
      const sizes = [0, 0, 0, 0]
      input.forEach((step, n) => {
        if (step === "take") {
          const taken = mailbox.take()
          if (taken !== undefined) sizes[taken.lane]!--
        } else {
          const offered = mailbox.offer(job(`${n}`, step, { seq: n }))
          assert.strictEqual(offered, sizes[step]! < capacity ? "accepted" : "full")
          if (offered === "accepted") sizes[step]!++
        }
        assert.deepStrictEqual(lanes.map(({ index }) => mailbox.sizeOf(index)), sizes)
        assert.deepStrictEqual(lanes.map(({ index }) => mailbox.room(index)), sizes.map((size) => capacity - size))
        assert.strictEqual(mailbox.size, sizes.reduce((a, b) => a + b))
      })
    },
    { arbitrary: { runs: 200, size: 200 } }
  )

  it("a job refused for want of room leaves no trace and is taken in later", () => {
    const mailbox = makeDefault(1)
    mailbox.offer(job("1", 3))
    assert.strictEqual(mailbox.offer(job("2", 3, { tenantId: "b" })), "full")
    assert.deepStrictEqual(mailbox.depth()[3], {
      lane: "low",
      size: 1,
      room: 0,
      tenants: [{ tenantId: "a", size: 1 }]
    })
    assert.deepStrictEqual(takeIds(mailbox, 2), ["1", undefined])
    assert.strictEqual(mailbox.offer(job("2", 3, { tenantId: "b" })), "accepted")
  })

  it("the depth names tenants in the order of their turns", () => {
    const mailbox = makeDefault(10)
    for (const tenantId of ["c", "a", "b", "a"]) {
      mailbox.offer(job(`${tenantId}${mailbox.size}`, 1, { seq: mailbox.size, tenantId }))
    }
    assert.deepStrictEqual(mailbox.depth()[1]!.tenants.map((tenant) => tenant.tenantId), ["c", "a", "b"])
    mailbox.take()
    mailbox.take()
    assert.deepStrictEqual(mailbox.depth()[1], {
      lane: "high",
      size: 2,
      room: 8,
      tenants: [{ tenantId: "b", size: 1 }, { tenantId: "a", size: 1 }]
    })
  })

  it("a tenant whose last job was cancelled or has started is not kept", () => {
    const mailbox = makeDefault()
    for (const tenantId of ["a", "b", "c"]) mailbox.offer(job(tenantId, 1, { tenantId }))
    mailbox.remove("b")
    mailbox.take()
    assert.deepStrictEqual(mailbox.depth()[1]!.tenants, [{ tenantId: "c", size: 1 }])
    mailbox.remove("c")
    assert.deepStrictEqual(mailbox.depth().map((lane) => lane.tenants), [[], [], [], []])
  })

  it("a cleared mailbox gives back what it held, and holds none of it", () => {
    const mailbox = makeDefault()
    for (let n = 0; n < 10; n++) mailbox.offer(job(`${n}`, n % 4, { seq: n, tenantId: `${n % 3}` }))
    mailbox.take()
    assert.strictEqual(mailbox.clear().length, 9)
    assert.deepStrictEqual([mailbox.size, mailbox.take(), mailbox.clear().length], [0, undefined, 0])
    assert.strictEqual(mailbox.offer(job("1", 1)), "accepted")
  })

  it("weights that starve a lane, a mailbox without room and a lane that does not exist are defects", () => {
    assert.throws(() => Mailbox.make({ weights: { ...defaultWeights, low: 0 }, capacityPerLane: 1 }))
    assert.throws(() => makeDefault().setWeights({ ...defaultWeights, low: 0.5 }))
    for (const capacity of [0, -1, 1.5, NaN]) assert.throws(() => makeDefault(capacity), RangeError)
    assert.throws(() => makeDefault().offer(job("1", 4)), RangeError)
  })
})

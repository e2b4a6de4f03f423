/**
 * The owner's bookkeeping against the rows of a store in memory, under any interleaving of intakes with commits out of order, wakes that
 * come late or never, retries, reruns and sweeps.
 */
import { assert, describe, it } from "@effect/vitest"
import { Arbitrary, Schema } from "effect"
import * as Held from "../../src/internal/held.ts"
import { intake } from "../../src/internal/memory/reading.ts"
import { fenceKey, type Row, Tables } from "../../src/internal/memory/tables.ts"
import type { JobId } from "../../src/JobId.ts"
import { type Demand, type Intake, type Ready, type ReadyJob, tenantKey } from "../../src/JobStore.ts"
import { newJob } from "../utils/storeFixture.ts"

const owner = { queueId: 1, partition: 0, epoch: 1 }

/** A partition: its rows, what the owner holds of them, and what is on its way. `atMost`: of how many tenants it remembers what it was told. */
const makeWorld = (capacity: number, atMost?: number) => {
  const tables = new Tables()
  tables.fences.set(fenceKey(owner), { epoch: owner.epoch, owner: "test", isCareful: false })
  const held = Held.make(4, atMost)
  const inHand = new Map<JobId, ReadyJob>()
  const uncommitted: Array<Row> = []
  const wakes: Array<Ready> = []
  const everTaken = new Set<string>()
  const lost = new Set<number>()
  const finished = new Set<JobId>()
  let reading: { readonly demand: Demand; readonly answer: Intake } | undefined

  const ready = ({ lane, seq, tenant }: Row): Ready => ({ queueId: 1, partition: 0, lane, tenant, seq })
  const sizeOf = (lane: number) => [...inHand.values()].filter((job) => job.lane === lane).length
  const nth = <A>(items: Iterable<A>, n: number): A | undefined => {
    const all = [...items]
    return all[n % Math.max(all.length, 1)]
  }

  const world = {
    tables,
    held,
    inHand,
    everTaken,
    /** A submission draws its seq, but is not visible yet. */
    begin: (lane: number, tenant: number) => {
      uncommitted.push({
        ...newJob({ queueId: owner.queueId, lane, tenant: tenantKey(`t${tenant}`) }),
        state: "queued",
        seq: tables.nextSeq(),
        version: 0,
        attempt: 0,
        crashes: 0,
        reruns: 0,
        batchId: undefined,
        createdAt: 0,
        history: []
      })
    },
    /** Any open submission commits; its wake is on its way, or lost. */
    commit: (n: number, isLost: boolean) => {
      const row = nth(uncommitted, n)
      if (row === undefined) return
      uncommitted.splice(uncommitted.indexOf(row), 1)
      tables.put(row)
      // Rows of a store are in the order of their seq, whenever they were committed.
      const sorted = [...tables.live.entries()].toSorted(([, left], [, right]) => left.seq - right.seq)
      tables.live.clear()
      for (const [id, live] of sorted) tables.live.set(id, live)
      if (isLost) lost.add(row.seq)
      else wakes.push(ready(row))
    },
    /** A wake arrives. */
    deliver: (n: number) => {
      const wake = nth(wakes, n)
      if (wake === undefined) return
      wakes.splice(wakes.indexOf(wake), 1)
      held.told(wake)
    },
    /** A submission that is stored and told of. */
    store: (lane: number, tenant: number) => {
      world.begin(lane, tenant)
      world.commit(uncommitted.length - 1, false)
      world.deliver(wakes.length - 1)
    },
    /** A wake arrives with its job in hand: taken, if nothing is to be read before it. */
    give: (n: number) => {
      const wake = nth(wakes, n)
      const row = wake === undefined ? undefined : [...tables.live.values()].find(({ seq }) => seq === wake.seq)
      if (wake === undefined || row === undefined || row.state !== "queued" || row.version > 0) return
      wakes.splice(wakes.indexOf(wake), 1)
      const { attempt, context, crashes, createdAt, expiresAt, id, lane, payload, seq, tenant, type, version } = row
      const job: ReadyJob = {
        id,
        lane,
        tenant,
        seq,
        version,
        type,
        attempt,
        crashes,
        reruns: 0,
        createdAt,
        expiresAt,
        isLarge: false,
        payload,
        context
      }
      if (!held.given(job)) return held.told(wake)
      const older = [...tables.live.values()].filter((other) =>
        other.state === "queued" && other.lane === lane && other.tenant === tenant && other.seq < seq
      )
      for (const other of older) {
        assert.isTrue(
          inHand.has(other.id) || wakes.some((wake) => wake.seq === other.seq) || lost.has(other.seq),
          "it passed a job that was told of and not read"
        )
      }
      assert.isFalse(inHand.has(job.id), "a job that is held was given again")
      inHand.set(job.id, job)
      everTaken.add(job.id)
    },
    /** Sends an intake: what it reads is fixed now. One at a time. */
    ask: (): boolean => {
      if (reading !== undefined) return true
      const demand = held.demand([0, 1, 2, 3].map((lane) => Math.max(capacity - sizeOf(lane), 0)))
      if (demand === undefined) return false
      reading = { demand, answer: intake(tables, owner, demand) }
      return true
    },
    /** Its answer arrives. */
    take: () => {
      if (reading === undefined) return
      const { answer, demand } = reading
      reading = undefined
      for (const job of held.took(demand, answer)) {
        assert.isFalse(inHand.has(job.id), "a job that is held was given again")
        assert.isFalse(finished.has(job.id), "a job that has ended was given again")
        inHand.set(job.id, job)
        everTaken.add(job.id)
      }
    },
    /** A held job is done with: its row goes. */
    finish: (n: number) => {
      const job = nth(inHand.values(), n)
      if (job === undefined) return
      inHand.delete(job.id)
      tables.live.delete(job.id)
      finished.add(job.id)
      held.release(job, false)
    },
    /** A held job was rolled back: its row is as it was, or was moved by somebody. */
    rerun: (n: number, isMoved: boolean) => {
      const job = nth(inHand.values(), n)
      if (job === undefined) return
      const row = tables.live.get(job.id)
      if (row !== undefined && isMoved) tables.put({ ...row, version: row.version + 1 })
      inHand.delete(job.id)
      held.release(job, true)
    },
    /** A held job failed: due again later. */
    retry: (n: number) => {
      const job = nth(inHand.values(), n)
      const row = job === undefined ? undefined : tables.live.get(job.id)
      if (job === undefined || row === undefined) return
      inHand.delete(job.id)
      tables.put({ ...row, state: "retrying", dueAt: 1, version: row.version + 1 })
      held.release(job, false)
    },
    /** Later has come: the row keeps its old seq. */
    promote: (n: number) => {
      const row = nth([...tables.live.values()].filter(({ state }) => state === "retrying"), n)
      if (row === undefined) return
      tables.put({ ...row, state: "queued", dueAt: undefined, version: row.version + 1 })
      held.told(ready(row))
    },
    sweep: () => held.sweep(),
    /** Everything on its way arrives, jobs are done one after the other: what is never given? */
    drain: () => {
      world.take()
      while (uncommitted.length > 0) world.commit(0, false)
      while (wakes.length > 0) world.deliver(0)
      while ([...tables.live.values()].some(({ state }) => state === "retrying")) world.promote(0)
      for (let round = 0; round < 10_000; round++) {
        const isAsking = world.ask()
        world.take()
        if (inHand.size === 0 && !isAsking) break
        world.finish(round)
      }
      return [...tables.live.values()].map(({ lane, seq, tenant }) => ({ lane, seq, tenant }))
    }
  }
  return world
}

const between = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))
const any = between(0, 999)

const Begin = Schema.TaggedStruct("Begin", { lane: between(0, 3), tenant: between(0, 4) })
const Commit = Schema.TaggedStruct("Commit", { n: any })
const Lose = Schema.TaggedStruct("Lose", { n: any })
const Deliver = Schema.TaggedStruct("Deliver", { n: any })
const Give = Schema.TaggedStruct("Give", { n: any })
const Ask = Schema.TaggedStruct("Ask", {})
const Take = Schema.TaggedStruct("Take", {})
const Finish = Schema.TaggedStruct("Finish", { n: any })
const Rerun = Schema.TaggedStruct("Rerun", { n: any, isMoved: Schema.Boolean })
const Retry = Schema.TaggedStruct("Retry", { n: any })
const Promote = Schema.TaggedStruct("Promote", { n: any })
const Sweep = Schema.TaggedStruct("Sweep", {})
/** Several at once, committed and told of. */
const Flood = Schema.TaggedStruct("Flood", { lane: between(0, 3), tenant: between(0, 4), count: between(1, 12) })

const Told = Schema.Union([Begin, Flood, Commit, Deliver, Give, Ask, Take, Finish, Rerun, Retry, Promote])
const All = Schema.Union([Begin, Flood, Commit, Lose, Deliver, Give, Ask, Take, Finish, Rerun, Retry, Promote, Sweep])
type Command = typeof All.Type

const run = (capacity: number, atMost: number, commands: ReadonlyArray<Command>) => {
  const world = makeWorld(capacity, atMost)
  for (const command of commands) {
    switch (command._tag) {
      case "Begin":
        world.begin(command.lane, command.tenant)
        break
      case "Flood":
        for (let n = 0; n < command.count; n++) {
          world.begin(command.lane, command.tenant)
          world.commit(n, false)
          world.deliver(n)
        }
        break
      case "Commit":
        world.commit(command.n, false)
        break
      case "Lose":
        world.commit(command.n, true)
        break
      case "Deliver":
        world.deliver(command.n)
        break
      case "Give":
        world.give(command.n)
        break
      case "Ask":
        world.ask()
        break
      case "Take":
        world.take()
        break
      case "Finish":
        world.finish(command.n)
        break
      case "Rerun":
        world.rerun(command.n, command.isMoved)
        break
      case "Retry":
        world.retry(command.n)
        break
      case "Promote":
        world.promote(command.n)
        break
      case "Sweep":
        world.sweep()
    }
  }
  return world
}

const many = <S extends Schema.Codec<Command>>(command: S) =>
  Arbitrary.array(Arbitrary.schema(command), { minLength: 0, maxLength: 120 })

const thorough = { arbitrary: { runs: 300, size: 120 } }

describe("what the owner holds", () => {
  it.prop(
    "no row is given twice while it is held, and every ready row is given in the end, whatever was told late and in whatever order",
    [between(1, 8), between(0, 5), many(Told)],
    ([capacity, atMost, commands]) => {
      assert.deepStrictEqual(run(capacity, atMost, commands).drain(), [])
    },
    thorough
  )

  it.prop(
    "rows whose wakes were lost are given after a sweep",
    [between(1, 8), between(0, 5), many(All)],
    ([capacity, atMost, commands]) => {
      const world = run(capacity, atMost, commands)
      world.drain()
      world.sweep()
      assert.deepStrictEqual(world.drain(), [])
    },
    thorough
  )

  it("more tenants than one demand visits are all reached", () => {
    const world = makeWorld(1_000)
    for (let tenant = 0; tenant < 300; tenant++) {
      world.store(2, tenant)
    }
    assert.deepStrictEqual(world.drain(), [])
    assert.strictEqual(world.everTaken.size, 300)
  })

  it("a tenant whose rows are all held does not hide the tenants after it", () => {
    const world = makeWorld(3)
    for (const tenant of [0, 0, 1]) {
      world.store(2, tenant)
    }
    world.ask()
    world.take()
    // Nothing is finished: the room that is left goes to the one not read yet.
    world.ask()
    world.take()
    assert.strictEqual(world.inHand.size, 3)
  })

  it("asks for nothing when everything is held, and again when something is told", () => {
    const world = makeWorld(10)
    world.store(1, 0)
    while (world.ask()) world.take()
    assert.isUndefined(world.held.demand([10, 9, 10, 10]))
    world.begin(1, 0)
    world.commit(0, false)
    assert.isUndefined(world.held.demand([10, 9, 10, 10]))
    world.deliver(0)
    assert.isDefined(world.held.demand([10, 9, 10, 10]))
  })

  it("more tenants than one answer names are read to their end, and then it asks for nothing", () => {
    const world = makeWorld(1_000)
    for (let tenant = 0; tenant < 200; tenant++) {
      world.store(2, tenant)
    }
    let turns = 0
    while (world.ask()) {
      world.take()
      assert.isBelow(++turns, 50)
    }
    assert.strictEqual(world.inHand.size, 200)
  })

  it("a tenant that is told of while another's flood fills its lane is asked for, in the lane's reserve", () => {
    const world = makeWorld(10)
    for (let n = 0; n < 30; n++) {
      world.store(2, 0)
    }
    while (world.ask()) world.take()
    world.begin(2, 1)
    world.commit(0, false)
    assert.isUndefined(world.held.demand([0, 0, 0, 0], [64, 64, 64, 64]))
    world.deliver(0)
    const demand = world.held.demand([0, 0, 0, 0], [64, 64, 64, 64])!
    const found = world.held.took(demand, intake(world.tables, owner, demand))
    assert.deepStrictEqual(found.map(({ tenant }) => tenant), [tenantKey("t1")])
    assert.isUndefined(world.held.demand([0, 0, 0, 0], [64, 64, 64, 64]))
  })

  it("a sweep finds a row that became visible late, below one that is still held, and asks for no held one", () => {
    const world = makeWorld(10)
    world.begin(2, 0)
    world.begin(2, 0)
    // The second one first; the first one's wake is lost.
    world.commit(1, false)
    world.deliver(0)
    while (world.ask()) world.take()
    world.commit(0, true)
    assert.isFalse(world.ask())
    world.sweep()
    assert.deepStrictEqual(world.held.demand([10, 10, 9, 10])?.held, [2])
    while (world.ask()) world.take()
    assert.deepStrictEqual([...world.inHand.values()].map(({ seq }) => seq), [2, 1])
  })

  it("an answer that names a held row again gives it to nobody", () => {
    const world = makeWorld(10)
    world.begin(2, 0)
    world.commit(0, false)
    const demand = world.held.demand([10, 10, 10, 10])!
    const answer = intake(world.tables, owner, demand)
    assert.strictEqual(world.held.took(demand, answer).length, 1)
    assert.deepStrictEqual(world.held.took(demand, answer), [])
  })

  it("a job that is handed over while a sweep reads, and has ended when the answer names it, is not given again", () => {
    const world = makeWorld(10)
    while (world.ask()) world.take()
    world.begin(2, 0)
    world.commit(0, false)
    world.sweep()
    world.ask()
    world.give(0)
    assert.strictEqual(world.inHand.size, 1)
    world.finish(0)
    world.take()
    assert.strictEqual(world.inHand.size, 0)
  })

  it("asks for nothing of a lane without room", () => {
    const held = Held.make(4)
    assert.deepStrictEqual(held.demand([0, 5, 0, 0])?.lanes.map(({ lane }) => lane), [1])
    assert.isUndefined(held.demand([0, 0, 0, 0]))
  })

  const flood = (held: Held.Held) => {
    for (let n = 0; n < 50_000; n++) {
      held.told({ queueId: 1, partition: 0, lane: n % 4, tenant: tenantKey(`t${n}`), seq: n + 1 })
    }
  }

  it("what is told of fifty thousand tenants while nothing is asked is not remembered one by one", () => {
    const held = Held.make(4)
    flood(held)
    assert.isAtMost(held.remembered, 4 * 1_000)
    // Every lane is full: it is called, and asks for nothing.
    assert.isUndefined(held.demand([0, 0, 0, 0]))
    flood(held)
    assert.isAtMost(held.remembered, 4 * 1_000)
  })

  it("nor is it while an answer is on its way, or never comes", () => {
    const held = Held.make(4)
    const demand = held.demand([10, 10, 10, 10])!
    flood(held)
    assert.isAtMost(held.remembered, 4 * 2_000)
    assert.strictEqual(held.demand([0, 0, 0, 0]), undefined)
    flood(held)
    assert.isAtMost(held.remembered, 4 * 1_000)
    held.took(demand, { jobs: [], visited: [] })
    assert.isAtMost(held.remembered, 4 * 1_000)
  })

  it("jobs that are handed over while a sweep's answer is on its way are remembered up to a number, and then read", () => {
    const world = makeWorld(10_000)
    while (world.ask()) world.take()
    world.held.sweep()
    world.ask()
    for (let n = 0; n < 2_000; n++) {
      world.begin(2, n)
      world.commit(0, false)
      world.give(0)
    }
    assert.strictEqual(world.inHand.size, 1_000)
    assert.isAtMost(world.held.remembered, 2 * 1_000 + 1_000)
    assert.deepStrictEqual(world.drain(), [])
  })

  it("a row of a tenant too many, committed late and told of while an older answer is on its way, is not passed over", () => {
    const world = makeWorld(10, 1)
    world.begin(2, 0)
    world.begin(2, 0)
    // The second one is there and will be read; the first one comes after the snapshot, when another tenant has been told of.
    world.commit(1, true)
    world.ask()
    world.begin(2, 1)
    world.commit(1, false)
    world.deliver(0)
    world.commit(0, false)
    world.deliver(0)
    world.take()
    while (world.ask()) world.take()
    assert.deepStrictEqual(new Set([...world.inHand.values()].map(({ seq }) => seq)), new Set([1, 2, 3]))
  })

  it("forgets a job when its outcome is confirmed: nothing is left of a thousand", () => {
    const world = makeWorld(50)
    for (let n = 0; n < 1_000; n++) {
      world.store(n % 4, n % 7)
    }
    assert.deepStrictEqual(world.drain(), [])
    assert.strictEqual(world.held.size, 0)
    while (world.ask()) world.take()
    assert.isUndefined(world.held.demand([1, 1, 1, 1]))
  })
})

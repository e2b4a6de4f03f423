/**
 * Suspects of several partitions in one process: alone, one after the other, and never for long in the way of the others.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Suspects from "../../src/internal/suspects.ts"
import * as JobId from "../../src/JobId.ts"
import type { ReadyJob } from "../../src/JobStore.ts"

const second = 1_000
const patience = Suspects.patienceMs

let made = 0
const newJob = (crashes: number): ReadyJob => ({
  id: JobId.JobId.make(`00000000-0000-7000-8000-${String(++made).padStart(12, "0")}`),
  lane: 0,
  tenant: "",
  seq: made,
  version: 0,
  type: "any",
  attempt: 0,
  crashes,
  reruns: 0,
  createdAt: 0,
  expiresAt: undefined,
  isLarge: false,
  payload: undefined,
  context: undefined
})
const innocent = () => newJob(0)
const suspect = () => newJob(2)

/** A process by hand: its partitions start what is in their mailboxes when they are woken, and four times a second. */
const makeProcess = () => {
  let time = 0
  const suspects = Suspects.make(() => time)
  const woken = new Set<() => void>()
  const all: Array<() => void> = []

  const wakeAll = () => {
    while (woken.size > 0) {
      for (const turn of woken) {
        woken.delete(turn)
        turn()
      }
    }
  }

  const partition = (concurrency = 10) => {
    const mailbox: Array<ReadyJob> = []
    const running = new Map<string, { readonly job: ReadyJob; readonly endsAt: number }>()
    const starts: Array<{ readonly job: ReadyJob; readonly at: number }> = []
    let isStuck = false
    let runsFor = Infinity
    const attempts = {
      size: () => running.size,
      hasPlace: () => running.size < concurrency,
      get: (id: string) => running.get(id) as never
    }
    const next = () => {
      if (isStuck || !attempts.hasPlace()) return undefined
      if (!suspects.isActive) return mailbox.shift()
      const found = place.next()
      return found !== undefined || place.isHeldBack() ? found : mailbox.shift()
    }
    const turn = () => {
      for (let job = next(); job !== undefined; job = next()) {
        if (Suspects.isSuspect(job) && !place.start(job)) continue
        running.set(job.id, { job, endsAt: time + runsFor })
        starts.push({ job, at: time })
      }
    }
    const wake = () => void woken.add(turn)
    const place = suspects.join({ attempts, hasWaiting: () => mailbox.length > 0, wake })
    const end = (job: ReadyJob) => {
      assert.isTrue(running.delete(job.id), "it runs")
      wake()
      if (suspects.isActive) suspects.ended()
    }
    const tick = () => {
      wake()
      for (const { endsAt, job } of running.values()) if (endsAt <= time) end(job)
    }
    all.push(tick)
    return {
      place,
      starts,
      submit: (...jobs: ReadonlyArray<ReadyJob>) => {
        for (const job of jobs) mailbox.push(job)
        wake()
        wakeAll()
      },
      end: (job: ReadyJob) => {
        end(job)
        wakeAll()
      },
      isRunning: (...jobs: ReadonlyArray<ReadyJob>) => jobs.map(({ id }) => running.has(id)),
      /** What is started from now on ends by itself. */
      runFor: (ms: number) => {
        runsFor = ms
      },
      /** It starts nothing, as if its loop hung. */
      stick: () => {
        isStuck = true
      },
      leave: () => {
        isStuck = true
        place.leave()
        wakeAll()
      },
      withdraw: (job: ReadyJob) => {
        const withdrawn = place.withdraw((one) => one === job)
        wakeAll()
        return withdrawn
      }
    }
  }

  return {
    suspects,
    partition,
    now: () => time,
    pass: (ms: number) => {
      for (const until = time + ms; time < until;) {
        time += 250
        for (const tick of all) tick()
        wakeAll()
      }
    }
  }
}

describe("a suspect", () => {
  it("does not wait for others to go first where none are there", () => {
    const { now, partition, pass } = makeProcess()
    const a = partition()
    const all = Array.from({ length: 40 }, suspect)
    a.runFor(2_000)
    a.submit(...all)
    // Each runs for two seconds, one after another: no pause between the stretches.
    pass(40 * 2_000 + 2_000)
    assert.strictEqual(a.starts.length, all.length)
    assert.isAtMost(now(), 85_000)
  })

  it("waits until the last attempt of every partition has ended, and nothing starts before it nor beside it", () => {
    const { partition } = makeProcess()
    const [a, b] = [partition(), partition()]
    const [first, long, killer, late, beside] = [innocent(), innocent(), suspect(), innocent(), innocent()]
    b.submit(first, long)
    a.submit(killer, beside)
    b.submit(late)
    b.end(first)
    assert.deepStrictEqual([a.isRunning(killer, beside), b.isRunning(late)], [[false, false], [false]])
    b.end(long)
    assert.deepStrictEqual([a.isRunning(killer, beside), b.isRunning(late)], [[true, false], [false]])
    a.end(killer)
    assert.deepStrictEqual([a.isRunning(beside), b.isRunning(late)], [[true], [true]])
  })

  it("does not run beside another one of another partition", () => {
    const { partition, pass, suspects } = makeProcess()
    const [a, b] = [partition(), partition()]
    const [one, two] = [suspect(), suspect()]
    a.submit(one)
    b.submit(two)
    assert.deepStrictEqual([a.isRunning(one), b.isRunning(two)], [[true], [false]])
    pass(10 * second)
    a.end(one)
    pass(11 * second)
    assert.deepStrictEqual(b.isRunning(two), [true])
    b.end(two)
    assert.isFalse(suspects.isActive)
  })

  it("that waits for a run without an end starts beside it, within the time that it may hold back the others", () => {
    const { now, partition, pass } = makeProcess()
    const [a, b] = [partition(), partition()]
    const [endless, killer] = [innocent(), suspect()]
    b.submit(endless)
    a.submit(killer)
    pass(patience - Suspects.lastCallMs - 250)
    assert.deepStrictEqual(a.isRunning(killer), [false])
    pass(250)
    assert.deepStrictEqual(a.isRunning(killer), [true])
    assert.isAtMost(now(), patience)
  })

  it("that does not end holds back the others for its time, and no longer", () => {
    const { partition, pass } = makeProcess()
    const [a, b] = [partition(), partition()]
    const [killer, other] = [suspect(), innocent()]
    a.submit(killer)
    b.submit(other)
    pass(patience - 250)
    assert.deepStrictEqual(b.isRunning(other), [false])
    pass(250)
    assert.deepStrictEqual([a.isRunning(killer), b.isRunning(other)], [[true], [true]])
  })

  it("is not waited for where it would find no place", () => {
    const { partition, pass } = makeProcess()
    const [a, b, c] = [partition(), partition(1), partition()]
    const [first, killer, endless, other] = [suspect(), suspect(), innocent(), innocent()]
    a.submit(first)
    pass(second)
    // The others' time: B takes the second one in hand, and then a job that lasts.
    a.end(first)
    b.submit(killer, endless)
    assert.deepStrictEqual(b.isRunning(killer, endless), [false, true])
    pass(60 * second)
    c.submit(other)
    assert.deepStrictEqual([b.isRunning(killer), c.isRunning(other)], [[false], [true]])
    b.end(endless)
    assert.deepStrictEqual(b.isRunning(killer), [false])
    c.end(other)
    assert.deepStrictEqual(b.isRunning(killer), [true])
  })

  it("that its partition does not start holds back the others for its time only, and other suspects have their turn", () => {
    const { partition, pass } = makeProcess()
    const [a, b] = [partition(), partition()]
    const [endless, stuck, killer, other] = [innocent(), suspect(), suspect(), innocent()]
    b.submit(endless)
    a.submit(stuck)
    a.stick()
    b.submit(other, killer)
    pass(patience - 250)
    assert.deepStrictEqual(b.isRunning(other), [false])
    pass(250)
    assert.deepStrictEqual(b.isRunning(other, killer), [true, false])
    // Once more in vain, then the next one in line; each time the others have as long.
    pass(4 * patience)
    assert.deepStrictEqual(b.isRunning(killer), [true])
  })
})

describe("the others go on at once", () => {
  const waiting = () => {
    const { partition, suspects } = makeProcess()
    const [a, b] = [partition(), partition()]
    const [endless, killer, other] = [innocent(), suspect(), innocent()]
    b.submit(endless)
    a.submit(killer)
    b.submit(other)
    assert.deepStrictEqual(b.isRunning(other), [false])
    return { a, b, killer, other, suspects }
  }

  it("when the suspect that waits is withdrawn: cancelled, its handler gone, its partition's lock lost, its partition closing", () => {
    const { a, b, killer, other, suspects } = waiting()
    assert.deepStrictEqual(a.withdraw(killer), [killer])
    assert.deepStrictEqual(a.withdraw(killer), [])
    assert.deepStrictEqual([b.isRunning(other), suspects.isActive], [[true], false])
  })

  it("when the partition of the one that waits leaves", () => {
    const { a, b, other, suspects } = waiting()
    a.leave()
    assert.deepStrictEqual([b.isRunning(other), suspects.isActive], [[true], false])
  })

  it("when the partition of the one that runs leaves", () => {
    const { partition, suspects } = makeProcess()
    const [a, b] = [partition(), partition()]
    const other = innocent()
    a.submit(suspect())
    b.submit(other)
    assert.deepStrictEqual(b.isRunning(other), [false])
    a.leave()
    assert.deepStrictEqual([b.isRunning(other), suspects.isActive], [[true], false])
  })

  it("and a suspect waits no longer for attempts of a partition that has left", () => {
    const { partition } = makeProcess()
    const [a, b] = [partition(), partition()]
    const killer = suspect()
    b.submit(innocent())
    a.submit(killer)
    assert.deepStrictEqual(a.isRunning(killer), [false])
    b.leave()
    assert.deepStrictEqual(a.isRunning(killer), [true])
  })
})

describe("many suspects", () => {
  /** Some that wait while the others have their time. */
  const inLine = (count: number) => {
    const process = makeProcess()
    const [a, b] = [process.partition(), process.partition()]
    const [first, other, ...rest] = [suspect(), innocent(), ...Array.from({ length: count }, suspect)]
    a.submit(first)
    process.pass(second)
    a.end(first)
    b.submit(other, ...rest)
    process.pass(2 * second)
    return { ...process, a, b, other, rest }
  }

  it("follow each other without a break in the quiet that they have waited for", () => {
    const { b, other, rest } = inLine(3)
    b.end(other)
    for (const job of rest) {
      assert.deepStrictEqual(b.isRunning(...rest), rest.map((one) => one === job))
      b.end(job)
    }
  })

  it("follow each other for the time of one, and then the others have theirs", () => {
    const { a, b, other, pass, rest } = inLine(4)
    b.end(other)
    const beside = innocent()
    a.submit(beside)
    for (const job of rest.slice(0, 2)) {
      pass(patience / 2)
      assert.deepStrictEqual([a.isRunning(beside), b.isRunning(job)], [[false], [true]])
      b.end(job)
    }
    assert.deepStrictEqual([a.isRunning(beside), b.isRunning(...rest)], [[true], rest.map(() => false)])
  })

  it("do not follow one that could not be alone: the others go on first", () => {
    const { a, b, pass, rest } = inLine(2)
    pass(patience - 2 * Suspects.lastCallMs)
    const beside = innocent()
    a.submit(beside)
    pass(2 * Suspects.lastCallMs)
    const started = rest.find((job) => b.isRunning(job)[0])
    assert(started !== undefined)
    assert.deepStrictEqual(a.isRunning(beside), [false])
    b.end(started)
    assert.deepStrictEqual(a.isRunning(beside), [true])
  })

  const together = (runsFor: number, count: number) => {
    const process = makeProcess()
    const [a, b, c] = [process.partition(), process.partition(), process.partition()]
    const killers = Array.from({ length: count }, suspect)
    a.runFor(runsFor)
    b.runFor(runsFor)
    c.runFor(second)
    c.submit(...Array.from({ length: 20_000 }, innocent))
    a.submit(...killers.filter((_, index) => index % 2 === 0))
    b.submit(...killers.filter((_, index) => index % 2 === 1))
    const started = () => [...a.starts, ...b.starts].toSorted((one, other) => one.at - other.at)
    return { ...process, c, killers, started }
  }

  it("that are short follow each other once it is quiet, and never run beside anything", () => {
    const { c, killers, now, pass, started, suspects } = together(second, 50)
    while (started().length < killers.length || suspects.isActive) {
      pass(second)
      assert.isBelow(now(), 240 * second)
    }
    for (const { at } of started()) {
      for (const other of c.starts) assert.isFalse(other.at < at + second && at < other.at + second)
    }
    const times = started().map(({ at }) => at)
    times.slice(1).forEach((at, index) => assert.isAtLeast(at - (times[index] ?? 0), second))
  })

  it("that each run for an hour all start, and leave the others half of the time, with no break longer than a start needs", () => {
    const { c, killers, now, pass, started } = together(3_600 * second, 10)
    while (started().length < killers.length) {
      pass(second)
      assert.isBelow(now(), 1_800 * second)
    }
    const ends = now()
    const times = [...c.starts.map(({ at }) => at), ends]
    const breaks = times.slice(1).map((at, index) => at - (times[index] ?? 0))
    assert.isAtMost(Math.max(...breaks), 2 * patience + second)
    // A second without a start is one in which it was held back.
    const held = breaks.filter((ms) => ms > second).reduce((sum, ms) => sum + ms, 0)
    assert.isAtMost(held, ends / 2 + patience)
    // Each has had its time before anything started beside it.
    for (const { at } of started()) assert.isFalse(times.some((other) => other > at && other < at + patience))
    const suspectTimes = started().map(({ at }) => at)
    suspectTimes.slice(1).forEach((at, index) => assert.isAtLeast(at - (suspectTimes[index] ?? 0), patience))
  })
})

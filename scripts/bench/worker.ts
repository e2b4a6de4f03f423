/**
 * `node worker.ts <adapter>`: one system in a process of its own, driven by messages of the harness (protocol.ts). Plain Node on purpose:
 * it loads adapters that live among other versions of everything.
 */
import { setImmediate as yielded, setTimeout as sleep } from "node:timers/promises"
import { pathToFileURL } from "node:url"
import type { Calls, Drained, Latencies, Progress, Reply, Request } from "./protocol.ts"
import type { Payload, Session, Settings, System } from "./System.ts"

const now = () => performance.timeOrigin + performance.now()

/** 100 bytes of JSON, with the time. */
const text = "x".repeat(66)
const urgentText = "u".repeat(66)
const payload = (isUrgent = false): Payload => ({ text: isUrgent ? urgentText : text, at: now() })

// ------------------------------------------------------------------------------------------------ what handlers tell

/** What to do at a handler's first line. Exchanged by each measurement, so that none pays for another's. */
let onStart: (payload: Payload) => void = () => {}

/** Counts handlers until `jobs` have begun. */
const starts = (jobs: number) => {
  const counter = { count: 0, firstAt: Number.NaN, all: Promise.withResolvers<void>() }
  onStart = () => {
    counter.count += 1
    if (counter.count === 1) counter.firstAt = now()
    if (counter.count === jobs) counter.all.resolve()
  }
  return counter
}

// ------------------------------------------------------------------------------------------------ the system

const [adapter] = process.argv.slice(2)
if (adapter === undefined) throw new Error("worker.ts needs the path of an adapter")
const loaded: { readonly default: System } = await import(pathToFileURL(adapter).href)
const system = loaded.default

let opened: Session | undefined
const session = (): Session => {
  if (opened === undefined) throw new Error("not open")
  return opened
}

const settings = (connect: Omit<Settings, "onStart">): Settings => ({
  ...connect,
  onStart: (payload) => {
    onStart(payload)
  }
})

// ------------------------------------------------------------------------------------------------ measurements

/** `callers` loops that share `pieces` pieces of work. */
const share = async (callers: number, pieces: number, work: (piece: number) => Promise<void>) => {
  let next = 0
  const from = now()
  const caller = async () => {
    while (next < pieces) await work(next++)
  }
  await Promise.all(Array.from({ length: Math.min(callers, pieces) }, caller))
  return now() - from
}

const submitBatch = ({ batch, callers, jobs }: Calls["submitBatch"]["input"]) =>
  share(
    callers,
    Math.ceil(jobs / batch),
    (piece) => session().submitMany(Array.from({ length: Math.min(batch, jobs - piece * batch) }, () => payload()))
  )

const drain = async ({ jobs, until }: Calls["drain"]["input"]): Promise<Drained> => {
  const { remaining, run } = session()
  const counter = starts(jobs)
  const rss: Array<Drained["rss"][number]> = []
  const from = now()
  const sampling = setInterval(() => {
    rss.push({ millis: now() - from, starts: counter.count, mb: process.memoryUsage.rss() / 2 ** 20 })
  }, 250)
  const cpu = process.cpuUsage()
  await run()
  await counter.all.promise
  if (until === "settled") { while (await remaining() > 0) await sleep(2) }
  const millis = now() - from
  const { system, user } = process.cpuUsage(cpu)
  clearInterval(sampling)
  return {
    millis,
    firstMillis: counter.firstAt - from,
    starts: counter.count,
    cpuMicros: user + system,
    peakRssMb: process.resourceUsage().maxRSS / 1024,
    rss
  }
}

/** What this process has begun as one of several. */
let shared = { count: 0, firstAt: Number.NaN }

const join = async () => {
  shared = starts(Number.POSITIVE_INFINITY)
  await session().run()
}

const progress = async (): Promise<Progress> => {
  const { system, user } = process.cpuUsage()
  return { starts: shared.count, firstAt: shared.firstAt, cpuMicros: user + system }
}

/** The latencies of the jobs that `send` submits, told apart from others by their text, and put in order by their time. */
const watchLatencies = (isUrgent: boolean) => {
  const mark = isUrgent ? urgentText : text
  const began = new Map<number, number>()
  const sent: Array<number> = []
  let started = 0
  let awaited = Number.POSITIVE_INFINITY
  const all = Promise.withResolvers<void>()
  const others = onStart
  onStart = (payload) => {
    if (payload.text !== mark) return others(payload)
    if (began.has(payload.at)) return
    began.set(payload.at, now())
    started += 1
    if (started >= awaited) all.resolve()
  }
  const failures: Array<unknown> = []
  const pending = new Set<Promise<void>>()
  return {
    send: () => {
      const job = payload(isUrgent)
      sent.push(job.at)
      const submitted = session().submit(job, isUrgent)
        .catch((failure: unknown) => {
          failures.push(failure)
        })
        .finally(() => {
          pending.delete(submitted)
        })
      pending.add(submitted)
    },
    /** Waits for what was sent to start, at most a minute. */
    end: async (): Promise<Latencies> => {
      await Promise.all(pending)
      if (failures.length > 0) throw failures[0]
      awaited = sent.length
      if (started >= awaited) all.resolve()
      await Promise.race([all.promise, sleep(60_000, undefined, { ref: false })])
      const [first = 0] = sent
      return {
        at: Float64Array.from(sent, (at) => at - first),
        took: Float64Array.from(sent, (at) => (began.get(at) ?? Number.NaN) - at)
      }
    }
  }
}

/** Calls `tick` at a steady pace, catching up when a timer was late but never at others' cost, until `isOver` says so. */
const steadily = async (everyMillis: number, tick: () => void, isOver: (ticks: number) => boolean) => {
  const from = now()
  for (let ticks = 0; !isOver(ticks); ticks++) {
    const wait = from + ticks * everyMillis - now()
    await (wait > 0 ? sleep(wait) : yielded())
    tick()
  }
}

const pace = async ({ everyMillis, isUrgent, jobs }: Calls["pace"]["input"]) => {
  onStart = () => {}
  const latencies = watchLatencies(isUrgent)
  await steadily(everyMillis, latencies.send, (ticks) => ticks >= jobs)
  return await latencies.end()
}

const lanes = async ({ everyMillis, jobs }: Calls["lanes"]["input"]) => {
  const counter = starts(jobs)
  const latencies = watchLatencies(true)
  await session().run()
  // The idle queue beside it is measured warm, too.
  while (counter.count < jobs / 10) await sleep(1)
  // At least twice: with few jobs the last start comes at once.
  await steadily(everyMillis, latencies.send, (ticks) => ticks >= 2 && counter.count >= jobs)
  const measured = await latencies.end()
  await counter.all.promise
  return measured
}

// ------------------------------------------------------------------------------------------------ messages

const answers: { readonly [Name in keyof Calls]: (input: Calls[Name]["input"]) => Promise<Calls[Name]["output"]> } = {
  describe: async () => ({ name: system.name, description: system.description, works: system.works }),
  prepare: (connect) => system.prepare(settings(connect)),
  open: async (connect) => {
    opened = await system.open(settings(connect))
  },
  run: () => session().run(),
  preload: async ({ jobs }) => {
    await submitBatch({ jobs, batch: 1_000, callers: 2 })
  },
  submit: ({ callers, jobs }) => share(callers, jobs, () => session().submit(payload())),
  submitBatch,
  drain,
  join,
  progress,
  pace,
  lanes,
  remaining: () => session().remaining(),
  close: async () => {
    await opened?.close()
    opened = undefined
  }
}

const reply = (reply: Reply) => {
  process.send?.(reply)
}

const answer = <Name extends keyof Calls>({ call, input }: Request<Name>) => answers[call](input)

process.on("message", (request: Request) => {
  answer(request).then(
    (output) => reply({ output }),
    (error: unknown) => reply({ error: error instanceof Error ? error.stack ?? error.message : String(error) })
  )
})

// The harness is gone: nobody waits for this.
process.on("disconnect", () => process.exit())

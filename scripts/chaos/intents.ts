/**
 * What a submitter wants: pure, from the seed. How far it gets depends on what happens to it.
 */
import { type Dice, dice } from "./Seed.ts"

/** The job types of work.ts. Those from `Die` on harm what runs them. */
export type JobType =
  | "Tx"
  | "Grouped"
  | "Plain"
  | "Keyed"
  | "Die"
  | "KillBackend"
  | "Cut"
  | "Uninspectable"
  | "Hang"
  | "HangKeyed"
  | "IdleInTransaction"

/** One job to be. All but `type` and what follows `delayMs` travels in its payload. */
export interface Order {
  /** Names the job, whatever id it gets. */
  readonly ref: string
  readonly type: JobType
  readonly queue: "tx" | "plain" | "keyed" | "batch" | "hostile"
  /** The attempts that fail, from the first one on. */
  readonly fails: number
  /** How long the handler takes, and how much of it blocks its process. */
  readonly millis: number
  readonly blocks: number
  /** The handler writes before it waits: its transaction is open for as long. */
  readonly isEarly: boolean
  /** It sleeps so long in a statement of its transaction, too. */
  readonly holds?: number
  /** Its COMMIT waits while somebody has this advisory lock. */
  readonly lock?: number
  /** Which variant of its type a hostile job is. */
  readonly how?: string
  /** A `Cut` job ends its own session in so many of its first runs. */
  readonly cuts?: number
  /** Of a `Keyed` job: its line, and its place in it. */
  readonly key?: string
  readonly n?: number
  readonly dedupe?: string
  readonly delayMs?: number
  /** Cancelled so long after it was stored. */
  readonly cancelAfterMs?: number
  /** Replayed once it is a dead letter; what made it fail is mended before. */
  readonly isReplayed?: boolean
}

/** One call of `submit`. */
export interface Intent {
  /** Since the intent before. */
  readonly waitMs: number
  readonly isBatch: boolean
  readonly orders: ReadonlyArray<Order>
}

/** Attempts in all, see work.ts. A job whose `fails` reach it becomes a dead letter. */
export const maxAttempts = 4

/** Jobs that cannot be interrupted: their attempts, their timeout, and how long after it the runtime abandons the handler. */
export const hang = { attempts: 2, timeoutMs: 1_000, abandonMs: 5_000 } as const

const keys = 6
const dedupeKeys = 20

const plain = ({ chance, between, uuid }: Dice, type: JobType, queue: Order["queue"]): Order => ({
  ref: uuid(),
  type,
  queue,
  fails: 0,
  millis: type === "Grouped" ? 0 : between(0, 150),
  blocks: 0,
  isEarly: chance(0.5)
})

interface Sort {
  readonly weight: number
  readonly make: (dice: Dice) => ReadonlyArray<Order>
}

const one = (make: (dice: Dice) => Order): Sort["make"] => (dice) => [make(dice)]

const anyType = (dice: Dice) => dice.pick(["Tx", "Tx", "Grouped", "Plain"] as const)
const queueOf = (type: JobType): Order["queue"] => type === "Plain" ? "plain" : type === "Keyed" ? "keyed" : "tx"
const anywhere = (dice: Dice): Order => {
  const type = anyType(dice)
  return plain(dice, type, queueOf(type))
}

/** The next job of a key. */
const keyed = (dice: Dice, type: JobType, name: string, counts: Map<string, number>): Order => {
  const key = `${name}.k${dice.between(1, keys)}`
  const n = (counts.get(key) ?? 0) + 1
  counts.set(key, n)
  return { ...plain(dice, type, "keyed"), isEarly: false, key, n }
}

/** The sorts of calls, by how often they come. */
const sorts = (name: string, counts: Map<string, number>): ReadonlyArray<Sort> => [
  { weight: 30, make: one((dice) => plain(dice, "Tx", "tx")) },
  { weight: 12, make: one((dice) => plain(dice, "Grouped", "tx")) },
  { weight: 14, make: one((dice) => plain(dice, "Plain", "plain")) },
  // Neighbours of the hostile jobs.
  { weight: 3, make: one((dice) => plain(dice, dice.pick(["Tx", "Plain"]), "hostile")) },
  { weight: 8, make: one((dice) => ({ ...anywhere(dice), fails: dice.between(1, maxAttempts - 1) })) },
  {
    weight: 3,
    make: one((dice) => ({ ...plain(dice, "Tx", "tx"), fails: maxAttempts, isReplayed: dice.chance(0.7) }))
  },
  { weight: 2, make: one((dice) => ({ ...plain(dice, "Tx", "tx"), holds: dice.between(300, 3_000) })) },
  // Mostly queued still, or in its first milliseconds.
  { weight: 3, make: one((dice) => ({ ...plain(dice, "Tx", "tx"), cancelAfterMs: 0 })) },
  // Mostly running.
  {
    weight: 2,
    make: one((dice) => ({
      ...plain(dice, dice.pick(["Tx", "Plain"]), "tx"),
      millis: dice.between(2_000, 5_000),
      cancelAfterMs: dice.between(500, 2_000)
    }))
  },
  // Scheduled still.
  {
    weight: 2,
    make: one((dice) => ({ ...anywhere(dice), delayMs: 30_000, cancelAfterMs: dice.between(200, 2_000) }))
  },
  { weight: 8, make: one((dice) => ({ ...anywhere(dice), delayMs: dice.between(500, 5_000) })) },
  {
    weight: 8,
    make: one((dice) => ({
      ...plain(dice, "Tx", "tx"),
      millis: dice.between(0, 800),
      dedupe: `d${dice.between(1, dedupeKeys)}`
    }))
  },
  {
    weight: 14,
    make: one((dice) => ({ ...keyed(dice, "Keyed", name, counts), fails: dice.chance(0.1) ? 1 : 0 }))
  },
  {
    weight: 1,
    make: one((dice) => ({
      ...plain(dice, dice.pick(["Tx", "Plain"]), "batch"),
      millis: dice.between(3_000, 8_000),
      blocks: dice.chance(0.3) ? 300 : 0
    }))
  },
  {
    weight: 4,
    make: (dice) =>
      Array.from({ length: dice.between(2, dice.chance(0.2) ? 50 : 10) }, () => {
        const type = anyType(dice)
        return plain(dice, type, dice.chance(0.7) ? "batch" : queueOf(type))
      })
  }
]

/** A kind of hostile job: its first one comes after `firstMs`, the next ones `everyMs` apart. */
interface Hostile {
  readonly firstMs: number
  readonly everyMs: number
  /** Takes processes or the whole server down, five times each. */
  readonly isDeadly?: true
  readonly make: (dice: Dice, name: string, counts: Map<string, number>) => Order
}

/** Few enough of those that hang for no runner to have three times its slots abandoned. */
const hostiles: ReadonlyArray<Hostile> = [
  {
    firstMs: 4_000,
    everyMs: 6_000,
    make: (dice) => ({
      ...plain(dice, "Uninspectable", "hostile"),
      how: `${dice.pick(["throw", "die", "fail"])} ${dice.pick(["revoked", "getters"])}`
    })
  },
  {
    firstMs: 6_000,
    everyMs: 8_000,
    make: (dice) => ({ ...plain(dice, "IdleInTransaction", "hostile"), how: dice.pick(["returns", "writes"]) })
  },
  {
    firstMs: 8_000,
    everyMs: 10_000,
    make: (dice) => ({
      ...plain(dice, "Cut", "hostile"),
      how: dice.pick(["reset", "terminate"]),
      cuts: dice.between(1, 2)
    })
  },
  {
    firstMs: 10_000,
    everyMs: 20_000,
    make: (dice) => ({ ...plain(dice, "Hang", "hostile"), how: dice.pick(["never", "finalizer", "late"]) })
  },
  {
    firstMs: 15_000,
    everyMs: 40_000,
    make: (dice, name, counts) => ({
      ...keyed(dice, "HangKeyed", name, counts),
      how: dice.pick(["never", "finalizer", "late"])
    })
  },
  { firstMs: 60_000, everyMs: 300_000, isDeadly: true, make: (dice) => plain(dice, "Die", "plain") },
  { firstMs: 120_000, everyMs: 300_000, isDeadly: true, make: (dice) => plain(dice, "KillBackend", "hostile") }
]

/** Which hostile jobs a submitter has: none, those that harm only themselves, or also those that are deadly. */
export const hostilities = ["none", "bounded", "deadly"] as const
export type Hostility = typeof hostilities[number]

/** The intents of one submitter, without end. `name` tells its incarnations apart, too. `perSecond` calls. */
export function* intents(
  seed: number,
  name: string,
  { hostility, perSecond }: { readonly perSecond: number; readonly hostility: Hostility }
): Generator<Intent, never> {
  const source = dice(seed, `submitter/${name}`)
  const counts = new Map<string, number>()
  const all = sorts(name, counts)
  const due = hostiles
    .filter(({ isDeadly }) => hostility === "deadly" || (hostility === "bounded" && isDeadly !== true))
    .map((kind) => ({ kind, at: kind.firstMs }))
  let at = 0
  while (true) {
    const waitMs = Math.round(-Math.log(1 - source.next()) * 1_000 / perSecond)
    at += waitMs
    const next = due.find((one) => at >= one.at)
    if (next === undefined) {
      const orders = source.weighted(all).make(source)
      yield { waitMs, isBatch: orders.length > 1, orders }
    } else {
      next.at += next.kind.everyMs
      yield { waitMs, isBatch: false, orders: [next.kind.make(source, name, counts)] }
    }
  }
}

/**
 * layout: how queues are divided, durably and for all programs: into which partitions, by what, and in which shard group.
 *
 * Each change is one transaction; a crash leaves the old layout or the new one. Whoever works by the old one for a while loses nothing: a row
 * says itself which partition it is in, and `leftovers` finds those that nobody declares any more.
 *
 * Jobs of tenants and keys belong where the count says, and do not move when it changes: those of before run where they are, those that come,
 * fall due or are replayed go by the new count. In an ordered queue the new ones of a key wait until none is left where the former count had it
 * (`intake.ts`): all that can be there has a seq below the `barrier`, drawn while nobody wrote, and nothing is added. Hence no second change
 * before that is so. (A caller's transaction at REPEATABLE READ that has begun before the change may submit by the former count after it: two
 * jobs of a key may run at the same time then.)
 */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { LayoutError, QueueMoving, QueueNotEmpty, TooManyGroups } from "../../JobError.ts"
import {
  changesOf,
  defaultLayout,
  fixedWhileUsed,
  isMove,
  isSameLayout,
  type Layout,
  type LayoutField,
  partitionings
} from "../../JobQueue.ts"
import { type JobStore, type PartitionKey, type QueueRow, shardGroupCount, StoreError } from "../../JobStore.ts"
import { onLiveClock } from "../time/liveClock.ts"
import { type Database, toStoreError } from "./database.ts"
import { bool, int2, int4, text } from "./rows.ts"

interface StoredQueue {
  readonly id: number
  readonly name: string
  readonly partitions: number
  readonly partition_by: number
  readonly ordered: boolean
  readonly layout: number
  readonly shard_group: number
  readonly group: string
}

const columns = `q.id, q.name, q.partitions, q.partition_by, q.ordered, q.layout, q.shard_group, g.name as "group"`

const toQueueRow = (row: StoredQueue): QueueRow => ({
  queueId: row.id,
  name: row.name,
  partitions: row.partitions,
  partitionBy: partitionings[row.partition_by] ?? "job",
  isOrdered: row.ordered,
  group: row.group,
  shardGroup: row.shard_group,
  layout: row.layout
})

const select = (schema: string) =>
  `select ${columns} from ${schema}.queues q join ${schema}.shard_groups g on g.number = q.shard_group`

export const queues = (db: Database): Effect.Effect<ReadonlyArray<QueueRow>, StoreError> =>
  Effect.map(db.run<StoredQueue>("queues", `${select(db.schema)} order by q.id`, []), (rows) => rows.map(toQueueRow))

// ------------------------------------------------------------------------------------------------ groups

interface Group {
  readonly number: number
  readonly name: string
}

const conflict = (operation: string, because: string) =>
  new StoreError({ reason: "Conflict", operation, cause: new Error(because) })

/** The number of a group. A new one gets the lowest that is free; who loses the race for it looks again. */
const groupNumber = (db: Database) => {
  const read = `select number, name from ${db.schema}.shard_groups order by number`
  const add = `insert into ${db.schema}.shard_groups (number, name) values ($1, $2) on conflict do nothing`
  return Effect.fnUntraced(function*(name: string): Effect.fn.Return<number, StoreError | LayoutError> {
    while (true) {
      const known = yield* db.run<Group>("shardGroups", read, [])
      const found = known.find((group) => group.name === name)
      if (found !== undefined) return found.number
      const free = Array.from({ length: shardGroupCount }, (_, number) => number)
        .find((number) => known.every((group) => group.number !== number))
      if (free === undefined) {
        return yield* new LayoutError({
          reason: new TooManyGroups({ group: name, known: known.map((group) => group.name) })
        })
      }
      yield* db.run("shardGroups", add, [int2(free), text(name)])
    }
  })
}

export const shardGroups = (db: Database): JobStore["Service"]["shardGroups"] => {
  const numberOf = groupNumber(db)
  return (names) => Effect.forEach(names, numberOf)
}

// ------------------------------------------------------------------------------------------------ queues

const notEmpty = (stored: QueueRow, wanted: Layout, field: LayoutField) => {
  const shown = (layout: Layout) => String(field === "ordered" ? layout.isOrdered : layout[field])
  return new LayoutError({
    reason: new QueueNotEmpty({ queue: stored.name, field, stored: shown(stored), asked: shown(wanted) })
  })
}

const moving = (stored: QueueRow, wanted: Layout) =>
  new LayoutError({
    reason: new QueueMoving({ queue: stored.name, stored: stored.partitions, asked: wanted.partitions })
  })

// Whether jobs lie where a former count has put them. Never again, once it is not so. Walks the queue's rows, but only if there was a change
// before. Serving indexes: jobs_ready, jobs_due.
export const isMovingSql = (schema: string) => {
  const left = (state: string) =>
    `exists (select from ${schema}.jobs j
  where j.queue_id = q.id and ${state} and j.seq < q.barrier and j.partition <> mod(j.place, q.partitions))`
  return `
select coalesce(bool_or(${left("j.state = 0")} or ${left("j.state in (1, 2) and j.state = 2")}), false) as moving
from ${schema}.queues q where q.id = $1 and q.barrier is not null`
}

// Serving indexes: jobs_ready, jobs_due.
export const isEmptySql = (schema: string) => `
select not exists (select from ${schema}.jobs where queue_id = $1 and state = 0)
  and not exists (select from ${schema}.jobs where queue_id = $1 and state in (1, 2)) as empty`

// The layout that was read names what is replaced: another program may have been first. Runners see it when they look next.
const changeSql = (schema: string) => `
update ${schema}.queues set partitions = $3, partition_by = $4, ordered = $5, shard_group = $6, layout = layout + 1
where id = $1 and layout = $2 returning id`

const moveSql = (schema: string) => `
update ${schema}.queues set partitions = $3, partition_by = $4, ordered = $5, shard_group = $6, layout = layout + 1,
  former_partitions = partitions, barrier = nextval('${schema}.jobs_seq')
where id = $1 and layout = $2 returning id`

// Read first: an insert that meets a row would burn an id each time a process starts.
export const declareQueue = (db: Database): JobStore["Service"]["declareQueue"] => {
  const { schema } = db
  const read = `${select(schema)} where q.name = $1`
  const add = `insert into ${schema}.queues (name, partitions, partition_by, ordered, shard_group)
    values ($1, $2, $3, $4, $5) on conflict (name) do nothing`
  const change = changeSql(schema)
  const move = moveSql(schema)
  const isMoving = isMovingSql(schema)
  const isEmpty = isEmptySql(schema)
  const numberOf = groupNumber(db)

  const layoutOf = (wanted: Layout, group: number) => [
    int2(wanted.partitions),
    int2(partitionings.indexOf(wanted.partitionBy)),
    bool(wanted.isOrdered),
    int2(group)
  ]

  /** Whether it was this program that changed it. */
  const changeTo = (stored: QueueRow, wanted: Layout, group: number, sql = change) =>
    Effect.map(
      db.run("declareQueue", sql, [int4(stored.queueId), int4(stored.layout), ...layoutOf(wanted, group)]),
      (rows) => rows.length > 0
    )

  /**
   * SHARE: no transaction with rows that went by the old layout is open any more, and none can begin before this one is over. It shall not
   * wait for long, for everybody who submits waits behind it; but an autovacuum gives way only to who waits longer than `deadlock_timeout`.
   */
  const whileNobodyWrites = <A>(change: Effect.Effect<A, StoreError | LayoutError>) => {
    let tries = 0
    return Effect.suspend(() => {
      const patience = ++tries % 8 === 0 ? "1500ms" : "200ms"
      return db.pool.withTransaction(Effect.gen(function*() {
        yield* db.run("declareQueue", `set local lock_timeout = '${patience}'`, [])
        yield* db.run("declareQueue", `lock table ${schema}.jobs in share mode`, [])
        return yield* change
      }))
    }).pipe(
      Effect.mapError((error) => error._tag === "SqlError" ? toStoreError("declareQueue")(error) : error),
      Effect.retry({
        while: ({ reason }) => reason === "LockTimeout",
        schedule: Schedule.upTo(Schedule.spaced("150 millis"), { times: 30 })
      }),
      onLiveClock
    )
  }

  const changeEmpty = (stored: QueueRow, wanted: Layout, group: number, field: LayoutField) =>
    whileNobodyWrites(Effect.gen(function*() {
      const [answer] = yield* db.run<{ readonly empty: boolean }>("declareQueue", isEmpty, [int4(stored.queueId)])
      if (answer?.empty !== true) return yield* notEmpty(stored, wanted, field)
      return yield* changeTo(stored, wanted, group)
    }))

  const changeCount = (stored: QueueRow, wanted: Layout, group: number) =>
    Effect.gen(function*() {
      const [answer] = yield* db.run<{ readonly moving: boolean }>("declareQueue", isMoving, [int4(stored.queueId)])
      if (answer?.moving !== false) return yield* moving(stored, wanted)
      return yield* whileNobodyWrites(changeTo(stored, wanted, group, move))
    })

  const bring = (stored: QueueRow, wanted: Layout) =>
    Effect.gen(function*() {
      const group = yield* numberOf(wanted.group)
      const field = fixedWhileUsed(stored, wanted)
      if (field !== undefined) return yield* changeEmpty(stored, wanted, group, field)
      return yield* isMove(stored, wanted) ? changeCount(stored, wanted, group) : changeTo(stored, wanted, group)
    })

  return Effect.fnUntraced(
    function*(name: string, wanted?: Layout): Effect.fn.Return<QueueRow, StoreError | LayoutError> {
      // Programs that want different things at the same time take turns: the last one is done when it finds what it asked for.
      for (let turn = 0; turn < 100; turn++) {
        const [row] = yield* db.run<StoredQueue>("declareQueue", read, [text(name)])
        if (row === undefined) {
          const first = wanted ?? defaultLayout
          yield* db.run("declareQueue", add, [text(name), ...layoutOf(first, yield* numberOf(first.group))])
          continue
        }
        const stored = toQueueRow(row)
        if (wanted === undefined || isSameLayout(stored, wanted)) return stored
        if (yield* bring(stored, wanted)) {
          yield* Effect.logInfo(`Queue "${name}": this program has changed ${changesOf(stored, wanted)}`)
        }
      }
      return yield* conflict("declareQueue", `other programs keep changing queue "${name}"`)
    }
  )
}

// ------------------------------------------------------------------------------------------------ leftovers

// The next partition that has rows, again and again: as many index probes as there are partitions, however many rows. `order by`, not min():
// see nextDue. Serving indexes: jobs_ready, jobs_due.
export const leftoversSql = (schema: string) => `
with recursive step(queue_id, partition, count) as (
  select q.id, (q.partitions - 1)::smallint, q.partitions from ${schema}.queues q
  union all
  select s.queue_id, n.partition, s.count from step s cross join lateral (
    select least(
      (select j.partition from ${schema}.jobs j
        where j.queue_id = s.queue_id and j.partition > s.partition and j.state = 0 order by j.partition limit 1),
      (select j.partition from ${schema}.jobs j
        where j.queue_id = s.queue_id and j.partition > s.partition and j.state in (1, 2) order by j.partition limit 1)
    ) as partition) n
  where n.partition is not null
)
select queue_id as "queueId", partition from step where partition >= count order by queue_id, partition`

export const leftovers = (db: Database): Effect.Effect<ReadonlyArray<PartitionKey>, StoreError> =>
  db.run<PartitionKey>("leftovers", leftoversSql(db.schema), [])

/**
 * Random lives of a queue, as data: what a submitter, owners (also late ones), timers and people may do to a store, and one interpreter of it.
 *
 * The log it writes names jobs by their number, so that two stores which behave the same write the same log.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type { JobId } from "../../src/JobId.ts"
import { type JobRecord, JobStore, type Owner, type Settlement, tenantKey } from "../../src/JobStore.ts"
import {
  attempted,
  bury,
  day,
  failure,
  finish,
  newBatch,
  newId,
  note,
  noted,
  putBack,
  retry,
  t0
} from "./storeFixture.ts"

const upTo = (maximum: number) => Schema.Int.check(Schema.isBetween({ minimum: 0, maximum }))
const some = <S extends Schema.Constraint>(item: S) =>
  Schema.Array(item).check(Schema.isMinLength(1), Schema.isMaxLength(3))

/** A job by its number, modulo how many there are. */
const Pick = upTo(9)
/** 0 to 3: as it was read; 4: a version before. */
const Reading = upTo(4)
/** 0 to 4: the owner of now; 5: the one before. */
const By = upTo(5)

const Submit = Schema.Struct({
  _tag: Schema.tag("Submit"),
  jobs: some(Schema.Struct({
    lane: upTo(3),
    tenant: upTo(3),
    key: upTo(4),
    line: upTo(3),
    dueIn: upTo(5),
    expires: Schema.Boolean
  })),
  /** 9: a row among them is refused. */
  bad: upTo(9)
})
const Settle = Schema.Struct({
  _tag: Schema.tag("Settle"),
  by: By,
  items: some(Schema.Struct({ job: Pick, how: upTo(6), reading: Reading }))
})
const Intake = Schema.Struct({
  _tag: Schema.tag("Intake"),
  by: By,
  after: upTo(5),
  tenants: upTo(3),
  perTenant: upTo(2),
  room: upTo(5),
  mark: Schema.optionalKey(Pick),
  isOrdered: Schema.Boolean,
  held: Schema.Array(Pick).check(Schema.isMaxLength(3))
})

const Promote = Schema.Struct({ _tag: Schema.tag("Promote"), by: By, seconds: upTo(4), limit: upTo(3) })
const Replay = Schema.Struct({ _tag: Schema.tag("Replay"), job: Pick, isStranger: upTo(5) })

/** One thing that happens. What moves jobs on is drawn more often. */
export const Command = Schema.Union([
  Submit,
  Submit,
  Settle,
  Settle,
  Settle,
  Intake,
  Promote,
  Promote,
  Replay,
  Replay,
  Schema.Struct({ _tag: Schema.tag("Heads"), by: By, tenant: upTo(3) }),
  Schema.Struct({ _tag: Schema.tag("TakeOver"), by: upTo(1) }),
  Schema.Struct({ _tag: Schema.tag("Crash"), running: some(Pick), held: upTo(3) }),
  Schema.Struct({ _tag: Schema.tag("HandOver"), by: By }),
  Schema.Struct({ _tag: Schema.tag("Note"), by: By, job: Pick, reading: Reading, progress: Schema.Boolean }),
  Schema.Struct({ _tag: Schema.tag("NoteDone"), by: By, job: Pick }),
  Schema.Struct({ _tag: Schema.tag("CountCrashes"), by: By, held: Schema.Array(Pick).check(Schema.isMaxLength(2)) }),
  Schema.Struct({ _tag: Schema.tag("Cancel"), by: upTo(7), job: Pick, reading: Reading }),
  Schema.Struct({ _tag: Schema.tag("Refence"), by: By, job: Pick, reading: Reading })
])
export type Command = typeof Command.Type

/** A life. */
export const Commands = Schema.Array(Command).check(Schema.isMinLength(30), Schema.isMaxLength(40))

const tenants = [undefined, "", "acme", "zeta"].map(tenantKey)

/** What one command did, and how each job stands after it. */
export interface Step {
  readonly command: Command
  readonly answer: unknown
  readonly jobs: ReadonlyArray<JobRecord | undefined>
}

/** What differs between two runs of the same life: ids and sequence numbers become the job's number, absent JSON is one thing. */
const plain = (record: JobRecord, number: number) => ({
  ...record,
  id: number,
  queueId: 0,
  batchId: record.batchId === undefined ? undefined : "batch",
  payload: record.payload ?? null,
  context: record.context ?? null,
  result: record.result ?? null
})

/**
 * Lives `commands` on a queue of its own. `watch` sees all jobs after each command; without it they are read at the end only.
 */
export const live = Effect.fnUntraced(function*(
  commands: ReadonlyArray<Command>,
  watch?: (step: Step) => void
) {
  const store = yield* JobStore
  const { queueId } = yield* store.declareQueue(`life-${newId()}`)
  const partition = { queueId, partition: 0 }

  const ids: Array<JobId> = []
  const seqs = new Map<number, string>()
  /** The version at which a job was last seen ready: what an owner would settle it with. */
  const seen = new Map<JobId, number>()
  const dead: Array<JobId> = []
  let now = t0
  let drawn = 0
  const take = (runner: number) =>
    Effect.map(store.takeOver(partition, { owner: `runner ${runner}`, now }), ({ isCareful, owner }) => {
      owners.unshift(owner)
      return { epoch: owner.epoch, isCareful }
    })
  const owners: Array<Owner> = []
  yield* take(0)

  const owner = (by: number): Owner => owners[by >= 5 ? Math.min(1, owners.length - 1) : 0]!
  const pick = (number: number): JobId => ids[number % ids.length] ?? newId()
  const number = (id: JobId) => ids.indexOf(id)
  const numbers = (some: Iterable<JobId>) => [...some].map(number).sort((a, b) => a - b)
  /** Unique, so that no two are due at the same time: which one of those comes first is nobody's promise. */
  const dueIn = (seconds: number) => now + seconds * 1000 + ++drawn
  const find = (id: JobId) => Effect.map(store.find(id), Option.getOrUndefined)
  const version = (id: JobId, reading: number) =>
    Effect.map(find(id), (record) => {
      if (record?.state === "queued") seen.set(id, record.version)
      return (seen.get(id) ?? -1) - (reading === 4 ? 1 : 0)
    })
  const everyone = Effect.forEach(ids, find)

  const settlement = (item: typeof Settle.Type.items[number]) =>
    Effect.gen(function*() {
      const id = pick(item.job)
      const read = { id, version: yield* version(id, item.reading) }
      const dueAt = dueIn(item.how % 3)
      const settlements: ReadonlyArray<Settlement> = [
        finish(read),
        retry(read, { dueAt }),
        retry(read, { dueAt, entry: { ...attempted(2, "retried"), failure, dueAt } }),
        putBack(read, { dueAt }),
        bury(read),
        bury(read, { isAttempt: false, entry: noted("dead-lettered") }),
        finish(read, { outcome: "expired", result: undefined, entry: noted("expired") })
      ]
      return settlements[item.how]!
    })

  const submit = Effect.fnUntraced(function*(command: typeof Submit.Type) {
    const jobs = command.jobs.map(({ dueIn: seconds, expires, key, lane, line, tenant }) => ({
      id: newId(),
      ...partition,
      lane,
      tenant: tenants[tenant]!,
      type: "Live",
      dueAt: seconds < 4 ? undefined : dueIn(seconds - 4),
      expiresAt: expires ? now + 60_000 : undefined,
      dedupeKey: key === 0 ? undefined : `k${key}`,
      key: line === 0 ? undefined : `line ${line}`,
      place: line === 0 ? undefined : line,
      payload: `{"n":${ids.length}}`,
      context: expires ? "{\"userId\":\"ada\"}" : undefined
    }))
    const bad = command.bad === 9 ? [{ ...jobs[0]!, id: newId(), dedupeKey: undefined, payload: "{" }] : []
    const answers = yield* Effect.option(
      store.submit([...jobs, ...bad], { batchId: jobs.length > 1 ? newBatch() : undefined, now })
    )
    if (Option.isNone(answers)) return "refused"
    return answers.value.map(({ id, isNew, seq }) => {
      if (!isNew) return number(id)
      seqs.set(seq, `${ids.length}`)
      return `new ${ids.push(id) - 1}`
    })
  })

  const rowsOf = (numbers: ReadonlyArray<number>) => store.reread([...new Set(numbers.map(pick))])

  const countCrashes = (by: Owner, held: ReadonlyArray<JobId>) =>
    Effect.map(store.countCrashes(by, held, { runner: "runner", now: 0 }), ({ busy, counted }) => ({
      busy,
      counted: counted.map((one) => ({ ...one, id: number(one.id) })).sort((a, b) => a.id - b.id)
    }))

  const answer = Effect.fnUntraced(function*(command: Command) {
    switch (command._tag) {
      case "Submit":
        return yield* submit(command)
      case "Settle": {
        const settlements = yield* Effect.forEach(command.items, settlement)
        const distinct = settlements.filter(({ id }, index) =>
          settlements.findIndex((other) => other.id === id) === index
        )
        const settled = yield* store.settle(owner(command.by), distinct, now)
        for (const { _tag, id } of distinct) if (_tag === "DeadLetter" && settled.has(id)) dead.push(id)
        return numbers(settled)
      }
      case "Intake": {
        const { jobs, visited } = yield* store.intake(owner(command.by), {
          lanes: [2, 0, 1, 3].map((lane) => ({
            lane,
            after: tenants[command.after] ?? "",
            tenants: command.tenants + 1,
            perTenant: command.perTenant + 1,
            room: command.room + 1
          })),
          marks: command.mark === undefined ? [] : yield* rowsOf([command.mark]),
          held: (yield* rowsOf(command.held)).map(({ seq }) => seq),
          isOrdered: command.isOrdered
        })
        return { jobs: jobs.map((job) => ({ ...job, id: number(job.id), seq: seqs.get(job.seq) })), visited }
      }
      case "Heads": {
        const lines = [1, 2, 3].map((line) => ({ tenant: tenants[command.tenant] ?? "=", key: `line ${line}` }))
        const { elsewhere, jobs } = yield* store.heads(owner(command.by), lines)
        return {
          jobs: jobs.map((job) => ({ ...job, id: number(job.id), seq: seqs.get(job.seq) })).sort((a, b) => a.id - b.id),
          elsewhere: elsewhere.toSorted((a, b) => a.seq - b.seq).map((ready) => ({
            ...ready,
            seq: seqs.get(ready.seq)
          }))
        }
      }
      case "TakeOver":
        return yield* take(command.by)
      case "Crash": {
        const running = yield* Effect.forEach(
          [...new Set(command.running.map(pick))],
          (id) => Effect.map(version(id, 0), (at) => note({ id, version: at }))
        )
        const noted = numbers(yield* store.noteRunning(owner(0), running, now))
        const taken = yield* take(10 + owners.length)
        return {
          noted,
          taken,
          ...(yield* countCrashes(owner(0), command.held === 3 ? running.slice(0, 1).map(({ id }) => id) : []))
        }
      }
      case "HandOver":
        return yield* store.handOver(owner(command.by))
      case "Note": {
        const id = pick(command.job)
        const fenced = { id, version: yield* version(id, command.reading) }
        const progress = command.progress ? { progress: 0.5, message: "half" } : {}
        return numbers(yield* store.noteRunning(owner(command.by), [note(fenced, progress)], now))
      }
      case "NoteDone":
        return yield* store.noteDone(owner(command.by), [pick(command.job)])
      case "CountCrashes":
        return yield* countCrashes(owner(command.by), command.held.map(pick))
      case "Promote": {
        now += command.seconds * 1000
        const ready = yield* store.promote(owner(command.by), now, command.limit + 1)
        return ready.map(({ lane, seq, tenant }) => `${seqs.get(seq)} ${lane} ${tenant}`).sort()
      }
      case "Cancel": {
        const id = pick(command.job)
        // A waiting job is cancelled at the version found, a ready one at the version its owner read.
        const found = command.by === 7 ? (yield* find(id))?.version : undefined
        return yield* store.cancel({
          id,
          version: found ?? (yield* version(id, command.reading)),
          owner: command.by >= 6 ? undefined : owner(command.by),
          entry: noted("cancelled"),
          now,
          purgeAt: t0 + 30 * day
        })
      }
      case "Replay": {
        // One that was a dead letter once, so that there is something to replay.
        const id = dead[command.job % dead.length] ?? pick(command.job)
        const tenant = (yield* find(id))?.tenant ?? tenantKey("acme")
        const stranger = tenants.find((other) => other !== tenant) ?? tenant
        const ready = yield* store.replay(id, command.isStranger === 5 ? stranger : tenant, noted("replayed"))
        if (ready === "taken" || Option.isNone(ready)) return ready === "taken" ? ready : "not found"
        seqs.set(ready.value.seq, `${number(id)} again`)
        return { ...ready.value, queueId: 0, seq: 0 }
      }
      case "Refence": {
        const id = pick(command.job)
        return Option.getOrUndefined(yield* store.refence(owner(command.by), id, yield* version(id, command.reading)))
      }
    }
  })

  const log: Array<unknown> = []
  for (const command of commands) {
    const step = yield* answer(command)
    log.push([command._tag, step])
    watch?.({ command, answer: step, jobs: yield* everyone })
  }
  log.push((yield* everyone).map((record, index) => record === undefined ? undefined : plain(record, index)))
  log.push(
    (yield* store.reread(ids)).map((row) => ({ ...row, id: number(row.id), seq: seqs.get(row.seq) })).sort((a, b) =>
      a.id - b.id
    )
  )
  log.push(yield* store.depth(partition, 3))
  log.push(Option.getOrUndefined(yield* store.nextDue(owner(0))))
  return log
})

/**
 * The chaos run's own test: each rule of its checker fires on what it is there for, and on nothing else; a run whose fence or store is broken
 * on purpose is found out; and a seed is a run.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Path from "effect/Path"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { fileURLToPath } from "node:url"
import { judge } from "../scripts/chaos/checker/check.ts"
import type { Row } from "../scripts/chaos/checker/evidence.ts"
import { load } from "../scripts/chaos/checker/load.ts"
import { rules } from "../scripts/chaos/checker/rules.ts"
import { type Intent, intents } from "../scripts/chaos/intents.ts"
import { kinds, schedule } from "../scripts/chaos/schedule.ts"
import { tables } from "../scripts/chaos/work.ts"
import * as JobRuntime from "../src/JobRuntime.ts"
import { databaseUrl, TestDatabase } from "./utils/database.ts"

// ---------------------------------------------------------------------------------------------------- a run made by hand

const t0 = Date.UTC(2026, 0, 5, 12)
const at = (seconds: number) => t0 + seconds * 1_000
const id = (n: number) => `00000000-0000-7000-8000-${String(n).padStart(12, "0")}`
const ref = (n: number) => `10000000-0000-4000-8000-${String(n).padStart(12, "0")}`
const batch = "20000000-0000-7000-8000-000000000000"

/** What a test changes of a clean run before it is judged. */
interface Story {
  readonly ledger: Array<Record<string, unknown>>
  readonly events: Array<Record<string, unknown>>
  readonly samples: Array<Record<string, unknown>>
  readonly sql: Array<string>
}

interface Shape {
  readonly type?: string
  readonly batch?: boolean
  readonly dedupe?: string
  readonly from?: number
  readonly to?: number
  readonly crashes?: number
  readonly reruns?: number
  readonly history: ReadonlyArray<object>
}

const boom = { class: "Business", tag: "Boom", message: "" }
/** A run of a handler, from one second to another. */
const ran = (attempt: number, outcome: string, from: number, to: number) => ({
  kind: "attempt",
  attempt,
  startedAt: at(from),
  endedAt: at(to),
  runner: "millrace:1",
  outcome,
  ...outcome === "retried" || outcome === "dead-lettered" ? { failure: boom } : {}
})
/** The same, which failed in another way than was planned. */
const failed = (attempt: number, outcome: "retried" | "dead-lettered", tag: string, from: number, to: number) => ({
  ...ran(attempt, outcome, from, to),
  failure: { class: "System", tag, message: "" }
})
const completed = ran(1, "completed", 1, 2)

const payload = (n: number, dedupe?: string) =>
  `'${JSON.stringify({ ref: ref(n), ...dedupe !== undefined && { dedupe } })}'`
const time = (seconds: number) => `timestamptz 'epoch' + interval '${at(seconds)} milliseconds'`
const shared = (n: number, attempt: number, shape: Shape) => {
  const { batch: isBatch, crashes = 0, dedupe, from = 0, history, reruns = 0, type = "Tx" } = shape
  return `'${id(n)}', 0, 1, 0, '=', '${type}', ${attempt}, ${crashes}, ${reruns}, ${
    isBatch === true ? `'${batch}'` : "null"
  }, ${time(from)}, ${payload(n, dedupe)}, '${JSON.stringify(history)}'`
}
const columns =
  "id, version, queue_id, partition, tenant_id, type, attempt, crashes, reruns, batch_id, created_at, payload, history"

const finished = (n: number, outcome: 0 | 1, attempt: number, shape: Shape) =>
  `insert into millrace.finished_jobs (${columns}, outcome, finished_at, purge_on)
   values (${shared(n, attempt, shape)}, ${outcome}, ${time(shape.to ?? 2)}, '2026-01-12')`
const dead = (n: number, attempt: number, shape: Shape, tag = "Boom") =>
  `insert into millrace.dead_letters (${columns}, lane, dead_at, error_tag, error_class, failure)
   values (${shared(n, attempt, shape)}, 2, ${time(shape.to ?? 2)}, '${tag}', 'Business', '{}')`
const live = (n: number, shape: Shape) =>
  `insert into millrace.jobs (${columns}, lane, state, payload_bytes) values (${shared(n, 0, shape)}, 2, 0, 2)`
const effect = (n: number, more: { key?: string; n?: number; from?: number; to?: number; runner?: number } = {}) =>
  `insert into chaos.effects (job_id, ref, key, n, attempt, runner, incarnation, began, at) values
   ('${id(n)}', '${ref(n)}', ${more.key === undefined ? "null" : `'${more.key}'`}, ${more.n ?? "null"}, 1, ${
    more.runner ?? 0
  }, 0,
    ${time(more.from ?? 1)}, ${time(more.to ?? 2)})`
const start = (n: number, from = 1, incarnation = 0, runner = 0) =>
  `insert into chaos.starts (job_id, ref, attempt, runner, incarnation, at) values
   ('${id(n)}', '${ref(n)}', 1, ${runner}, ${incarnation}, ${time(from)})`

const killed = (seconds: number, number = 0, incarnation = 0) => ({
  at: at(seconds),
  what: "runner",
  number,
  incarnation,
  is: "killed"
})
const sessionEnded = (is: string, seconds: number, by: string) => ({ at: at(seconds), what: "session", is, by })
const fault = (kind: string, seconds: number, more: object = {}) => ({
  at: at(seconds),
  what: "fault",
  kind,
  target: 0,
  mode: "",
  forMs: 0,
  ...more
})

const crashLoop = { class: "System", tag: "CrashLoop", message: "" }
/** Crashes of a job a second apart, each half a second after its start, and the dead letter then. */
const crashes = (from: number) => [
  ...[0, 1, 2, 3, 4].map((n) => ran(1, "crashed", from + n, from + n + 0.5)),
  { kind: "dead-lettered", at: at(from + 5), failure: crashLoop }
]
const crashLooped = (n: number, type: string, from: number) =>
  dead(n, 0, { type, crashes: 5, from: from - 0.5, to: from + 5, history: crashes(from) }, "CrashLoop")
/** Starts of a job a second apart. */
const startsOf = (n: number, from: number, count: number) =>
  Array.from({ length: count }, (_, index) => start(n, from + index, index))

let calls = 0
const order = (n: number, more: object = {}) => ({ ref: ref(n), type: "Tx", fails: 0, ...more })
/** A call and its answer. */
const asked = (asked: object, answer: object | undefined, from = 0) => {
  const call = `c${calls++}`
  return [
    { call, at: at(from), say: "intent", ...asked },
    ...answer === undefined ? [] : [{ call, at: at(from + 0.1), ...answer }]
  ]
}
const submitted = (n: number, more: object = {}, from = 0) =>
  asked({ op: "submit", isBatch: false, orders: [order(n, more)] }, { say: "ack", ids: [id(n)] }, from)

/** An innocent job that is dead-lettered as a crash loop, of five times that something is noted. */
const innocent = ({ events, ledger, sql }: Story, n: number, from: number, note: (seconds: number) => object) => {
  ledger.push(...submitted(n, {}, from - 0.5))
  events.push(...[0, 1, 2, 3, 4].map((index) => ({ ...note(from + index + 0.4) })))
  sql.push(crashLooped(n, "Tx", from), ...startsOf(n, from, 5))
}

/** A run in which every promise was kept, with one job of every kind. */
const clean = (): Story => ({
  ledger: [
    ...submitted(1),
    ...submitted(2, { fails: 1 }),
    ...submitted(3, { type: "Plain" }),
    ...submitted(4, { fails: 4 }),
    ...submitted(5, { fails: 4 }),
    ...asked({ op: "replay", job: id(5) }, { say: "ack", ids: [id(5)] }, 10),
    ...submitted(6),
    ...asked({ op: "cancel", job: id(6) }, { say: "ack", ids: [id(6)] }, 1),
    ...asked(
      { op: "submit", isBatch: true, orders: [order(7), order(8)] },
      { say: "ack", ids: [id(7), id(8)], batchId: batch }
    ),
    ...submitted(9, { dedupe: "d1" }),
    // Answered with the one that lives.
    ...asked({ op: "submit", isBatch: false, orders: [order(90, { dedupe: "d1" })] }, { say: "ack", ids: [id(9)] }, 1),
    ...submitted(10, { dedupe: "d1" }, 10),
    ...submitted(11, { type: "Keyed", key: "k", n: 1 }),
    ...submitted(12, { type: "Keyed", key: "k", n: 2 }),
    // Never heard of again: one was stored, one was not.
    ...asked({ op: "submit", isBatch: false, orders: [order(13)] }, undefined),
    ...asked({ op: "submit", isBatch: false, orders: [order(14)] }, { say: "unknown", error: "OutcomeUnknown" }),
    ...asked({ op: "submit", isBatch: false, orders: [order(15)] }, { say: "refused", error: "StoreUnavailable" }),
    ...submitted(15, {}, 1),
    ...submitted(16, { type: "Die" }, 39.5),
    ...submitted(17, { type: "KillBackend" }, 49.5),
    ...submitted(18, { type: "Uninspectable" }),
    ...submitted(19, { type: "Hang" }),
    ...submitted(20, { type: "IdleInTransaction" }),
    ...submitted(21, { type: "Cut" }, 30),
    // Its session was terminated with those of all handlers.
    ...submitted(22, { fails: 1 }, 30),
    ...submitted(23),
    ...submitted(24, { type: "HangKeyed", key: "l", n: 1 }),
    ...submitted(25, { type: "Keyed", key: "l", n: 2 }, 14),
    // The first one was abandoned, and did not end before the second one had begun.
    ...submitted(26, { type: "Keyed", key: "m", n: 1 }),
    ...submitted(27, { type: "Keyed", key: "m", n: 2 }),
    // The database was away for so long that an attempt counts.
    ...submitted(28)
  ],
  events: [
    { at: at(0), what: "began" },
    killed(1.5),
    // One that nobody hurt had no turn for a while, and what it began before was taken from it.
    { at: at(14), what: "runner", number: 1, incarnation: 0, is: "stood", forMs: 6_000 },
    sessionEnded("terminated", 31.2, id(21)),
    sessionEnded("cut", 33.2, id(21)),
    fault("terminate", 36.5, { mode: "handlers" }),
    ...[0, 1, 2, 3, 4].map((n) => killed(40.5 + n, 0, n)),
    ...[0, 1, 2, 3, 4].map((n) => sessionEnded("killed", 50.5 + n, id(17))),
    { at: at(60), what: "quiet" }
  ],
  samples: [
    { at: at(0), epochs: { "default/0": 1 } },
    { at: at(2), epochs: { "default/0": 2 } },
    { at: at(2), crashes: { [id(3)]: 1 } },
    { at: at(3), twice: [] },
    { at: at(11.5), epochs: { "default/0": 3 } },
    { at: at(12), crashes: { [id(10)]: 1 } }
  ],
  sql: [
    finished(1, 0, 1, { history: [completed] }),
    finished(2, 0, 2, { to: 4, history: [ran(1, "retried", 1, 2), ran(2, "completed", 3, 4)] }),
    finished(3, 0, 1, {
      type: "Plain",
      crashes: 1,
      history: [ran(1, "crashed", 1, 1.6), ran(1, "completed", 1.7, 2)]
    }),
    dead(4, 4, {
      to: 8,
      history: [
        ran(1, "retried", 1, 2),
        ran(2, "retried", 3, 4),
        ran(3, "retried", 5, 6),
        ran(4, "dead-lettered", 7, 8)
      ]
    }),
    finished(5, 0, 1, {
      to: 12,
      history: [
        ran(1, "retried", 1, 2),
        ran(2, "retried", 3, 4),
        ran(3, "retried", 5, 6),
        ran(4, "dead-lettered", 7, 8),
        { kind: "replayed", at: at(10) },
        ran(1, "completed", 11, 12)
      ]
    }),
    finished(6, 1, 0, { history: [{ kind: "cancelled", at: at(1) }] }),
    finished(7, 0, 1, { batch: true, history: [completed] }),
    finished(8, 0, 1, { batch: true, history: [completed] }),
    finished(9, 0, 1, { dedupe: "d1", history: [completed] }),
    finished(10, 0, 1, {
      dedupe: "d1",
      from: 10,
      to: 12,
      crashes: 1,
      history: [ran(1, "crashed", 10.2, 11.4), ran(1, "completed", 11.5, 12)]
    }),
    finished(11, 0, 1, { type: "Keyed", history: [completed] }),
    finished(12, 0, 1, { type: "Keyed", to: 4, history: [ran(1, "completed", 3, 4)] }),
    finished(13, 0, 1, { history: [completed] }),
    finished(15, 0, 1, { from: 1, history: [completed] }),
    crashLooped(16, "Die", 40),
    ...startsOf(16, 40, 5),
    crashLooped(17, "KillBackend", 50),
    ...startsOf(17, 50, 5),
    dead(18, 4, {
      type: "Uninspectable",
      to: 8,
      history: [
        failed(1, "retried", "Unknown", 1, 2),
        failed(2, "retried", "Unknown", 3, 4),
        failed(3, "retried", "Unknown", 5, 6),
        failed(4, "dead-lettered", "Unknown", 7, 8)
      ]
    }, "Unknown"),
    ...startsOf(18, 1, 4),
    dead(19, 2, {
      type: "Hang",
      to: 15,
      history: [failed(1, "retried", "JobTimeout", 2, 8), failed(2, "dead-lettered", "JobTimeout", 9, 15)]
    }, "JobTimeout"),
    start(19, 2),
    start(19, 9),
    dead(20, 4, {
      type: "IdleInTransaction",
      reruns: 1,
      to: 9,
      history: [
        ran(1, "interrupted", 0, 0.5),
        failed(1, "retried", "SqlError", 1, 2),
        failed(2, "retried", "SqlError", 3, 4),
        failed(3, "retried", "SqlError", 5, 6),
        failed(4, "dead-lettered", "SqlError", 7, 8)
      ]
    }, "SqlError"),
    start(20, 0),
    ...startsOf(20, 1, 4),
    finished(21, 0, 2, {
      type: "Cut",
      crashes: 1,
      from: 30,
      to: 36,
      history: [
        failed(1, "retried", "SqlError", 31, 32),
        ran(2, "crashed", 33, 34),
        ran(2, "completed", 35, 36)
      ]
    }),
    finished(22, 0, 3, {
      from: 30,
      to: 39,
      history: [ran(1, "retried", 30.5, 31), failed(2, "retried", "SqlError", 36, 37), ran(3, "completed", 38, 39)]
    }),
    // The runner shut down, and later the database was away.
    finished(23, 0, 1, {
      to: 6,
      reruns: 2,
      history: [ran(1, "interrupted", 1, 2), ran(1, "interrupted", 3, 4), ran(1, "completed", 5, 6)]
    }),
    dead(24, 2, {
      type: "HangKeyed",
      to: 15,
      history: [failed(1, "retried", "JobTimeout", 2, 8), failed(2, "dead-lettered", "JobTimeout", 9, 15)]
    }, "JobTimeout"),
    start(24, 2),
    start(24, 9),
    finished(25, 0, 1, {
      type: "Keyed",
      from: 14,
      to: 16,
      history: [ran(1, "completed", 15.1, 16)]
    }),
    finished(26, 0, 1, { type: "Keyed", to: 4, history: [ran(1, "completed", 1, 4)] }),
    finished(27, 0, 1, {
      type: "Keyed",
      to: 3,
      history: [{ ...ran(1, "completed", 2, 3), alongside: id(26) }]
    }),
    finished(28, 0, 2, {
      to: 4,
      reruns: 20,
      history: [failed(1, "retried", "SqlError", 1, 2), ran(2, "completed", 3, 4)]
    }),
    ...[21, 22, 23, 28].map((n) => effect(n)),
    effect(26, { key: "m", n: 1, from: 1, to: 4 }),
    effect(27, { key: "m", n: 2, from: 2, to: 3 }),
    effect(25, { key: "l", n: 2, from: 15.1, to: 16 }),
    ...[31, 33, 35].map((from) => start(21, from)),
    ...[30.5, 36, 38].map((from) => start(22, from)),
    ...[1, 3, 5].map((from) => start(23, from)),
    start(25, 15.1),
    ...[1, 3].map((from) => start(28, from)),
    ...[26, 27].map((n) => start(n)),
    // In the process that stood still.
    start(10, 10.2, 0, 1),
    ...[1, 2, 5, 7, 8, 9, 10, 13, 15].map((n) => effect(n)),
    effect(11, { key: "k", n: 1, from: 1, to: 2 }),
    effect(12, { key: "k", n: 2, from: 3, to: 4 }),
    ...[1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 15].map((n) => start(n))
  ]
})

/** What is wrong with a run, by the rule that has to notice, how that comes about, and which other rules cannot but notice, too. */
const wrongs: ReadonlyArray<
  readonly [keyof typeof rules, string, (story: Story) => void, ...ReadonlyArray<keyof typeof rules>]
> = [
  ["present", "an acknowledged job is nowhere", ({ sql }) => {
    sql.push(`delete from millrace.finished_jobs where id = '${id(3)}'`)
  }],
  ["single", "a job is in two places", ({ sql }) => {
    sql.push(finished(1, 0, 1, { history: [completed] }).replace("2026-01-12", "2026-01-13"))
  }],
  ["single", "a submission was stored twice", ({ sql }) => {
    sql.push(finished(100, 0, 1, { history: [completed] }).replace(ref(100), ref(1)), effect(100), start(100))
  }],
  ["single", "a refused submission was stored", ({ sql }) => {
    sql.push(finished(100, 0, 1, { history: [completed] }).replace(ref(100), ref(15)), effect(100), start(100))
  }],
  ["single", "a job was never asked for", ({ sql }) => {
    sql.push(finished(100, 0, 1, { history: [completed] }), effect(100), start(100))
  }],
  ["final", "a job waits when all is quiet", ({ ledger, sql }) => {
    ledger.push(...submitted(100))
    sql.push(live(100, { history: [] }))
  }],
  ["exactlyOnce", "a job has committed twice", ({ sql }) => {
    sql.push(effect(1))
  }],
  ["exactlyOnce", "a completed job has committed nothing", ({ sql }) => {
    sql.push(`delete from chaos.effects where job_id = '${id(1)}'`)
  }],
  ["exactlyOnce", "a cancelled job has committed", ({ sql }) => {
    sql.push(effect(6))
  }],
  ["exactlyOnce", "a job that was not stored has committed", ({ sql }) => {
    sql.push(effect(14))
  }],
  ["atLeastOnce", "a completed job never ran", ({ sql }) => {
    sql.push(`delete from chaos.starts where job_id = '${id(1)}'`)
  }],
  ["fenced", "a partition has gone back to an older owner", ({ samples }) => {
    samples.push({ at: at(13), epochs: { "default/0": 1 } })
  }],
  ["whole", "an acknowledged batch has lost its other half", ({ sql }) => {
    sql.push(`update millrace.finished_jobs set batch_id = null where id = '${id(8)}'`)
  }],
  ["whole", "half of a batch was stored that nobody heard of again", ({ ledger, sql }) => {
    ledger.push(...asked({ op: "submit", isBatch: true, orders: [order(100), order(101)] }, undefined))
    sql.push(finished(100, 0, 1, { history: [completed] }), effect(100), start(100))
  }],
  ["deduped", "two jobs of a key lived at once", ({ sql }) => {
    sql.push(
      `update millrace.finished_jobs set created_at = ${time(0)}, finished_at = ${time(12)} where id = '${id(9)}'`
    )
  }],
  ["deduped", "two jobs of a key were seen alive at once", ({ samples }) => {
    samples.push({ at: at(9), twice: ["d1"] })
  }],
  ["deduped", "a duplicate was answered with a job that was over", ({ ledger }) => {
    ledger.push(
      ...asked(
        { op: "submit", isBatch: false, orders: [order(91, { dedupe: "d1" })] },
        { say: "ack", ids: [id(9)] },
        30
      )
    )
  }],
  ["ordered", "jobs of a key took effect in the wrong order", ({ sql }) => {
    sql.push(`update chaos.effects set n = 3 - n where key = 'k'`)
  }],
  ["ordered", "jobs of a key ran at the same time", ({ sql }) => {
    sql.push(`update chaos.effects set began = ${time(1.5)} where key = 'k' and n = 2`)
  }],
  ["ordered", "a job of a key ran beside another one than the abandoned", ({ sql }) => {
    sql.push(
      `update millrace.finished_jobs set history = jsonb_set(history, '{0,alongside}', '"${id(24)}"') where id = '${
        id(27)
      }'`
    )
  }],
  ["unburnt", "an attempt failed of what nobody planned", ({ sql }) => {
    sql.push(
      `update millrace.finished_jobs set history = jsonb_set(history, '{0,failure,tag}', '"SqlError"') where id = '${
        id(2)
      }'`
    )
  }],
  ["unburnt", "a job was given up too early", ({ sql }) => {
    sql.push(
      `update millrace.dead_letters set attempt = 3, history = '${
        JSON.stringify([ran(1, "retried", 1, 2), ran(2, "retried", 3, 4), ran(3, "dead-lettered", 7, 8)])
      }' where id = '${id(4)}'`
    )
  }],
  ["unburnt", "a terminated session counts as an attempt, and it was terminated at another time", ({ events }) => {
    events.push({ ...fault("terminate", 45, { mode: "handlers" }) })
    events.splice(events.findIndex(({ kind }) => kind === "terminate"), 1)
  }],
  ["unburnt", "sessions of the runtime were terminated, and an attempt counts", ({ events }) => {
    Object.assign(events.find(({ kind }) => kind === "terminate")!, { mode: "own" })
  }],
  ["unburnt", "an attempt counts of the 19th rerun", ({ ledger, sql }) => {
    ledger.push(...submitted(100))
    const history = [failed(1, "retried", "SqlError", 1, 2), ran(2, "completed", 3, 4)]
    sql.push(finished(100, 0, 2, { to: 4, reruns: 19, history }), effect(100), start(100))
  }],
  ["unburnt", "an attempt succeeded that was planned to fail", ({ ledger, sql }) => {
    ledger.push(...submitted(100, { fails: 1 }))
    sql.push(finished(100, 0, 1, { history: [completed] }), effect(100), start(100))
  }],
  ["blameless", "a crash is counted that no process died of", ({ samples }) => {
    samples.push({ at: at(9), crashes: { [id(3)]: 2 } })
  }],
  ["blameless", "a crash is counted, and what stood still did so at another time", ({ events }) => {
    events.push({ ...events.splice(2, 1)[0], at: at(30) })
  }],
  ["blameless", "a job was given up after too few crashes", ({ sql }) => {
    sql.push(
      `update millrace.dead_letters set crashes = 4, history = history - 4 where id = '${id(16)}'`,
      `delete from chaos.starts where job_id = '${id(16)}' and incarnation = 4`
    )
  }],
  ["blameless", "a crash is counted for a connection that was cut of another runner", ({ events, ledger, sql }) => {
    ledger.push(...submitted(100))
    events.push(fault("cut", 25.5, { target: 1 }))
    const history = [ran(1, "crashed", 25, 26), ran(1, "completed", 27, 28)]
    sql.push(finished(100, 0, 1, { crashes: 1, to: 28, history }), effect(100), start(100, 25))
  }],
  ["blameless", "a crash is counted for a session that another job has ended", ({ events, ledger, sql }) => {
    ledger.push(...submitted(100))
    events.push(sessionEnded("cut", 25.5, id(21)))
    const history = [ran(1, "crashed", 25, 26), ran(1, "completed", 27, 28)]
    sql.push(finished(100, 0, 1, { crashes: 1, to: 28, history }), effect(100), start(100, 25))
  }],
  ["blameless", "one run is counted as two crashes", ({ ledger, sql }) => {
    ledger.push(...submitted(100))
    const history = [ran(1, "crashed", 1, 1.6), ran(1, "crashed", 1, 1.7), ran(1, "completed", 1.8, 2)]
    sql.push(finished(100, 0, 1, { crashes: 2, history }), effect(100), start(100))
  }],
  ["spared", "two innocent jobs are crash loops for a few server kills", (story) => {
    innocent(story, 100, 20, (seconds) => sessionEnded("killed", seconds, "fault"))
    innocent(story, 101, 20, (seconds) => fault("crash", seconds))
  }],
  ["bounded", "a job that kills its backend was dead-lettered for something else", ({ sql }) => {
    sql.push(`update millrace.dead_letters set error_tag = 'SqlError' where id = '${id(17)}'`)
  }],
  ["bounded", "a job that kills its backend was started more often than it has crashes", ({ sql }) => {
    for (let n = 0; n < 30; n++) sql.push(start(17, 50 + n / 10))
  }],
  ["bounded", "an uninspectable failure took the job's attempts twice", ({ sql }) => {
    for (let n = 0; n < 30; n++) sql.push(start(18, 1 + n / 10))
  }],
  ["bounded", "an uninspectable failure was counted where no handler had begun", ({ sql }) => {
    sql.push(`delete from chaos.starts where id in (select id from chaos.starts where job_id = '${id(18)}' limit 1)`)
  }],
  ["bounded", "an uninspectable failure is a dead letter too early", ({ sql }) => {
    sql.push(
      `update millrace.dead_letters set attempt = 3, history = jsonb_set(history - 3, '{2,outcome}', '"dead-lettered"') where id = '${
        id(18)
      }'`
    )
  }],
  ["bounded", "a job whose session the server ends has completed", ({ sql }) => {
    sql.push(
      `delete from millrace.dead_letters where id = '${id(20)}'`,
      finished(20, 0, 1, { type: "IdleInTransaction", to: 2, history: [completed] }),
      effect(20)
    )
  }],
  ["bounded", "a hanging handler failed of something else than its timeout", ({ sql }) => {
    sql.push(`update millrace.dead_letters set error_tag = 'Boom' where id = '${id(19)}'`)
  }],
  ["bounded", "a hanging handler had one attempt more", ({ sql }) => {
    const history = [
      failed(1, "retried", "JobTimeout", 2, 8),
      failed(2, "retried", "JobTimeout", 9, 15),
      failed(3, "dead-lettered", "JobTimeout", 16, 22)
    ]
    sql.push(
      `delete from millrace.dead_letters where id = '${id(19)}'`,
      dead(19, 3, { type: "Hang", to: 22, history }, "JobTimeout"),
      start(19, 16)
    )
  }],
  ["bounded", "a hanging handler was abandoned late", ({ sql }) => {
    sql.push(
      `update millrace.dead_letters set dead_at = ${time(30)}, history = jsonb_set(history, '{1,endedAt}', '${
        at(30)
      }') where id = '${id(19)}'`
    )
  }],
  ["legal", "a job went on after its end", ({ sql }) => {
    sql.push(
      `update millrace.finished_jobs set attempt = 2, history = history || '${
        JSON.stringify([ran(2, "completed", 3, 4)])
      }' where id = '${id(2)}'`
    )
  }],
  ["legal", "a history runs backwards", ({ sql }) => {
    sql.push(
      `update millrace.finished_jobs set history = '${
        JSON.stringify([ran(1, "retried", 9, 10), ran(2, "completed", 3, 4)])
      }' where id = '${id(2)}'`
    )
  }],
  ["legal", "a crash has no entry", ({ sql }) => {
    sql.push(`update millrace.finished_jobs set history = history - 0 where id = '${id(3)}'`)
  }],
  ["legal", "an interrupted run is not counted", ({ sql }) => {
    sql.push(`update millrace.finished_jobs set reruns = 1 where id = '${id(23)}'`)
  }],
  ["legal", "an interrupted run has the number of an attempt that was", ({ sql }) => {
    const history = [ran(1, "retried", 1, 2), ran(1, "interrupted", 2.5, 3), ran(2, "completed", 3, 4)]
    sql.push(
      `update millrace.finished_jobs set reruns = 1, history = '${JSON.stringify(history)}' where id = '${id(2)}'`
    )
  }],
  ["legal", "an attempt is missing in a history", ({ sql }) => {
    sql.push(`update millrace.finished_jobs set history = history - 0 where id = '${id(2)}'`)
  }],
  ["replayed", "a replay was acknowledged and did not happen", ({ ledger }) => {
    ledger.push(...asked({ op: "replay", job: id(4) }, { say: "ack", ids: [id(4)] }, 10))
  }],
  ["replayed", "a replay has lost what was before", ({ sql }) => {
    sql.push(`update millrace.finished_jobs set history = history - 3 - 2 - 1 where id = '${id(5)}'`)
  }, "legal"],
  ["cancelled", "a cancelled job has completed", ({ ledger }) => {
    ledger.push(...asked({ op: "cancel", job: id(1) }, { say: "ack", ids: [id(1)] }, 1))
  }],
  ["cancelled", "a job is cancelled and nobody asked for it", ({ ledger }) => {
    ledger.splice(ledger.findIndex(({ job }) => job === id(6)), 2)
  }]
]

const lines = (all: ReadonlyArray<object>) => all.map((one) => `${JSON.stringify(one)}\n`).join("")

/** Writes the story down as a run leaves it, and has it judged. */
const judged = ({ events, ledger, samples, sql }: Story) =>
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const { join } = yield* Path.Path
    const client = yield* PgClient
    yield* client.unsafe(`
      truncate millrace.jobs, millrace.dead_letters, millrace.finished_jobs, chaos.effects, chaos.starts`)
    for (const statement of sql) yield* client.unsafe(statement)
    const folder = yield* fs.makeTempDirectoryScoped({ prefix: "millrace-chaos-test-" })
    yield* fs.writeFileString(
      join(folder, "terms.json"),
      JSON.stringify({
        maxAttempts: 4,
        crashLimit: 5,
        hang: { attempts: 2, timeoutMs: 1_000, abandonMs: 5_000 }
      })
    )
    yield* fs.writeFileString(join(folder, "ledger-0.0.jsonl"), lines(ledger))
    yield* fs.writeFileString(join(folder, "events.jsonl"), lines(events))
    yield* fs.writeFileString(join(folder, "samples.jsonl"), lines(samples))
    const url = yield* databaseUrl
    return judge(yield* Effect.promise(() => load(url, folder)))
  }).pipe(Effect.scoped)

const database = Layer.effectDiscard(Effect.gen(function*() {
  const sql = yield* PgClient
  for (const statement of tables) yield* sql.unsafe(statement)
  yield* sql.unsafe("select millrace.ensure_partition('2026-01-12'), millrace.ensure_partition('2026-01-13')")
})).pipe(
  Layer.provideMerge(JobRuntime.layerClient()),
  Layer.provideMerge(TestDatabase.layer),
  Layer.provideMerge(NodeServices.layer)
)

describe("the checker", () => {
  it.live(
    "finds nothing wrong with a run in which every promise was kept, and each wrong by its rule and no other",
    () =>
      Effect.gen(function*() {
        const verdict = yield* judged(clean())
        assert.deepStrictEqual(verdict.breaches, [])
        assert.deepInclude(verdict, {
          jobs: 27,
          acknowledged: 26,
          lost: 0,
          duplicated: 0,
          unfinished: 0,
          serverKills: 5
        })
        for (const [rule, wrong, change, ...others] of wrongs) {
          const story = clean()
          change(story)
          const { breaches } = yield* judged(story)
          assert.sameMembers([...new Set(breaches.map((breach) => breach.rule))], [rule, ...others], wrong)
        }
        assert.sameMembers(Object.keys(rules), [...new Set(wrongs.map(([rule]) => rule))])
      }).pipe(Effect.provide(database)),
    60_000
  )

  it.live("counts what is lost and what is there twice", () =>
    Effect.gen(function*() {
      const story = clean()
      story.sql.push(effect(1), effect(1), effect(2), `delete from millrace.finished_jobs where id = '${id(3)}'`)
      assert.deepInclude(yield* judged(story), { lost: 1, duplicated: 3 })
    }).pipe(Effect.provide(database)), 60_000)

  it.live(
    "counts who was given up for crashes of others, and of those who was not left alone",
    () =>
      Effect.gen(function*() {
        for (const [incarnation, besideKillers] of [[1, 0], [3, 1]] as const) {
          const story = clean()
          innocent(story, 100, 20, killed)
          story.sql.push(start(16, 20.5 + incarnation, incarnation))
          assert.deepInclude(yield* judged(story), { innocents: 1, besideKillers, breaches: [] })
        }
      }).pipe(Effect.provide(database)),
    60_000
  )

  it("allows one innocent crash loop in 50,000 jobs with 25 server kills, and more with more", () => {
    const row = (n: number, errorTag?: string): Row => ({
      id: id(n),
      place: "dead_letters",
      state: "failed",
      queue: "tx",
      partition: 0,
      attempt: 0,
      createdAt: at(0),
      endedAt: at(100),
      dueAt: undefined,
      batchId: undefined,
      errorTag,
      reruns: 0,
      crashes: 5,
      type: "Tx",
      ref: ref(n),
      dedupe: undefined,
      history: crashes(10)
    })
    const breaches = (jobs: number, innocents: number, kills: number) =>
      rules.spared({
        terms: { maxAttempts: 4, crashLimit: 5, hang: { attempts: 2, timeoutMs: 1_000, abandonMs: 5_000 } },
        rows: Array.from({ length: jobs }, (_, n) => row(n, n < innocents ? "CrashLoop" : "Boom")),
        calls: [],
        effects: [],
        starts: [],
        events: Array.from({ length: kills }, (_, n) => sessionEnded("killed", 10 + n / 100, "fault")),
        samples: []
      }).length
    assert.deepStrictEqual([breaches(100, 1, 5), breaches(100, 2, 25), breaches(100, 2, 50)], [0, 2, 0])
    assert.deepStrictEqual([breaches(50_001, 2, 25), breaches(50_001, 3, 25), breaches(50_001, 5, 50)], [0, 3, 5])
    // Processes were killed, no server.
    assert.strictEqual(breaches(100, 5, 0), 0)
  })

  it.live(
    "measures how long nothing was started although a job was ready, with and without the database's outages",
    () =>
      Effect.gen(function*() {
        const story = clean()
        story.ledger.push(...submitted(100, {}, 20), ...submitted(101, {}, 22))
        story.events.push(
          { at: at(21), what: "database", is: "down" },
          { at: at(25), what: "database", is: "up" }
        )
        story.sql.push(
          finished(100, 0, 1, { from: 20, to: 30.2, history: [ran(1, "completed", 30.1, 30.2)] }),
          finished(101, 0, 1, { from: 20, to: 30.2, history: [ran(1, "completed", 30.1, 30.2)] }),
          effect(100),
          effect(101),
          start(100, 30.1),
          start(101, 30.2)
        )
        assert.deepInclude(yield* judged(story), { longestStallMs: 10_000, stallWithoutOutageMs: 5_100 })
      }).pipe(Effect.provide(database)),
    60_000
  )
})

// ---------------------------------------------------------------------------------------------------- seeds

const some = (seed: number, name: string): ReadonlyArray<Intent> => {
  const source = intents(seed, name, { perSecond: 20, hostility: "deadly" })
  return Array.from({ length: 500 }, () => source.next().value)
}

describe("a seed", () => {
  const options = { seed: 7, ms: 1_200_000, runners: 3, submitters: 2, isCluster: true, hasNamespace: true }

  it("gives the same schedule and the same intents, and another one others", () => {
    assert.deepStrictEqual(schedule(options), schedule(options))
    assert.notDeepEqual(schedule(options), schedule({ ...options, seed: 8 }))
    assert.deepStrictEqual(some(7, "0.0"), some(7, "0.0"))
    assert.notDeepEqual(some(7, "0.0"), some(8, "0.0"))
    assert.notDeepEqual(some(7, "0.0"), some(7, "0.1"))
  })

  it("names no job twice, in all submitters and their incarnations", () => {
    const refs = ["0.0", "0.1", "1.0", "1.1"].flatMap((name) => some(7, name)).flatMap(({ orders }) =>
      orders.map((order) => order.ref)
    )
    assert.strictEqual(new Set(refs).size, refs.length)
  })

  it("has every kind of fault in a run that is long enough, and one outage of the database at a time", () => {
    for (const seed of [1, 2, 3]) {
      const faults = schedule({ ...options, seed, ms: 90_000 })
      assert.sameMembers([...new Set(faults.map(({ kind }) => kind))], Object.keys(kinds))
      const outages = schedule({ ...options, seed }).filter(({ kind }) => ["restart", "crash", "refuse"].includes(kind))
      for (const [index, { at }] of outages.entries()) {
        const before = outages[index - 1]
        if (before !== undefined) assert.isAtLeast(at, before.at + before.forMs + 5_000)
      }
    }
  })
})

// ---------------------------------------------------------------------------------------------------- whole runs

const Result = Schema.fromJsonString(Schema.Struct({
  jobs: Schema.Int,
  lost: Schema.Int,
  duplicated: Schema.Int,
  longestStallMs: Schema.Int,
  faults: Schema.Record(Schema.String, Schema.Int),
  seed: Schema.Int,
  breaches: Schema.Array(Schema.Struct({ rule: Schema.String, of: Schema.String, detail: Schema.String }))
}))

/** Runs it to its end; the last line of its output. */
const run = (...args: ReadonlyArray<string>) =>
  Effect.gen(function*() {
    const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
    const script = fileURLToPath(new URL("../scripts/chaos/main.ts", import.meta.url))
    const handle = yield* spawner.spawn(
      ChildProcess.make(process.execPath, [script, "--json", "--seed", "7", ...args], { extendEnv: true })
    )
    const text = (output: Stream.Stream<Uint8Array, unknown>) => Stream.mkString(Stream.decodeText(output))
    const [stdout, stderr] = yield* Effect.all([text(handle.stdout), text(handle.stderr)], { concurrency: 2 })
    const code = Number(yield* handle.exitCode)
    const last = stdout.trim().split("\n").at(-1) ?? ""
    return {
      code,
      result: yield* Effect.catch(Schema.decodeUnknownEffect(Result)(last), () => Effect.die(new Error(stderr)))
    }
  }).pipe(Effect.scoped)

describe("an owner that is frozen inside its COMMIT while a successor runs the job", () => {
  it.live("has committed it, and the successor has not", () =>
    Effect.gen(function*() {
      const { code, result } = yield* run("--scenario", "pause", "--runners", "2")
      assert.deepStrictEqual(result.breaches, [])
      assert.deepInclude(result, { jobs: 1, lost: 0, duplicated: 0, seed: 7 })
      assert.strictEqual(code, 0)
    }).pipe(Effect.provide(NodeServices.layer)), 150_000)

  it.live("and the successor have both when the fence is broken, which is found", () =>
    Effect.gen(function*() {
      const { code, result } = yield* run("--scenario", "pause", "--runners", "2", "--break", "fence")
      assert.isAtLeast(result.duplicated, 1)
      assert.includeMembers(result.breaches.map(({ rule }) => rule), ["exactlyOnce", "fenced"])
      assert.strictEqual(code, 1)
    }).pipe(Effect.provide(NodeServices.layer)), 150_000)
})

describe("a store that loses jobs", () => {
  it.live("is found out", () =>
    Effect.gen(function*() {
      const { code, result } = yield* run("--seconds", "5", "--runners", "1", "--submitters", "1", "--break", "lose")
      assert.isAtLeast(result.lost, 1)
      assert.strictEqual(code, 1)
    }).pipe(Effect.provide(NodeServices.layer)), 150_000)
})

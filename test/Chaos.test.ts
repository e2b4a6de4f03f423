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
  ...outcome === "completed" || outcome === "cancelled" ? {} : { failure: boom }
})
const completed = ran(1, "completed", 1, 2)

const payload = (n: number, dedupe?: string) =>
  `'${JSON.stringify({ ref: ref(n), ...dedupe !== undefined && { dedupe } })}'`
const time = (seconds: number) => `timestamptz 'epoch' + interval '${at(seconds)} milliseconds'`
const shared = (n: number, attempt: number, { batch: isBatch, dedupe, from = 0, history, type = "Tx" }: Shape) =>
  `'${id(n)}', 0, 1, 0, '=', '${type}', ${attempt}, ${isBatch === true ? `'${batch}'` : "null"}, ${time(from)}, ${
    payload(n, dedupe)
  }, '${JSON.stringify(history)}'`
const columns = "id, version, queue_id, partition, tenant_id, type, attempt, batch_id, created_at, payload, history"

const finished = (n: number, outcome: 0 | 1, attempt: number, shape: Shape) =>
  `insert into millrace.finished_jobs (${columns}, outcome, finished_at, purge_on)
   values (${shared(n, attempt, shape)}, ${outcome}, ${time(shape.to ?? 2)}, '2026-01-12')`
const dead = (n: number, attempt: number, shape: Shape, tag = "Boom") =>
  `insert into millrace.dead_letters (${columns}, lane, crashes, dead_at, error_tag, error_class, failure)
   values (${shared(n, attempt, shape)}, 2, ${shape.crashes ?? 0}, ${time(shape.to ?? 2)}, '${tag}', 'Business', '{}')`
const live = (n: number, shape: Shape) =>
  `insert into millrace.jobs (${columns}, lane, state, payload_bytes) values (${shared(n, 0, shape)}, 2, 0, 2)`
const effect = (n: number, more: { key?: string; n?: number; from?: number; to?: number; runner?: number } = {}) =>
  `insert into chaos.effects (job_id, ref, key, n, attempt, runner, incarnation, began, at) values
   ('${id(n)}', '${ref(n)}', ${more.key === undefined ? "null" : `'${more.key}'`}, ${more.n ?? "null"}, 1, ${
    more.runner ?? 0
  }, 0,
    ${time(more.from ?? 1)}, ${time(more.to ?? 2)})`
const start = (n: number, from = 1, incarnation = 0) =>
  `insert into chaos.starts (job_id, ref, attempt, runner, incarnation, at) values
   ('${id(n)}', '${ref(n)}', 1, 0, ${incarnation}, ${time(from)})`

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
    ...submitted(16, { type: "Die" })
  ],
  events: [
    { at: at(0), what: "began" },
    { at: at(1.5), what: "runner", number: 0, incarnation: 0, is: "killed" },
    // One that nobody hurt had no turn for a while, and what it began before was taken from it.
    { at: at(14), what: "runner", number: 1, incarnation: 0, is: "stood", forMs: 6_000 },
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
    finished(3, 0, 1, { type: "Plain", history: [completed] }),
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
    finished(10, 0, 1, { dedupe: "d1", from: 10, to: 12, history: [ran(1, "completed", 11, 12)] }),
    finished(11, 0, 1, { type: "Keyed", history: [completed] }),
    finished(12, 0, 1, { type: "Keyed", to: 4, history: [ran(1, "completed", 3, 4)] }),
    finished(13, 0, 1, { history: [completed] }),
    finished(15, 0, 1, { from: 1, history: [completed] }),
    dead(16, 0, {
      type: "Die",
      crashes: 5,
      history: [{ kind: "dead-lettered", at: at(2), failure: { ...boom, tag: "CrashLoop" } }]
    }, "CrashLoop"),
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
  ["blameless", "a crash is counted that no process died of", ({ samples }) => {
    samples.push({ at: at(9), crashes: { [id(3)]: 2 } })
  }],
  ["blameless", "a crash is counted, and what stood still did so at another time", ({ events }) => {
    events.push({ ...events.splice(2, 1)[0], at: at(30) })
  }],
  ["blameless", "a job was given up after too few crashes", ({ sql }) => {
    sql.push(`update millrace.dead_letters set crashes = 4 where id = '${id(16)}'`)
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
      JSON.stringify({ maxAttempts: 4, crashLimit: 5 })
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
        assert.deepInclude(verdict, { jobs: 15, acknowledged: 14, lost: 0, duplicated: 0, unfinished: 0 })
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
          const history = [{ kind: "dead-lettered", at: at(20), failure: { ...boom, tag: "CrashLoop" } }]
          story.sql.push(
            dead(100, 0, { type: "Plain", crashes: 5, to: 20, history }, "CrashLoop"),
            ...[0, 1, 2, 3, 4].map((number) => start(100, 10 + number, number)),
            start(16, 10.5 + incarnation, incarnation)
          )
          assert.deepInclude(yield* judged(story), { innocents: 1, besideKillers })
        }
      }).pipe(Effect.provide(database)),
    60_000
  )

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

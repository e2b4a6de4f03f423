/**
 * Each hot statement finds its rows through its index and reads no more of `jobs` than it gives back, on 100,000 rows: with statistics taken
 * while the table was empty as well as when it was full, under the settings of the pool that runs it. No time is measured.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Database from "../src/internal/sql/database.ts"
import { cancel, replay } from "../src/internal/sql/deadLetter.ts"
import { settlementOf } from "../src/internal/sql/group.ts"
import { heads, intake, reread } from "../src/internal/sql/intake.ts"
import { isEmptySql, isMovingSql, leftovers } from "../src/internal/sql/layout.ts"
import { depth, find } from "../src/internal/sql/query.ts"
import { int4 } from "../src/internal/sql/rows.ts"
import { nextDue, promote } from "../src/internal/sql/schedule.ts"
import { settle } from "../src/internal/sql/settle.ts"
import * as SubmitStatements from "../src/internal/sql/submitStatements.ts"
import { countCrashes, handOver, noteDone, noteRunning } from "../src/internal/sql/takeOver.ts"
import { refence, settleParameters, settleSql } from "../src/internal/sql/transact.ts"
import { JobId } from "../src/JobId.ts"
import { type Finish, type LaneDemand, type NewJob, StoreError } from "../src/JobStore.ts"
import * as Migrations from "../src/Migrations.ts"
import * as Postgres from "../src/Postgres.ts"
import { TestDatabase } from "./utils/database.ts"
import { attempted, bury, day, finish, newJob, note, noted, putBack, retry, t0 } from "./utils/storeFixture.ts"

/** A node of a plan, as far as it is looked at. */
interface Node {
  readonly "Node Type": string
  readonly "Index Name"?: string
  readonly "Relation Name"?: string
  readonly "Actual Rows"?: number
  readonly "Actual Loops"?: number
  readonly "Rows Removed by Filter"?: number
  readonly Plans?: ReadonlyArray<Node>
}

/** The rows of the test: 100,000 in partition 0 of queue 1, half of them of one tenant, a tenth scheduled, a fifth with a dedupe key, 1,000 in one line. */
const rows = 100_000
const owner = { queueId: 1, partition: 0, epoch: 1 }
const idOf = (row: number) =>
  Schema.decodeUnknownSync(JobId)(`00000000-0000-4000-8000-${String(row).padStart(12, "0")}`)

const fill = `
insert into millrace.jobs (id, queue_id, partition, lane, state, tenant_id, type, due_at, dedupe_key, key, created_at, payload_bytes, payload)
select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 1, 0, n % 4, case when n % 10 = 0 then 1 else 0 end,
  case when n % 2 = 0 then '=big' else '=t' || n % 1000 end, 'Greet', case when n % 10 = 0 then timestamptz '2026-01-05 12:00Z' + n * interval '1 s' end,
  case when n % 5 = 0 then 'key-' || n end, case when n % 100 = 2 then 'hot' end, timestamptz '2026-01-05 12:00Z', 2, '{}'
from generate_series(1, ${rows}) n`

const fillOthers = [
  `insert into millrace.dead_letters (id, version, queue_id, partition, lane, attempt, crashes, created_at, dead_at, tenant_id, type, error_tag, error_class, failure, payload, history)
   select gen_random_uuid(), 1, 1, 0, 2, 1, 0, now(), now(), '=big', 'Greet', 'E', 'System', '{}', '{}', '[]' from generate_series(1, 20000)`,
  `insert into millrace.finished_jobs (id, created_at, finished_at, purge_on, version, queue_id, partition, outcome, attempt, tenant_id, type, payload, history)
   select gen_random_uuid(), now(), now(), '2026-02-04', 1, 1, 0, 0, 1, '=big', 'Greet', '{}', '[]' from generate_series(1, 20000)`,
  `insert into millrace.running_jobs (id, version, queue_id, partition, epoch, started_at, attempt, heartbeat_at)
   select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 0, 1, 0, case when n <= 100 then 0 else 1 end, now(), 1, now() from generate_series(1, 20000) n`
]

const tables = ["jobs", "dead_letters", "finished_jobs", "running_jobs", "partitions"]

class Setup extends Context.Service<Setup, {
  readonly db: Database.Database
  readonly client: PgClient
}>()("millrace/test/QueryPlans") {}

/** A group's settlement. */
const together = (client: PgClient, settlements: ReadonlyArray<Finish>) => {
  const { params, sql } = settlementOf("millrace")(settlements.map((settlement) => ({ owner, settlement, now: t0 })))
  return client.unsafe(sql, params)
}

/** `statistics` says when ANALYZE ran; autovacuum is kept from running another. */
const setup = (statistics: "empty" | "full") =>
  Layer.effect(
    Setup,
    Effect.gen(function*() {
      const client = yield* PgClient
      const pool = yield* Postgres.makePool(client, {
        maxConnections: 1,
        startupParameters: Database.startupParameters(Duration.seconds(5))
      })
      yield* Migrations.run(pool, { schema: "millrace" })
      for (const table of tables) {
        if (table !== "finished_jobs") {
          yield* pool.unsafe(`alter table millrace.${table} set (autovacuum_enabled = off)`)
        }
      }
      yield* pool`insert into millrace.queues (name) values ('q')`
      yield* pool`insert into millrace.partitions (queue_id, partition, epoch, owner) values (1, 0, 1, 'here')`
      // Made now, since every new partition makes sessions plan anew.
      yield* pool`select 1 from millrace.ensure_partition('2026-02-04')`
      const analyze = Effect.forEach(tables, (table) => pool.unsafe(`analyze millrace.${table}`))
      yield* analyze
      // A session of the handlers that has planned settle while there was nothing: its plan stays until the next ANALYZE.
      for (let times = 0; times < 8; times++) {
        const gone = { ...finish({ id: idOf(1), version: 7 }) }
        yield* Effect.ignore(client.unsafe(settleSql("millrace"), settleParameters(owner, gone, t0)))
        yield* Effect.ignore(together(client, [gone, finish({ id: idOf(2), version: 7 })]))
      }
      yield* pool.unsafe(fill)
      for (const statement of fillOthers) yield* pool.unsafe(statement)
      if (statistics === "full") yield* analyze
      return { db: Database.make(pool, "millrace"), client }
    })
  ).pipe(Layer.provide(TestDatabase.layerWith({ maxConnections: 1 })))

const nodesOf = (node: Node): ReadonlyArray<Node> => [node, ...(node.Plans ?? []).flatMap(nodesOf)]

interface Explained {
  readonly "QUERY PLAN": ReadonlyArray<{ readonly Plan: Node }>
}

const stop = new StoreError({ reason: "Refused", operation: "explain", cause: new Error("explained") })

/** Runs a verb with each of its statements explained and executed, then rolled back. */
const plansOf = (verb: (db: Database.Database) => Effect.Effect<unknown, StoreError>) =>
  Effect.gen(function*() {
    const { db } = yield* Setup
    const nodes: Array<Node> = []
    const run: Database.Run = (_operation, sql, parameters) =>
      db.run<Explained>("explain", `explain (analyze, timing off, summary off, format json) ${sql}`, parameters).pipe(
        Effect.tap(([row]) => Effect.sync(() => nodes.push(...nodesOf(row!["QUERY PLAN"][0]!.Plan)))),
        Effect.andThen(Effect.fail(stop))
      )
    const failed = yield* Effect.flip(db.pool.withTransaction(verb({ ...db, run })))
    assert.strictEqual(failed, stop, String(failed))
    return nodes
  })

/** Sums over the nodes that read a table with many rows: those given and those looked at in vain. */
const rowsRead = (nodes: ReadonlyArray<Node>) =>
  nodes.filter((node) =>
    (node["Relation Name"] ?? "partitions") !== "partitions" && node["Node Type"] !== "ModifyTable"
  )
    .reduce(
      (sum, node) =>
        sum + ((node["Actual Rows"] ?? 0) + (node["Rows Removed by Filter"] ?? 0)) * (node["Actual Loops"] ?? 1),
      0
    )

const told = (node: Node) =>
  `${node["Node Type"]} ${node["Relation Name"] ?? ""} ${node["Index Name"] ?? ""}: ${node["Actual Rows"]} + ${
    node["Rows Removed by Filter"] ?? 0
  } rows x ${node["Actual Loops"]}`

const indexesOf = (nodes: ReadonlyArray<Node>) => new Set(nodes.flatMap((node) => node["Index Name"] ?? []))

/** No table is read from end to end, only these indexes are used, and no more than `atMost` rows are looked at. */
const check = (nodes: ReadonlyArray<Node>, indexes: ReadonlyArray<string>, atMost: number) => {
  for (const node of nodes) {
    if (node["Node Type"] === "Seq Scan") assert.include(["partitions", "queues", undefined], node["Relation Name"])
    assert.notInclude(["Hash Join", "Merge Join", "Bitmap Heap Scan"], node["Node Type"])
  }
  const used = [...indexesOf(nodes)].filter((name) =>
    !/^(?:partitions_pkey|finished_jobs_\d+_pkey|pg_database_.*)$/.test(name)
  ).sort()
  assert.deepStrictEqual(used, [...indexes].sort())
  assert.isAtMost(rowsRead(nodes), atMost, nodes.map(told).join("\n"))
}

const lanes = (of: Partial<LaneDemand> = {}): ReadonlyArray<LaneDemand> =>
  [0, 1, 2, 3].map((lane) => ({ lane, after: "", tenants: 50, perTenant: 10, room: 125, ...of }))

const batch = Array.from({ length: 200 }, (_, index) => ({ id: idOf(index * 401 + 1), version: 0 }))
const inDays = <A>(_days: ReadonlySet<number>, statement: Effect.Effect<A, StoreError>) => statement
const settling = (db: Database.Database) => settle(db, inDays, () => {})

const keyed = (count: number): ReadonlyArray<NewJob> =>
  Array.from({ length: count }, (_, index) =>
    newJob({
      id: idOf(900_000 + index),
      queueId: 1,
      tenant: index % 2 === 0 ? "=big" : `=t${index % 1000}`,
      dedupeKey: `key-${index * 5}`
    }))

for (const statistics of ["empty", "full"] as const) {
  layer(setup(statistics), { excludeTestServices: true, timeout: "120 seconds" })(
    `QueryPlans, statistics of the ${statistics} table`,
    (it) => {
      describe("reading", () => {
        it.effect("intake reads what it gives, past a tenant with half of the rows", () =>
          Effect.gen(function*() {
            const nodes = yield* plansOf((db) => intake(db)(owner, { lanes: lanes(), marks: [], held: [] }))
            check(nodes, ["jobs_ready"], 1500)
          }))

        it.effect("intake above low-water marks does not walk over what is held", () =>
          Effect.gen(function*() {
            const marks = [0, 1, 2, 3].flatMap((
              lane
            ) => [{ lane, tenant: "=big", seq: 99_000 }, { lane, tenant: "=t1", seq: 90_000 }])
            const nodes = yield* plansOf((db) => intake(db)(owner, { lanes: lanes(), marks, held: [99_001, 99_003] }))
            check(nodes, ["jobs_ready"], 1500)
          }))

        it.effect("an ordered intake looks once for each job whether another of its key comes first", () =>
          Effect.gen(function*() {
            const demand = { lanes: lanes(), marks: [], held: [], isOrdered: true }
            check(yield* plansOf((db) => intake(db)(owner, demand)), ["jobs_key", "jobs_ready", "queues_pkey"], 1600)
            // Past all but the last of a long line.
            const marks = [{ lane: 2, tenant: "=big", seq: 90_000 }]
            const late = { lanes: lanes().slice(2, 3), marks, held: [], isOrdered: true }
            check(yield* plansOf((db) => intake(db)(owner, late)), ["jobs_key", "jobs_ready", "queues_pkey"], 1600)
          }))

        it.effect("the head of a line is one row, however long the line is", () =>
          Effect.gen(function*() {
            const asked = [{ tenant: "=big", key: "hot" }, { tenant: "=big", key: "none" }]
            check(yield* plansOf((db) => heads(db)(owner, asked)), ["jobs_key", "queues_pkey"], 3)
          }))

        it.effect("find, reread, depth and nextDue go to their rows", () =>
          Effect.gen(function*() {
            check(
              yield* plansOf((db) => find(db)(idOf(77))),
              ["jobs_pkey", "dead_letters_pkey", "running_jobs_pkey"],
              2
            )
            check(yield* plansOf((db) => reread(db)(batch.map(({ id }) => id))), ["jobs_pkey"], 200)
            check(yield* plansOf((db) => depth(db)(owner, 100)), ["jobs_ready"], 400)
            check(yield* plansOf((db) => nextDue(db)(owner)), ["jobs_due"], 1)
          }))

        it.effect("what is left over, and whether a queue is empty, is seen without reading its jobs", () =>
          Effect.gen(function*() {
            // All 100,000 are in a partition that there is no more.
            const leftOver = yield* plansOf((db) =>
              Effect.andThen(Effect.orDie(db.pool`update millrace.queues set partitions = 0`), leftovers(db))
            )
            check(leftOver, ["jobs_due", "jobs_ready"], 10)
            const empty = yield* plansOf((db) => db.run("empty", isEmptySql("millrace"), [int4(1)]))
            check(empty, ["jobs_due", "jobs_ready"], 1)
            const moving = (db: Database.Database) => db.run("moving", isMovingSql("millrace"), [int4(1)])
            check(yield* plansOf(moving), ["jobs_due", "jobs_ready", "queues_pkey"], 1)
            // After a change: its own rows, and no other queue's.
            const changed = yield* plansOf((db) =>
              Effect.andThen(
                Effect.orDie(
                  db.pool`update millrace.queues set former_partitions = 1, partitions = 2, barrier = 1000000`
                ),
                moving(db)
              )
            )
            check(changed, ["jobs_due", "jobs_ready", "queues_pkey"], 200_000)
          }))
      })

      describe("settling", () => {
        it.effect("each kind of settlement takes its rows by their ids", () =>
          Effect.gen(function*() {
            const kinds = [finish, retry, putBack, bury].map((kind) => batch.map((one) => kind(one)))
            for (const settlements of kinds) {
              check(yield* plansOf((db) => settling(db)(owner, settlements, t0)), ["jobs_pkey"], 200)
            }
          }))

        it.effect("refence, cancel and replay take one row", () =>
          Effect.gen(function*() {
            check(yield* plansOf((db) => refence(db)(owner, idOf(77), 0)), ["jobs_pkey"], 1)
            const one = {
              id: idOf(80),
              version: 0,
              owner: undefined,
              entry: noted("cancelled"),
              now: t0,
              purgeAt: t0 + 30 * day
            }
            check(yield* plansOf((db) => cancel(db, inDays)(one)), ["jobs_pkey"], 1)
            check(yield* plansOf((db) => replay(db)(idOf(1), "=big", noted("replayed"))), [
              "dead_letters_pkey",
              "queues_pkey"
            ], 2)
          }))

        it.effect("a handler's session that planned settle on an empty table settles by id on a full one", () =>
          Effect.gen(function*() {
            const { client } = yield* Setup
            const scans = client<{ readonly sequential: number; readonly byId: number }>`
            select seq_scan::int4 as sequential, pg_stat_get_xact_numscans('millrace.jobs_pkey'::regclass)::int4 as "byId"
            from pg_stat_xact_user_tables where schemaname = 'millrace' and relname = 'jobs'`
            const [before, after] = yield* client.withTransaction(Effect.gen(function*() {
              const before = yield* scans
              const done = finish({ id: idOf(78), version: 0 }, { entry: attempted(1, "completed") })
              yield* client.unsafe(settleSql("millrace"), settleParameters(owner, done, t0))
              return [before[0]!, (yield* scans)[0]!] as const
            }))
            assert.strictEqual(after.sequential - before.sequential, 0)
            assert.strictEqual(after.byId - before.byId, 1)
          }))

        it.effect("and so does one that planned a group's", () =>
          Effect.gen(function*() {
            const { client } = yield* Setup
            const reads = client<{ readonly sequential: number; readonly fetched: number }>`
            select seq_scan::int4 as sequential, idx_tup_fetch::int4 as fetched
            from pg_stat_xact_user_tables where schemaname = 'millrace' and relname = 'jobs'`
            const [before, after] = yield* client.withTransaction(Effect.gen(function*() {
              const before = yield* reads
              yield* together(
                client,
                [90, 91, 92].map((id) => finish({ id: idOf(id), version: 0 }, { entry: attempted(1, "completed") }))
              )
              return [before[0]!, (yield* reads)[0]!] as const
            }))
            assert.strictEqual(after.sequential - before.sequential, 0)
            assert.strictEqual(after.fetched - before.fetched, 3)
          }))
      })

      describe("owning", () => {
        it.effect("countCrashes reads the former owner's notes and no others", () =>
          Effect.gen(function*() {
            const nodes = yield* plansOf((db) => countCrashes(db)(owner, [], { runner: "runner", now: t0 }))
            check(nodes, ["running_jobs_owner", "running_jobs_pkey", "jobs_pkey"], 500)
          }))

        it.effect("notes and the hand-over go to their rows", () =>
          Effect.gen(function*() {
            check(yield* plansOf((db) => noteRunning(db)(owner, batch.map((one) => note(one)), t0)), [], 0)
            check(yield* plansOf((db) => noteDone(db)(owner, batch.map(({ id }) => id))), ["running_jobs_pkey"], 200)
            check(yield* plansOf((db) => handOver(db)(owner)), ["running_jobs_owner"], 20_000)
          }))

        it.effect("promote takes the rows that are due, in the order of their times", () =>
          Effect.gen(function*() {
            check(yield* plansOf((db) => promote(db)(owner, t0 + 50_000_000, 500)), [
              "jobs_due",
              "jobs_pkey",
              "queues_pkey"
            ], 1001)
          }))
      })

      describe("submitting", () => {
        const submitted = keyed(500)
        it.effect("a keyed batch asks for its keys' holders by key", () =>
          Effect.gen(function*() {
            const statements = SubmitStatements.makeStatements("millrace")
            check(
              yield* plansOf((db) =>
                db.run("submit", statements.existing, SubmitStatements.existingParameters(submitted))
              ),
              [
                "jobs_dedupe"
              ],
              500
            )
            check(
              yield* plansOf((db) => db.run("submit", statements.known, SubmitStatements.knownParameters(submitted))),
              [
                "jobs_pkey",
                "dead_letters_pkey"
              ],
              0
            )
          }))

        it.effect("jobs of tenants and keys are placed by the count of their queue, which is one row", () =>
          Effect.gen(function*() {
            const statements = SubmitStatements.makeStatements("millrace")
            const placed = Array.from(
              { length: 50 },
              (_, index) => newJob({ id: idOf(800_000 + index), queueId: 1, key: `k${index}`, place: index })
            )
            const options = { batchId: undefined, now: t0 }
            const nodes = yield* plansOf((db) => statements.sendUnkeyed(db.run, placed, options))
            check(nodes, ["queues_pkey"], 50)
          }))

        it.effect("and does so in a caller's transaction, on a session with settings of its own", () =>
          Effect.gen(function*() {
            const { client } = yield* Setup
            const { existing } = SubmitStatements.makeStatements("millrace")
            const [row] = yield* client.unsafe<Explained>(
              `explain (analyze, timing off, summary off, format json) ${existing}`,
              SubmitStatements.existingParameters(keyed(20))
            ).unprepared
            const nodes = nodesOf(row!["QUERY PLAN"][0]!.Plan)
            assert.isFalse(
              nodes.some((node) => node["Node Type"] === "Seq Scan" && node["Relation Name"] === "jobs"),
              JSON.stringify(nodes)
            )
          }))
      })
    }
  )
}

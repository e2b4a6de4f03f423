/**
 * Reads the evidence: the tables with a driver of its own, the rest from the files of the run.
 */
import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import postgres from "postgres"
import type { Call, Effect, Event, Evidence, Row, Sample, Start, Terms } from "./evidence.ts"

/** One session, with numbers as numbers. */
export const connect = (url: string) =>
  postgres(url, {
    max: 1,
    connect_timeout: 5,
    connection: { application_name: "chaos checker" },
    types: { bigint: { to: 20, from: [20], serialize: String, parse: Number } },
    onnotice: () => {}
  })

type Sql = ReturnType<typeof connect>

/** Milliseconds since 1970. */
const millis = (column: string) => `(extract(epoch from ${column}) * 1000)::float8`

/** What every place of a job has. */
const shared = `j.id::text, q.name as queue, j.partition, j.attempt, ${
  millis("j.created_at")
} as created, j.batch_id::text as batch, j.type,
  j.crashes, j.reruns, j.payload, j.history`

const places = [
  {
    place: "jobs",
    from: `select ${shared}, (array['queued', 'scheduled', 'retrying'])[j.state + 1] as state, null::float8 as ended,
      ${millis("j.due_at")} as due, null as tag from millrace.jobs j join millrace.queues q on q.id = j.queue_id`
  },
  {
    place: "dead_letters",
    from: `select ${shared}, 'failed' as state, ${millis("j.dead_at")} as ended, null::float8 as due, j.error_tag as tag
      from millrace.dead_letters j join millrace.queues q on q.id = j.queue_id`
  },
  {
    place: "finished_jobs",
    from: `select ${shared}, (array['completed', 'cancelled', 'expired'])[j.outcome + 1] as state, ${
      millis("j.finished_at")
    } as ended,
      null::float8 as due, null as tag from millrace.finished_jobs j join millrace.queues q on q.id = j.queue_id`
  }
] as const

const rowsOf = async (sql: Sql): Promise<ReadonlyArray<Row>> => {
  const found: Array<Row> = []
  for (const { from, place } of places) {
    for (const row of await sql.unsafe(from)) {
      found.push({
        id: row["id"],
        place,
        state: row["state"],
        queue: row["queue"],
        partition: row["partition"],
        attempt: row["attempt"],
        createdAt: row["created"],
        endedAt: row["ended"] ?? undefined,
        dueAt: row["due"] ?? undefined,
        batchId: row["batch"] ?? undefined,
        errorTag: row["tag"] ?? undefined,
        crashes: row["crashes"],
        reruns: row["reruns"],
        type: row["type"],
        ref: row["payload"].ref,
        dedupe: row["payload"].dedupe,
        history: row["history"]
      })
    }
  }
  return found
}

const lines = (file: string): ReadonlyArray<any> => { // oxlint-disable-line typescript/no-explicit-any -- lines of JSON of several shapes
  const all = readFileSync(file, "utf8").split("\n")
  // A submitter that was killed may have left half of its last line: what it was about to ask was never asked.
  const whole = all.slice(0, -1)
  return whole.map((line) => JSON.parse(line))
}

const callsOf = (folder: string): ReadonlyArray<Call> => {
  const calls = new Map<string, Call>()
  for (const name of readdirSync(folder).filter((name) => name.startsWith("ledger-")).toSorted()) {
    for (const line of lines(join(folder, name))) {
      const asked = calls.get(line.call)
      if (asked === undefined) {
        calls.set(line.call, {
          call: line.call,
          op: line.op,
          at: line.at,
          isBatch: line.isBatch === true,
          orders: line.orders ?? [],
          job: line.job,
          answer: "none",
          answeredAt: Number.POSITIVE_INFINITY,
          ids: [],
          batchId: undefined,
          error: undefined
        })
      } else {
        calls.set(line.call, {
          ...asked,
          answer: line.say,
          answeredAt: line.at,
          ids: line.ids ?? [],
          batchId: line.batchId,
          error: line.error
        })
      }
    }
  }
  return [...calls.values()]
}

/** `folder`: that of the run. */
export const load = async (url: string, folder: string): Promise<Evidence> => {
  const sql = connect(url)
  try {
    const rows = await rowsOf(sql)
    const effects = await sql.unsafe<Array<Effect>>(
      `select job_id::text as job, ref::text, key, n, attempt, runner, incarnation, ${millis("began")} as began, ${
        millis("at")
      } as at
       from chaos.effects order by id`
    )
    const starts = await sql.unsafe<Array<Start>>(
      `select job_id::text as job, ref::text, attempt, runner, incarnation, ${
        millis("at")
      } as at from chaos.starts order by at`
    )
    return {
      terms: JSON.parse(readFileSync(join(folder, "terms.json"), "utf8")) as Terms,
      rows,
      calls: callsOf(folder),
      effects: [...effects],
      starts: [...starts],
      events: lines(join(folder, "events.jsonl")) as ReadonlyArray<Event>,
      samples: lines(join(folder, "samples.jsonl")) as ReadonlyArray<Sample>
    }
  } finally {
    await sql.end()
  }
}

/**
 * Whether what waits and what is kept slows the work: the first jobs of a long queue beside a long history, against the same on an empty
 * database.
 */
import * as Effect from "effect/Effect"
import { Scale } from "../Scale.ts"
import { drain, preload, rate, type Scenario, type Turn } from "../Scenario.ts"
import * as Server from "../Server.ts"

/** The days to come, and finished jobs that go on one of them. */
const days = `select millrace.ensure_partition(current_date + day) from generate_series(0, 8) as day`
const history = (jobs: number) => `
insert into millrace.finished_jobs
  (id, created_at, finished_at, purge_on, version, queue_id, partition, outcome, attempt, tenant_id, type, payload, history)
select gen_random_uuid(), now(), now(), current_date + number % 7 + 1, 1, q.id, 0, 0, 1, '=', 'Task',
  json_build_object('text', repeat('x', 66), 'at', number), '[]'
from generate_series(1, ${jobs}) as number, millrace.queues q where q.name = 'bench'`

const firstOf = Effect.fnUntraced(function*(turn: Turn, first: number, waiting: number, finished: number) {
  const connect = yield* preload(turn, "noop", waiting)
  if (finished > 0) {
    yield* Server.query(connect.url, days)
    yield* Server.query(connect.url, history(finished))
    yield* Server.settleDown(connect.url)
  }
  const { drained } = yield* drain(turn.system, connect, first, "started")
  return rate(first, drained.millis)
}, Effect.scoped)

export const backlog: Scenario = {
  name: "backlog",
  what:
    "the first jobs of a queue 50 times as long, with as many finished ones kept, against the same with nothing else there",
  work: "noop",
  isOwn: true,
  measure: (turn) =>
    Effect.gen(function*() {
      const scale = yield* Scale
      const first = Math.ceil(scale.jobs / 5)
      const many = scale.jobs * 10
      const small = firstOf(turn, first, first, 0)
      const large = firstOf(turn, first, many, many)
      const [value, reference] = turn.round % 2 === 1
        ? yield* Effect.all([large, small])
        : (yield* Effect.all([small, large])).toReversed()
      return [
        {
          metric: "rate",
          value: value ?? Number.NaN,
          reference: reference ?? Number.NaN,
          unit: "jobs/s",
          isMoreBetter: true,
          jobs: first,
          extra: { "small case": reference ?? Number.NaN, waiting: many, finished: many }
        }
      ]
    })
}

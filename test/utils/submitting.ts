/**
 * A process that only submits, beside workers (child.ts): the test's own.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { JobQueue } from "../../src/JobQueue.ts"
import * as JobRuntime from "../../src/JobRuntime.ts"
import { TestDatabase } from "./database.ts"
import { queue, tables } from "./worker.ts"

/** On a fresh database with the handlers' tables. `partitions`: of the workers' queue, beside which there may be others. */
export const submittingTo = (partitions = 1, ...others: ReadonlyArray<JobQueue>) =>
  JobRuntime.layerClient({ queues: [queue(20, partitions), ...others] }).pipe(
    Layer.provideMerge(
      Layer.effectDiscard(
        Effect.flatMap(PgClient, (sql) => Effect.forEach(tables, (statement) => sql.unsafe(statement)))
      )
    ),
    Layer.provideMerge(TestDatabase.layer)
  )

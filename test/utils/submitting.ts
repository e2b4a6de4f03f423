/**
 * A process that only submits, beside workers (child.ts): the test's own.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as JobRuntime from "../../src/JobRuntime.ts"
import { TestDatabase } from "./database.ts"
import { queue, tables } from "./worker.ts"

/** On a fresh database with the handlers' tables. `partitions`: of the workers' queue. */
export const submittingTo = (partitions = 1) =>
  JobRuntime.layerClient({ queues: [queue(20, partitions)] }).pipe(
    Layer.provideMerge(
      Layer.effectDiscard(
        Effect.flatMap(PgClient, (sql) => Effect.forEach(tables, (statement) => sql.unsafe(statement)))
      )
    ),
    Layer.provideMerge(TestDatabase.layer)
  )

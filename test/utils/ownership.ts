/**
 * Who owns the partitions of a queue, as the table says.
 */
import type { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"

/** A partition that has ever had an owner. */
export interface Ownership {
  readonly partition: number
  /** The address of its runner; none once it has been handed over. */
  readonly owner: string | null
  readonly epoch: number
  /** Whether the owner before left without a word. */
  readonly careful: boolean
}

/** Of a queue, by default that of worker.ts, in their order. */
export const ownershipsOf = (sql: PgClient, queue = "work") =>
  sql<Ownership>`
    select partition::int, split_part(owner, '#', 1) as owner, epoch::int, careful
    from millrace.partitions join millrace.queues on id = queue_id where name = ${queue} order by partition`

/** The epoch of its first partition; 0 before anybody has taken it over. */
export const epochOf = (sql: PgClient, queue?: string) =>
  Effect.map(ownershipsOf(sql, queue), ([first]) => first?.epoch ?? 0)

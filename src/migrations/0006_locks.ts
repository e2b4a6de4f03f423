/**
 * By which shard lock a partition is owned, so that anybody can see whether its owner lives. See `internal/sql/takeOver.ts`.
 *
 * `{schema}` stands for the schema's name; one statement an element, since the driver sends one a call.
 */
import type { Migration } from "./migration.ts"

export default {
  number: 6,
  name: "locks",
  servesFrom: 1,
  statements: [
    `alter table {schema}.partitions
  add lock integer,      -- the number of the advisory lock that the owner had when it took over
  add lock_pid integer,  -- the session that held it then
  add lock_epoch bigint  -- the ownership that this was said of: a take-over by code before version 6 says nothing`
  ]
} satisfies Migration

/**
 * Queues by tenant or key whose count of partitions changes while jobs are in them. See `internal/sql/layout.ts`.
 *
 * `{schema}` stands for the schema's name; one statement an element, since the driver sends one a call.
 */
import type { Migration } from "./migration.ts"

export default {
  number: 5,
  name: "moves",
  servesFrom: 1,
  statements: [
    `alter table {schema}.queues
  add former_partitions smallint, -- the count before the last change of it: jobs of tenants and keys may lie by that one still
  add barrier bigint              -- those that do have a lower seq than this`
  ]
} satisfies Migration

/**
 * Every program, and the database itself, must put a tenant's or a key's jobs into the same place: one that differs would split a line.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, it, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { placeOf } from "../../src/internal/place.ts"
import { tenantKey } from "../../src/JobStore.ts"
import * as PgJobStore from "../../src/PgJobStore.ts"
import { TestDatabase } from "../utils/database.ts"

const Text = Schema.String.check(Schema.makeFilter((text) => !text.includes("\0") && text.isWellFormed()))

it("a place never changes: rows that are stored have it", () => {
  assert.strictEqual(placeOf(tenantKey("acme"), undefined), 1_348_291_764)
  assert.strictEqual(placeOf(tenantKey("acme"), "order-1"), 576_446_724)
})

layer(Layer.provideMerge(PgJobStore.layer(), TestDatabase.layer), { excludeTestServices: true, timeout: "60 seconds" })(
  "place",
  (it) => {
    it.effect.prop(
      "SQL and code agree on every tenant and key",
      [Text, Schema.UndefinedOr(Text)],
      ([tenantId, key]) =>
        Effect.gen(function*() {
          const sql = yield* PgClient
          const tenant = tenantKey(tenantId)
          const [row] = yield* sql<{ readonly place: number }>`select millrace.place(${tenant}, ${
            key ?? null
          }::text) as place`
          assert.strictEqual(row?.place, placeOf(tenant, key))
          assert.isAtLeast(row?.place ?? -1, 0)
        }),
      { arbitrary: { runs: 200 } }
    )
  }
)

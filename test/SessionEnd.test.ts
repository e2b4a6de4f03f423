/**
 * What `internal/postgres/sessionEnd` reads of the driver: a new version of the driver has to have it, or sessions that the server ends look
 * like sessions that crashed.
 */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { EventEmitter } from "node:events"
import { deathOf, isOwnDoing, lastWords, watch } from "../src/internal/postgres/sessionEnd.ts"
import { breakageOf, sqlState } from "../src/internal/postgres/sqlState.ts"
import { databaseUrl, TestDatabase } from "./utils/database.ts"

/** An ErrorResponse as the server sends it. */
const fatal = (code: string) => {
  const fields = Buffer.from(`SFATAL\0VFATAL\0C${code}\0Mterminating connection\0\0`)
  const head = Buffer.alloc(5)
  head.write("E")
  head.writeUInt32BE(fields.length + 4, 1)
  return Buffer.concat([head, fields])
}

const session = () => {
  const socket = new EventEmitter()
  const made = { session: { socket } }
  watch(made)
  return {
    made,
    receive: (...chunks: ReadonlyArray<Uint8Array>) => chunks.forEach((chunk) => socket.emit("data", chunk))
  }
}

describe("a session of the driver", () => {
  it.live("says why the server has ended it, also under a statement", () =>
    Effect.gen(function*() {
      const url = yield* databaseUrl
      const connection = yield* PgConnection.make({ url: Redacted.make(url), multiplex: true })
      watch(connection)
      assert.isUndefined(deathOf(connection))
      const error = yield* Effect.flip(connection.query("select pg_terminate_backend(pg_backend_pid())"))
      assert.isDefined(deathOf(connection))
      const words = lastWords(connection)
      assert.strictEqual(words === undefined ? undefined : sqlState(words), "57P01")
      assert.strictEqual(words === undefined ? undefined : breakageOf(words, true), "ended")
      assert.isFalse(isOwnDoing(error))
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layerDatabase)))
})

describe("lastWords", () => {
  it("finds the server's reason where it comes alone, behind others, or in two pieces", () => {
    for (const split of [undefined, 3, 20]) {
      const { made, receive } = session()
      const bytes = Buffer.concat([Buffer.from("Z\0\0\0\u0005I", "latin1"), fatal("25P03")])
      if (split === undefined) receive(bytes)
      else receive(bytes.subarray(0, split), bytes.subarray(split))
      const words = lastWords(made)
      assert.strictEqual(words === undefined ? undefined : sqlState(words), "25P03")
    }
  })

  it("takes nothing for a reason that only looks like one", () => {
    for (const chunk of [Buffer.from("E"), Buffer.from("DE\0\0\0\u0006xx", "latin1"), Buffer.alloc(0)]) {
      const { made, receive } = session()
      receive(chunk)
      assert.isUndefined(lastWords(made))
    }
    assert.isUndefined(lastWords({}))
  })
})

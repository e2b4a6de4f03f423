/**
 * Cancels that an owner remembers, by a clock of the test's own.
 */
import { assert, it } from "@effect/vitest"
import * as Cancels from "../../src/internal/cancels.ts"
import { made } from "../../src/JobId.ts"

it("a cancel is remembered while its caller asks again, and no longer than 3 seconds after that", () => {
  let now = 0
  const cancels = Cancels.make(() => now)
  cancels.ask(made("one"), "ada")
  now = 2_000
  cancels.ask(made("one"), "ada")
  now = 4_999
  assert.deepInclude(cancels.of(made("one")), { by: "ada" })
  now = 5_000
  assert.isUndefined(cancels.of(made("one")))
})

it("a cancel of a job that has ended is forgotten at once", () => {
  const cancels = Cancels.make()
  cancels.ask(made("one"), undefined)
  cancels.forget(made("one"))
  assert.isUndefined(cancels.of(made("one")))
})

it("at most 10,000 cancels are remembered, the latest ones", () => {
  const cancels = Cancels.make(() => 0)
  for (let count = 0; count <= 10_000; count++) cancels.ask(made(String(count)), undefined)
  assert.isUndefined(cancels.of(made("0")))
  assert.isDefined(cancels.of(made("1")))
  assert.isDefined(cancels.of(made("10000")))
})

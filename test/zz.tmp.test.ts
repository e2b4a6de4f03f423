import { it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as JobRuntime from "../src/JobRuntime.ts"
import { TestDatabase } from "./utils/database.ts"
it.live("time", () => Effect.gen(function*() {
  const t0 = performance.now()
  const db = yield* Layer.build(TestDatabase.layer)
  const t1 = performance.now()
  for (let i = 0; i < 3; i++) {
    const ta = performance.now()
    const scope = yield* Scope.make()
    yield* Layer.build(JobRuntime.layer({ gracePeriod: 0 })).pipe(Effect.provide(db), Scope.provide(scope))
    const tb = performance.now()
    yield* Scope.close(scope, Exit.void)
    console.log("build", tb - ta, "close", performance.now() - tb)
  }
  console.log("db", t1 - t0)
}))

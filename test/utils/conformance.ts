/**
 * What every job store promises, as hazards. One suite, run on each implementation of the port: see JobStore.test.ts.
 */
import { layer } from "@effect/vitest"
import type * as Layer from "effect/Layer"
import type { JobStore } from "../../src/JobStore.ts"
import { intake } from "./conformance/intake.ts"
import { layout } from "./conformance/layout.ts"
import { order } from "./conformance/order.ts"
import { outside } from "./conformance/outside.ts"
import { ownership } from "./conformance/ownership.ts"
import { settle } from "./conformance/settle.ts"
import { submit } from "./conformance/submit.ts"

/** Runs the suite against a store. Tests share the layer, never a queue. */
export const conformance = (name: string, store: Layer.Layer<JobStore, unknown>): void =>
  layer(store, { excludeTestServices: true, timeout: "60 seconds" })(`JobStore: ${name}`, (it) => {
    layout(it)
    submit(it)
    intake(it)
    order(it)
    ownership(it)
    settle(it)
    outside(it)
  })

/**
 * All scenarios, in the order in which they run.
 */
import type { Scenario } from "../Scenario.ts"
import { backlog } from "./backlog.ts"
import { drain, drainGrouped, drainTx } from "./drain.ts"
import { lanes } from "./lanes.ts"
import { latency } from "./latency.ts"
import { memory } from "./memory.ts"
import { neighbour } from "./neighbour.ts"
import { scale } from "./scale.ts"
import { startup } from "./startup.ts"
import { submit, submitBatch } from "./submit.ts"

export const scenarios: ReadonlyArray<Scenario> = [
  submit,
  submitBatch,
  drain,
  drainTx,
  drainGrouped,
  latency,
  backlog,
  neighbour,
  lanes,
  startup,
  memory,
  scale
]

import type { Vitest } from "@effect/vitest"
import type { JobStore } from "../../../src/JobStore.ts"

/** Registers tests that share one store. */
export type Suite = Vitest.MethodsNonLive<JobStore>

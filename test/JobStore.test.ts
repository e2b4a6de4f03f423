/**
 * Every implementation of the port keeps the same promises.
 */
import * as MemoryJobStore from "../src/MemoryJobStore.ts"
import { conformance } from "./utils/conformance.ts"

conformance("in memory", MemoryJobStore.layer)

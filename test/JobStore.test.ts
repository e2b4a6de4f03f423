/**
 * Every implementation of the port keeps the same promises.
 */
import * as Layer from "effect/Layer"
import * as MemoryJobStore from "../src/MemoryJobStore.ts"
import * as PgJobStore from "../src/PgJobStore.ts"
import { conformance } from "./utils/conformance.ts"
import { TestDatabase } from "./utils/database.ts"

conformance("in memory", MemoryJobStore.layer)
conformance("on PostgreSQL", Layer.provide(PgJobStore.layer(), TestDatabase.layer))

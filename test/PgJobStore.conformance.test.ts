/**
 * The port's promises, kept by PostgreSQL.
 */
import * as Layer from "effect/Layer"
import * as PgJobStore from "../src/PgJobStore.ts"
import { conformance } from "./utils/conformance.ts"
import { TestDatabase } from "./utils/database.ts"

conformance("on PostgreSQL", Layer.provide(PgJobStore.layer(), TestDatabase.layer))

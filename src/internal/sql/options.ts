/**
 * What the store on PostgreSQL takes, checked: wrong options are a mistake of the program and throw a `RangeError` that names the field.
 */
import type * as Duration from "effect/Duration"
import { check, durationLike, fieldsOf, millisOf } from "../words/options.ts"

/** What `PgJobStore.layer` takes. */
export interface Options {
  /** The schema that holds everything of Millrace, `millrace` by default: lower-case letters, digits, underscores. */
  readonly schema?: string | undefined
  /** Connections for Millrace's own statements, 4 by default. Listening to other processes takes one more, submitting two more. */
  readonly connections?: number | undefined
  /** How long a statement of the store waits for a lock, 5 seconds by default. */
  readonly lockTimeout?: Duration.Input | undefined
}

export const fields = fieldsOf<Options>({
  schema: true,
  connections: true,
  lockTimeout: true
})

/** The settings of a store. `where` is who was given the options. Whether the schema may have its name is for `Migrations` to say. */
export interface Settings {
  readonly schema: string
  readonly connections: number
  readonly lockTimeoutMs: number
}

export const resolve = (where: string, options: Options): Settings => {
  const { connections = 4, lockTimeout = "5 seconds", schema = "millrace" } = options
  check(typeof schema === "string", where, "schema", "a name", schema)
  check(Number.isInteger(connections) && connections >= 1, where, "connections", "an integer from 1 on", connections)
  const lockTimeoutMs = millisOf(lockTimeout)
  const isTime = lockTimeoutMs > 0 && Number.isFinite(lockTimeoutMs)
  check(isTime, where, "lockTimeout", `a finite duration above zero, ${durationLike}`, lockTimeout)
  return { schema, connections, lockTimeoutMs }
}

/**
 * Parameters with their PostgreSQL types named, so that each statement is prepared once whatever it is called with, and the small
 * conversions between rows and the port. Times are epoch milliseconds on our side, timestamptz on theirs.
 */
import * as PgTypes from "@effect/sql-pg/PgTypes"
import * as Result from "effect/Result"
import type { Entry } from "../../JobHistory.ts"

const array = (elementOid: number) => (values: ReadonlyArray<unknown>): PgTypes.Parameter =>
  Result.getOrThrow(PgTypes.array(values, elementOid))

const nullable = <A>(one: (value: A | null) => PgTypes.Parameter) => (value: A | undefined) => one(value ?? null)

export const bool = PgTypes.bool
export const int2 = PgTypes.int2
export const int4 = PgTypes.int4
export const int8 = (value: number | undefined) => PgTypes.int8(value === undefined ? null : BigInt(value))
export const text = nullable<string>(PgTypes.text)
export const uuid = nullable<string>(PgTypes.uuid)
export const timestamp = nullable<number>(PgTypes.timestamptz)

export const int2s = array(PgTypes.OID.int2)
export const int4s = array(PgTypes.OID.int4)
export const int8s = (values: ReadonlyArray<number>) => array(PgTypes.OID.int8)(values.map(BigInt))
export const floats = (values: ReadonlyArray<number | undefined>) =>
  array(PgTypes.OID.float8)(values.map((value) => value ?? null))
export const texts = (values: ReadonlyArray<string | undefined>) =>
  array(PgTypes.OID.text)(values.map((value) => value ?? null))
export const uuids = array(PgTypes.OID.uuid)
export const timestamps = (values: ReadonlyArray<number | undefined>) =>
  array(PgTypes.OID.timestamptz)(values.map((value) => value ?? null))

/** A `timestamptz` column as milliseconds. */
export const millis = (value: Date | null): number | undefined => value === null ? undefined : value.getTime()

/** The day (UTC) of a time, counted from 1970: `date '1970-01-01' + day` in SQL. */
export const dayOf = (millis: number): number => Math.floor(millis / 86_400_000)

/** Text that PostgreSQL takes: it stores no NUL. */
export const storable = (value: string): string => value.replaceAll("\0", "\ufffd")

/**
 * An entry as JSON that jsonb takes: it refuses `\u0000` and half surrogate pairs, and an error's message may hold both. A refused
 * entry would keep a job from ever being settled.
 */
export const entryJson = (entry: Entry): string => {
  const json = JSON.stringify(entry)
  return json.includes("\\u")
    ? json.replace(
      /\\(?:u0000|ud[89a-f][0-9a-f]{2}|.)/g,
      (escape) => /^\\u(?:0000|d[89a-f])/.test(escape) ? "\\ufffd" : escape
    )
    : json
}

/** Rows are locked in the order of their ids, by every statement that locks several. */
export const byId = <A extends { readonly id: string }>(rows: ReadonlyArray<A>): ReadonlyArray<A> =>
  rows.toSorted((left, right) => left.id < right.id ? -1 : left.id > right.id ? 1 : 0)

/**
 * What a run leaves behind: a file of JSON lines, the run itself first, then a row for each scenario, metric and system.
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import * as Schema from "effect/Schema"
import { BenchError } from "./BenchError.ts"

/** Samples of one metric and system, over the rounds. */
export const Row = Schema.Struct({
  scenario: Schema.String,
  /** Names the figure within its scenario: `rate`, `p99`. */
  metric: Schema.String,
  system: Schema.String,
  median: Schema.Finite,
  min: Schema.Finite,
  max: Schema.Finite,
  unit: Schema.String,
  rounds: Schema.Int,
  jobs: Schema.Int,
  /**
   * How many times better Millrace is than this system: the median of the rounds' ratios. On Millrace's own rows 1, or its ratio to the
   * undisturbed case where the scenario has one.
   */
  ratio: Schema.Finite,
  /** What is aimed at, in words, and whether it is reached. */
  target: Schema.optionalKey(Schema.String),
  isMet: Schema.optionalKey(Schema.Boolean),
  /** On the rows of the commit of `--against`: the ratios of the rounds, in order. */
  ratios: Schema.optionalKey(Schema.Array(Schema.Finite)),
  /** The 90 % interval of their median. Absent with fewer than 5 rounds. */
  interval: Schema.optionalKey(Schema.Tuple([Schema.Finite, Schema.Finite])),
  /** Whether the working tree is no worse than that commit, on the row that decides it. */
  verdict: Schema.optionalKey(Schema.Literals(["no worse", "worse", "undecided"])),
  /** Medians of the secondary figures. */
  extra: Schema.optionalKey(Schema.Record(Schema.String, Schema.Finite))
})
export type Row = typeof Row.Type

/** On what, when and with what it was measured. */
export const Run = Schema.Struct({
  date: Schema.String,
  commit: Schema.optionalKey(Schema.String),
  /** The commit that `--against` names. */
  against: Schema.optionalKey(Schema.String),
  machine: Schema.Struct({ cpu: Schema.String, cores: Schema.Int, memoryGb: Schema.Finite, os: Schema.String }),
  node: Schema.String,
  postgres: Schema.String,
  /** `false`: a server that was given, whose processor time and settings are not known. */
  isOwnServer: Schema.Boolean,
  /** Median of a small write and fdatasync in the server's folder. */
  flushMs: Schema.optionalKey(Schema.Finite),
  packages: Schema.Record(Schema.String, Schema.String),
  jobs: Schema.Int,
  rounds: Schema.Int,
  isQuick: Schema.Boolean,
  systems: Schema.Array(Schema.Struct({ name: Schema.String, description: Schema.String })),
  /** Systems that could not be measured at all, and why. */
  leftOut: Schema.Array(Schema.Struct({ system: Schema.String, because: Schema.String })),
  /** Measurements that failed. */
  failures: Schema.Array(Schema.Struct({ scenario: Schema.String, system: Schema.String, message: Schema.String })),
  /** Who got fewer jobs than the others. */
  fewer: Schema.Array(Schema.String)
})
export type Run = typeof Run.Type

const failed = (error: { readonly message: string }) => new BenchError({ message: error.message })

/** Writes the file, replacing what is there. */
export const write = Effect.fnUntraced(function*(file: string, run: Run, rows: ReadonlyArray<Row>) {
  const fs = yield* FileSystem.FileSystem
  const { dirname } = yield* Path.Path
  yield* fs.makeDirectory(dirname(file), { recursive: true })
  yield* fs.writeFileString(file, [run, ...rows].map((line) => `${JSON.stringify(line)}\n`).join(""))
}, Effect.mapError(failed))

/** Reads what `write` wrote. */
export const read = Effect.fnUntraced(function*(file: string) {
  const fs = yield* FileSystem.FileSystem
  const [first = "", ...others] = (yield* fs.readFileString(file)).trim().split("\n")
  const run = yield* Schema.decodeUnknownEffect(Schema.fromJsonString(Run))(first)
  const rows = yield* Schema.decodeUnknownEffect(Schema.Array(Schema.fromJsonString(Row)))(others)
  return { run, rows }
}, Effect.mapError((error) => new BenchError({ message: `The results cannot be read: ${error.message}` })))

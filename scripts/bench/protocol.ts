/**
 * What the harness asks of a worker process, and what that answers. Types only, like System.ts: a worker may live among other versions.
 *
 * A promise between commits: `--against` drives the worker of an earlier one. Calls and optional fields may be added; those that exist keep
 * their names and meanings. A call that an earlier worker does not know ends its process.
 */
import type { Settings, Work } from "./System.ts"

/** What a worker is connected to. `onStart` is the worker's own. */
export type Connect = Omit<Settings, "onStart">

/** What a system says of itself. */
export interface Description {
  readonly name: string
  readonly description: string
  readonly works: ReadonlyArray<Work>
}

/** A drain, seen by the process that ran it. Times are milliseconds since `run()` was called. */
export interface Drained {
  readonly millis: number
  readonly firstMillis: number
  /** Handlers that began. More than the jobs: some ran twice. */
  readonly starts: number
  /** User and system time of this process. */
  readonly cpuMicros: number
  readonly peakRssMb: number
  /** Every quarter of a second. */
  readonly rss: ReadonlyArray<{ readonly millis: number; readonly starts: number; readonly mb: number }>
}

/** How far one of several processes is. `firstAt` is in milliseconds of `performance.timeOrigin + now()`, `NaN` before the first start. */
export interface Progress {
  readonly starts: number
  readonly firstAt: number
  /** User and system time of this process so far. */
  readonly cpuMicros: number
}

/** Start latencies, each with the time of its submission, in milliseconds since the first. In order of submission; `NaN` never started. */
export interface Latencies {
  readonly at: Float64Array
  readonly took: Float64Array
}

/** Each call's input and output. */
export interface Calls {
  readonly describe: { readonly input: undefined; readonly output: Description }
  readonly prepare: { readonly input: Connect; readonly output: void }
  readonly open: { readonly input: Connect; readonly output: void }
  readonly run: { readonly input: undefined; readonly output: void }
  /** Stores so many jobs, in the fastest way. */
  readonly preload: { readonly input: { readonly jobs: number }; readonly output: void }
  /** One at a time from so many callers. Answers how long it took, in milliseconds. */
  readonly submit: { readonly input: { readonly jobs: number; readonly callers: number }; readonly output: number }
  /** Batches from so many callers. */
  readonly submitBatch: {
    readonly input: { readonly jobs: number; readonly batch: number; readonly callers: number }
    readonly output: number
  }
  /** Runs until so many jobs have started, or until they are also settled. */
  readonly drain: {
    readonly input: { readonly jobs: number; readonly until: "started" | "settled" }
    readonly output: Drained
  }
  /** Runs as one of several, from now on; how far it is, `progress` says. */
  readonly join: { readonly input: undefined; readonly output: void }
  readonly progress: { readonly input: undefined; readonly output: Progress }
  /** One job every so often, whether or not the one before has started. Answers when all of them have. */
  readonly pace: {
    readonly input: { readonly jobs: number; readonly everyMillis: number; readonly isUrgent: boolean }
    readonly output: Latencies
  }
  /** Runs what waits, and meanwhile sends an urgent job every so often, from the first start to the last. */
  readonly lanes: {
    readonly input: { readonly jobs: number; readonly everyMillis: number }
    readonly output: Latencies
  }
  readonly remaining: { readonly input: undefined; readonly output: number }
  readonly close: { readonly input: undefined; readonly output: void }
}

export type Call = keyof Calls

/** From the harness. */
export interface Request<Name extends Call = Call> {
  readonly call: Name
  readonly input: Calls[Name]["input"]
}

/** From the worker, one for each request, in order. */
export type Reply = { readonly output: unknown } | { readonly error: string }

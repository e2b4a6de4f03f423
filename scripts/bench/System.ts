/**
 * What the benchmark asks of a system under measurement. Types only: an adapter runs in a process of its own, with its own dependencies.
 */

/** What a job carries: about 100 bytes of JSON. `at` is when it was submitted, in milliseconds of `performance.timeOrigin + now()`. */
export interface Payload {
  readonly text: string
  readonly at: number
}

/**
 * What handlers do. `noop`: nothing. `write`: one `insert into public.bench_rows (text) values (...)`, with the job's completion in the same
 * transaction where the system can. `grouped`: the same with many jobs a transaction, in the system's best way.
 */
export type Work = "noop" | "write" | "grouped"

export interface Settings {
  /** A PostgreSQL database that is empty but for the table `public.bench_rows (id bigint identity, text text)`. */
  readonly url: string
  /** A Redis that is empty, for those that need one. */
  readonly redis: { readonly host: string; readonly port: number } | undefined
  readonly work: Work
  /** Several processes share the work, divided into so many parts. Without it the one that runs has all of it. */
  readonly partitions?: number
  /** Called at the handler's first line, synchronously. */
  readonly onStart: (payload: Payload) => void
}

/** A system, connected. */
export interface Session {
  /** Stores one job and answers after its commit. `isUrgent`: the highest priority there is; otherwise the lowest. */
  readonly submit: (payload: Payload, isUrgent?: boolean) => Promise<void>
  /** Stores all of them in the fastest way, with the same guarantees. */
  readonly submitMany: (payloads: ReadonlyArray<Payload>) => Promise<void>
  /** Begins to run jobs, in the best configuration for `work`. Answers when it does. */
  readonly run: () => Promise<void>
  /** Jobs whose end is not yet written down. Zero means that everything is durable. Cheap: it is polled while the last ones end. */
  readonly remaining: () => Promise<number>
  /** Stops workers and closes connections. */
  readonly close: () => Promise<void>
}

export interface System {
  readonly name: string
  /** With its version, and in a few words the configuration measured. */
  readonly description: string
  /** What its handlers can do. */
  readonly works: ReadonlyArray<Work>
  /** Makes its tables, once for a database. */
  readonly prepare: (settings: Settings) => Promise<void>
  readonly open: (settings: Settings) => Promise<Session>
}

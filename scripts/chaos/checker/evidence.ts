/**
 * What the checker judges by: the tables, the submitters' ledgers, the run's own notes and the monitor's samples. Read by load.ts.
 *
 * Nothing in this folder imports anything of Millrace or of the rest of the run: what they get wrong is not repeated here.
 */

/** One job, wherever it lies. */
export interface Row {
  readonly id: string
  readonly place: "jobs" | "dead_letters" | "finished_jobs"
  readonly state: "queued" | "scheduled" | "retrying" | "failed" | "completed" | "cancelled" | "expired"
  readonly queue: string
  readonly partition: number
  readonly attempt: number
  readonly createdAt: number
  /** Of a final one. */
  readonly endedAt: number | undefined
  /** Of one that waits for its time. */
  readonly dueAt: number | undefined
  readonly batchId: string | undefined
  /** Of a dead letter. */
  readonly errorTag: string | undefined
  /** Runs that count as neither attempt nor crash. */
  readonly reruns: number
  readonly crashes: number
  readonly type: string
  /** Out of its payload. */
  readonly ref: string
  readonly dedupe: string | undefined
  readonly history: ReadonlyArray<Entry>
}

/** One entry of a history, as it is stored. */
export interface Entry {
  readonly kind: string
  readonly outcome?: string
  readonly attempt?: number
  readonly startedAt?: number
  readonly endedAt?: number
  readonly at?: number
  readonly failure?: { readonly tag: string }
  /** The abandoned run of the same key that it ran beside: a job. */
  readonly alongside?: string
}

/** A job as its submitter meant it. */
export interface Order {
  readonly ref: string
  readonly type: string
  readonly fails: number
  readonly key?: string
  readonly n?: number
  readonly dedupe?: string
  readonly delayMs?: number
}

/** One call of a submitter, with what it was answered. `none`: it never heard. */
export interface Call {
  readonly call: string
  readonly op: "submit" | "cancel" | "replay"
  readonly at: number
  readonly isBatch: boolean
  readonly orders: ReadonlyArray<Order>
  /** Whom a cancel or replay was for. */
  readonly job: string | undefined
  readonly answer: "ack" | "refused" | "unknown" | "none"
  readonly answeredAt: number
  readonly ids: ReadonlyArray<string>
  readonly batchId: string | undefined
  readonly error: string | undefined
}

/** A row that a handler wrote in its job's transaction. */
export interface Effect {
  readonly job: string
  readonly ref: string
  readonly key: string | undefined
  readonly n: number | undefined
  readonly attempt: number
  readonly runner: number
  readonly incarnation: number
  readonly began: number
  readonly at: number
}

/** A handler that began. */
export interface Start {
  readonly job: string
  readonly ref: string
  readonly attempt: number
  readonly runner: number
  readonly incarnation: number
  readonly at: number
}

/** What the run did, see Events.ts of the run. */
export interface Event {
  readonly at: number
  readonly what: string
  readonly is?: string
  readonly kind?: string
  readonly target?: number
  readonly mode?: string
  readonly number?: number
  readonly incarnation?: number
  readonly forMs?: number
  /** Who ended a session: a job, or `fault`. */
  readonly by?: string
}

/** What the monitor saw. */
export interface Sample {
  readonly at: number
  /** By `queue/partition`. */
  readonly epochs?: Readonly<Record<string, number>>
  /** By job. */
  readonly crashes?: Readonly<Record<string, number>>
  /** Dedupe keys with more than one live job. */
  readonly twice?: ReadonlyArray<string>
  /** For so many milliseconds, up to now, it got no answer. */
  readonly stood?: number
}

/** What the run says of itself. */
export interface Terms {
  readonly maxAttempts: number
  /** Jobs that cannot be interrupted: their attempts, their timeout, and how long after it they are abandoned. */
  readonly hang: { readonly attempts: number; readonly timeoutMs: number; readonly abandonMs: number }
  /** After so many crashes a job is given up. */
  readonly crashLimit: number
}

export interface Evidence {
  readonly terms: Terms
  readonly rows: ReadonlyArray<Row>
  readonly calls: ReadonlyArray<Call>
  readonly effects: ReadonlyArray<Effect>
  readonly starts: ReadonlyArray<Start>
  /** In the order of time. */
  readonly events: ReadonlyArray<Event>
  readonly samples: ReadonlyArray<Sample>
}

/** A promise that was not kept. */
export interface Breach {
  readonly rule: string
  /** The job, key or batch it is about. */
  readonly of: string
  readonly detail: string
}

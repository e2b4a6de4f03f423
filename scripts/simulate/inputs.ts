/**
 * What the simulation takes as given: each figure with its source. Change one here, and every table follows.
 */

/** Defaults of `JobRuntime.layerCluster` (README, "Several processes"), in milliseconds. */
export const timing = {
  lockExpiration: 6_000,
  lockRefresh: 2_000,
  assignments: 1_000,
  health: 2_000,
  /** How often a runner tries for a lock that another still has; a setting of Effect's cluster that Millrace keeps at 1 second. */
  acquisition: 1_000,
  /** Of a question to a runner that does not answer: three times 2 seconds. */
  ping: 6_000
} as const

/** Default of `shards`. */
export const shards = 16

/** Take-over and the first intake. Assumed: two small statements. */
export const takeOverMs = 10

/** From the start of a process to its place on the list. README, `startup`: 518 ms to the first job's first line. */
export const startupMs = 500

/** Costs of one job: README, "What a job cost", measured at commit 67ec2b1 with payloads of 100 bytes. */
export const costs = {
  "no SQL": { nodeMicros: 32.3, databaseMicros: 24.2, walBytes: 1_104 },
  "own transaction": { nodeMicros: 313, databaseMicros: 391, walBytes: 1_401 },
  grouped: { nodeMicros: 209, databaseMicros: 212, walBytes: 1_343 }
} as const

/**
 * Storing one job. Node: scripts/bench/README.md, "Submit". Bytes: counted over 40,000 jobs of the benchmark's kind. The database's time is
 * assumed to be that of a job without SQL; nobody has measured it alone.
 */
export const storing = { nodeMicros: 27, databaseMicros: 24.2, walBytes: 510 } as const

/** A row of `finished_jobs` with its index, counted over 40,000 jobs of the benchmark's kind: payload 100 bytes, one attempt, no result. */
export const finishedBytes = 633

/** Dead tuples that a job leaves in `jobs`: README, `neighbour`. */
export const deadTuples = 1

/** README, "Configuration": connections of a worker and of a client with the defaults. */
export const connections = { worker: 19, client: 17 } as const

/** How full a core may be on average before waiting grows. Assumed. */
export const fullness = 0.6

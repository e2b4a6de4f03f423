/**
 * The states of a job and the moves between them, as data. Guards, the SQL checks and the README's diagram come from this table.
 *
 * Only `queued`, `scheduled` and `retrying` are stored for a live job; `running` is what its owner knows of it.
 */
import * as Schema from "effect/Schema"

/** Where a job stands. */
export const JobState = Schema.Literals([
  "queued",
  "scheduled",
  "running",
  "retrying",
  "completed",
  "failed",
  "cancelled",
  "expired"
])

/** Where a job stands. */
export type JobState = typeof JobState.Type

/** What makes a job move. */
export type Move =
  | "submitted"
  | "due"
  | "started"
  | "completed"
  | "retried"
  | "dead-lettered"
  | "put back"
  | "interrupted"
  | "crashed"
  | "cancelled"
  | "expired"
  | "replayed"

/** One allowed move. `from: undefined` is the submission. */
export interface Transition {
  readonly from: JobState | undefined
  readonly move: Move
  readonly to: JobState
}

/** Every allowed move, and no other. */
export const transitions: ReadonlyArray<Transition> = [
  { from: undefined, move: "submitted", to: "queued" },
  { from: undefined, move: "submitted", to: "scheduled" },
  { from: "scheduled", move: "due", to: "queued" },
  { from: "scheduled", move: "cancelled", to: "cancelled" },
  { from: "queued", move: "started", to: "running" },
  { from: "queued", move: "put back", to: "scheduled" },
  { from: "queued", move: "dead-lettered", to: "failed" },
  { from: "queued", move: "cancelled", to: "cancelled" },
  { from: "queued", move: "expired", to: "expired" },
  { from: "running", move: "completed", to: "completed" },
  { from: "running", move: "retried", to: "retrying" },
  { from: "running", move: "dead-lettered", to: "failed" },
  { from: "running", move: "put back", to: "scheduled" },
  { from: "running", move: "interrupted", to: "queued" },
  { from: "running", move: "crashed", to: "queued" },
  { from: "running", move: "cancelled", to: "cancelled" },
  { from: "retrying", move: "due", to: "queued" },
  { from: "retrying", move: "cancelled", to: "cancelled" },
  { from: "failed", move: "replayed", to: "queued" }
]

/** Whether some move leads from one state to the other. */
export const canMove = (from: JobState | undefined, to: JobState): boolean =>
  transitions.some((transition) => transition.from === from && transition.to === to)

/** Final states: nothing happens to the job by itself any more. A `failed` job is a dead letter and can be replayed. */
export const finalStates: ReadonlyArray<JobState> = ["completed", "failed", "cancelled", "expired"]

/** Whether `state` is final. */
export const isFinal = (state: JobState): boolean => finalStates.includes(state)

/** The smallints of `jobs.state`. */
export const liveCodes = { queued: 0, scheduled: 1, retrying: 2 } as const

/** The smallints of `finished_jobs.outcome`. */
export const outcomeCodes = { completed: 0, cancelled: 1, expired: 2 } as const

/** How a job that is not a dead letter can end. */
export type Outcome = keyof typeof outcomeCodes

/** The README's diagram, in Mermaid's notation. */
export const diagram = (): string => {
  const name = (state: JobState | undefined) => state ?? "[*]"
  const moves = transitions.map(({ from, move, to }) => `  ${name(from)} --> ${to}: ${move}`)
  const ends = finalStates.filter((state) => state !== "failed").map((state) => `  ${state} --> [*]`)
  return ["stateDiagram-v2", ...moves, ...ends].join("\n")
}

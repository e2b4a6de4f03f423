/**
 * What each way a run can end counts as. Pure: one table, printed in docs/failures.md. The code that ends broken-off runs
 * reads its rows; the others say what the code does.
 *
 * Whatever a job can cause again and again is bounded by it: attempts by the retry policy, crashes by quarantine and `CrashLoop`, reruns by
 * `attemptEvery`. The counts are columns of the job's row, so they survive a change of owner.
 */
import type { Breakage, Settlement } from "../JobStore.ts"

/**
 * `attempt`: the retry policy decides. `crash`: the job runs again, alone in its process from the second crash on, and is dead-lettered as
 * `CrashLoop` at the fifth. `rerun`: the job runs again after a pause. `nothing`: the job has ended, or its definition asked for a pause.
 */
export type Counts = "attempt" | "crash" | "rerun" | "nothing"

/** Every {@link attemptEvery}th rerun of a job counts as an attempt: nothing runs forever without a count. */
export const attemptEvery = 20

/** From how many crashes on a job is dead-lettered. */
export const crashLimit = 5

interface Row {
  readonly counts: Counts
  /** How the run ended, for the table in the docs. */
  readonly ended: string
  readonly because: string
}

/** Every way a run can end. */
export const accounting = {
  completed: {
    counts: "attempt",
    ended: "The handler succeeded and its result is stored",
    because: "The usual end."
  },
  failed: {
    counts: "attempt",
    ended: "The handler failed or died, its payload could not be decoded, its result could not be encoded",
    because: "The job did it, and would do it again."
  },
  timedOut: {
    counts: "attempt",
    ended: "The handler ran past its timeout, or could not be interrupted by it and was abandoned",
    because: "The definition sets the limit."
  },
  refused: {
    counts: "attempt",
    ended: "The server refused the COMMIT or the settlement (a deferred constraint)",
    because: "The transaction's own statements asked for it."
  },
  ended: {
    counts: "attempt",
    ended: "The server ended the session with an error and goes on serving others (25P03, 25P04, 57P01)",
    because:
      "A handler that idles in its transaction does so each time. It is not interrupted: it goes on, with its calls to other systems, until its next statement."
  },
  readOnly: {
    counts: "attempt",
    ended: "The handler made its own transaction read-only (25006 on a session that takes writes)",
    because: "Its completion can never be written."
  },
  unjudged: {
    counts: "attempt",
    ended: "A defect arose while the run was judged, encoded, settled or logged; class System",
    because: "The value that the handler left does it each time."
  },
  crashed: {
    counts: "crash",
    ended:
      "The session ended without an error message, or by a PANIC of the server, while a statement (COMMIT included) was in flight",
    because:
      "The statement may have killed its backend. The culprit and its neighbours look alike; running alone tells them apart."
  },
  processDied: {
    counts: "crash",
    ended: "The process died, or stalled until another one took over, while the run was on record",
    because: "The handler may have killed it, with the same doubt."
  },
  conflict: {
    counts: "rerun",
    ended: "The transaction lost against another one (40001, 40P01)",
    because: "Running again is the remedy that PostgreSQL asks for."
  },
  unable: {
    counts: "rerun",
    ended:
      "The server could not do the work or gave no session (53xxx, 57P03, 58xxx, refused connections, a shutdown, a standby, a settlement that was cancelled)",
    because: "It says nothing about the job."
  },
  lost: {
    counts: "rerun",
    ended: "The session was gone and no statement was in flight",
    because: "The job had sent nothing that could have ended it."
  },
  interrupted: {
    counts: "rerun",
    ended: "The runtime interrupted the run: a shutdown, a handler that was removed, lost ownership",
    because: "A deploy costs no attempts."
  },
  cancelled: {
    counts: "nothing",
    ended: "The job was cancelled, or its handler discarded it",
    because: "The job has ended."
  },
  snoozed: {
    counts: "nothing",
    ended: "The handler asked for a pause (`Snooze`)",
    because: "A snooze costs no attempt by definition; the handler bounds it."
  },
  superseded: {
    counts: "nothing",
    ended: "Another run settled the job, or another caller cancelled it",
    because: "The other outcome stands and this run was rolled back."
  }
} as const satisfies Record<Breakage, Row> & Record<string, Row>

/** A way a run can end. */
export type RunEnding = keyof typeof accounting

/** What a run that ended so counts as, of a job with so many reruns before. */
export const countsAs = (end: RunEnding, reruns: number): Counts => {
  const { counts } = accounting[end]
  return counts === "rerun" && (reruns + 1) % attemptEvery === 0 ? "attempt" : counts
}

/** The same for its settlement, where it is a rerun that counts as an attempt. */
export const asRerun = (end: RunEnding, settlement: Settlement): Settlement =>
  accounting[end].counts === "rerun" && (settlement._tag === "Retry" || settlement._tag === "DeadLetter")
    ? { ...settlement, isRerun: true }
    : settlement

/**
 * Milliseconds until a job whose run counts as no attempt runs again: a conflict is over soon, a server that restarts is not, and one that the
 * job may bring down needs a rest. `before`: its reruns and crashes so far.
 */
export const pauseMs = (end: RunEnding, before: number): number => {
  if (end === "interrupted") return 0
  const round = Math.min(before % attemptEvery, 10)
  if (end === "conflict") return Math.min(5 * (round + 1), 50)
  return end === "crashed" ? Math.min(500 * 2 ** round, 5_000) : Math.min(100 * 2 ** round, 2_000)
}

/** The table as Markdown, for the docs. */
export const table = (): string => {
  const rows = [
    ["how the run ended", "`end`", "counts as", "why"],
    ...Object.entries(accounting).map(([end, { because, counts, ended }]) => [ended, `\`${end}\``, counts, because])
  ]
  const widths = [0, 1, 2, 3].map((column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)))
  const [head, ...body] = rows.map((row) =>
    `| ${row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(" | ")} |`
  )
  return [head, `| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`, ...body].join("\n")
}

/**
 * What happened to the processes and the database during a run, as lines of JSON: the checker's third witness, beside tables and ledgers.
 */
import { openSync, writeSync } from "node:fs"
import type { KindName } from "./schedule.ts"

export type Event =
  | { readonly what: "began" | "quiet" | "ended" }
  | {
    readonly what: "fault"
    readonly kind: KindName
    readonly target: number
    readonly mode: string
    readonly forMs: number
  }
  /** Against something that was down already. */
  | { readonly what: "skipped"; readonly kind: KindName; readonly target: number }
  | { readonly what: "runner" | "submitter"; readonly number: number; readonly incarnation: number; readonly is: Stage }
  /** It did nothing at all for so long, whoever's fault that was: of a machine that is busy, it may be nobody's. */
  | {
    readonly what: "runner"
    readonly number: number
    readonly incarnation: number
    readonly is: "stood"
    readonly forMs: number
  }
  | { readonly what: "database"; readonly is: "up" | "down" }
  /** The session of a handler was ended, by the job with this id or by a fault. One that is `killed` takes the whole server down. */
  | { readonly what: "session"; readonly is: "killed" | "terminated" | "cut"; readonly by: string }

/** Of a process. `killed`: by SIGKILL, whoever sent it. */
export type Stage = "started" | "ready" | "killed" | "ended"

export interface Events {
  readonly note: (event: Event) => void
}

/** Times are the machine's clock, which is the database's too. */
export const open = (file: string): Events => {
  const handle = openSync(file, "a")
  return { note: (event) => void writeSync(handle, `${JSON.stringify({ at: Date.now(), ...event })}\n`) }
}

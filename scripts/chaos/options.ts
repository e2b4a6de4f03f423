/**
 * What the command line says.
 */
import type { Breakage } from "./breakage.ts"
import type { Fault } from "./schedule.ts"

export interface Options {
  readonly seed: number
  readonly ms: number
  readonly runtime: "cluster" | "single"
  readonly runners: number
  readonly submitters: number
  readonly perSecond: number
  readonly isJson: boolean
  readonly isKept: boolean
  readonly hasNamespace: boolean
  /** Instead of the seed's. */
  readonly faults: ReadonlyArray<Fault> | undefined
  readonly scenario: "random" | "pause"
  readonly breaks: Breakage | undefined
}

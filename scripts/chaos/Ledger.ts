/**
 * What a submitter asked for and what it was answered, as lines of JSON: written before the call and after it, so that a submitter may be
 * killed at any moment. A call without an answer may have happened, or not.
 */
import { openSync, writeSync } from "node:fs"
import type { Order } from "./intents.ts"

/** What a call wants. */
export type Asked =
  | { readonly op: "submit"; readonly isBatch: boolean; readonly orders: ReadonlyArray<Order> }
  | { readonly op: "cancel" | "replay"; readonly job: string }

/** How it went. `refused`: nothing has happened. `unknown`: all of it, or nothing. */
export type Answer =
  | { readonly say: "ack"; readonly ids: ReadonlyArray<string>; readonly batchId?: string }
  | { readonly say: "refused" | "unknown"; readonly error: string }

export interface Ledger {
  /** Notes the call and answers how to note its answer. */
  readonly ask: (asked: Asked) => (answer: Answer) => void
}

/** `name` makes calls of several submitters distinct. */
export const open = (file: string, name: string): Ledger => {
  const handle = openSync(file, "a")
  let calls = 0
  const write = (line: object) => writeSync(handle, `${JSON.stringify(line)}\n`)
  return {
    ask: (asked) => {
      const call = `${name}/${calls++}`
      write({ call, at: Date.now(), say: "intent", ...asked })
      return (answer) => void write({ call, at: Date.now(), ...answer })
    }
  }
}

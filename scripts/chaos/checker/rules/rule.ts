/**
 * What the rules share.
 */
import type { Breach, Call, Entry, Evidence, Row } from "../evidence.ts"

/** A promise: from the evidence to what breaks it. */
export type Rule = (evidence: Evidence) => ReadonlyArray<Breach>

/** Times of several clocks are compared: of processes, and the database's. Beyond this they contradict each other. */
export const slackMs = 1_500

export const submits = ({ calls }: Evidence) => calls.filter(({ op }) => op === "submit")

/** Calls that may have stored something without saying so. */
export const isOpen = ({ answer }: Call) => answer === "unknown" || answer === "none"

/** Entries of finished runs, in order, since the job was last replayed. */
export const attemptsOf = ({ history }: Row): ReadonlyArray<Entry> =>
  history.slice(history.findLastIndex(({ kind }) => kind === "replayed") + 1).filter(isCounted)

/** A run that counts as an attempt: it succeeded or it failed. */
export const isCounted = ({ kind, outcome }: Entry) =>
  kind === "attempt" && (outcome === "completed" || outcome === "retried" || outcome === "dead-lettered")

/** Given up because its process had died too often: no attempt failed. */
export const isGivenUp = ({ failure }: Entry) => failure?.tag === "CrashLoop"

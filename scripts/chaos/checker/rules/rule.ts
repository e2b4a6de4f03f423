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

/** What a replay does not reset begins after the last one. */
const lastLife = ({ history }: Row): ReadonlyArray<Entry> =>
  history.slice(history.findLastIndex(({ kind }) => kind === "replayed") + 1)

/** Entries of finished runs, in order, since the job was last replayed. */
export const attemptsOf = (row: Row): ReadonlyArray<Entry> => lastLife(row).filter(isCounted)

/** Entries of runs since then that count otherwise: as crashes, or as reruns. */
export const crashesOf = (row: Row): ReadonlyArray<Entry> => lastLife(row).filter(isCrashed)
export const rerunsOf = (row: Row): ReadonlyArray<Entry> =>
  lastLife(row).filter(({ kind, outcome }) => kind === "attempt" && outcome === "interrupted")

/** The run ended with a session in the middle of a statement, or with its process. */
export const isCrashed = ({ kind, outcome }: Entry) => kind === "attempt" && outcome === "crashed"

/** So many entries are kept in full; what lies between the first and the last of a longer history is not. */
const keptInFull = 40
export const isWhole = ({ history }: Row) => history.length < keptInFull

/** Every so many reruns one counts as an attempt, so that there is an end. */
export const rerunsAnAttempt = 20

/** Jobs whose handlers cannot be interrupted. */
export const isStubborn = ({ type }: Row) => type === "Hang" || type === "HangKeyed"

/** Jobs that kill processes or backends each time they run. */
export const isKiller = ({ type }: Row) => type === "Die" || type === "KillBackend"

/** A run that counts as an attempt: it succeeded or it failed. */
export const isCounted = ({ kind, outcome }: Entry) =>
  kind === "attempt" && (outcome === "completed" || outcome === "retried" || outcome === "dead-lettered")

/** Given up because its process had died too often: no attempt failed. */
export const isGivenUp = ({ failure }: Entry) => failure?.tag === "CrashLoop"

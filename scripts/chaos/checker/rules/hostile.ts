/**
 * How jobs end that harm what runs them.
 */
import { causesOf, causesOfRun, within } from "../causes.ts"
import type { Breach, Evidence, Row } from "../evidence.ts"
import { isCounted, isKiller, isStubborn, isWhole, rerunsAnAttempt, type Rule } from "./rule.ts"

/** On a busy machine, beyond timeout and abandonment. */
const patienceMs = 4_000

/** Types that fail at each attempt. */
const failsAlways = (type: string) => type === "Uninspectable" || type === "IdleInTransaction"

/** How a job of this type has to end, and what is wrong with how this one did. */
const wrongEnd = (row: Row, { hang, maxAttempts }: Evidence["terms"]): string | undefined => {
  const { attempt, errorTag, state, type } = row
  const end = `is ${state}${errorTag === undefined ? "" : ` (${errorTag})`} after ${attempt} attempts`
  if (isKiller(row)) return errorTag === "CrashLoop" ? undefined : `${end}, and ends a process or its backend each time`
  // Faults alone may make a crash loop of any job: `blameless` and `spared` judge that.
  if (errorTag === "CrashLoop") return undefined
  if (failsAlways(type)) {
    return state === "failed" && attempt === maxAttempts ? undefined : `${end}, and fails ${maxAttempts} times`
  }
  if (isStubborn(row)) {
    return errorTag === "JobTimeout" && attempt === hang.attempts
      ? undefined
      : `${end}, and times out ${hang.attempts} times`
  }
  return undefined
}

/**
 * A hostile job ends as a dead letter of its kind, after exactly its attempts or its crashes, and each start of its handler is one of them, a
 * rerun, or lost to something that was noted. A handler that cannot be interrupted is abandoned in time.
 */
export const bounded: Rule = (evidence) => {
  const breaches: Array<Breach> = []
  const causes = causesOfRun(evidence)
  const startsOf = Map.groupBy(evidence.starts, ({ job }) => job)
  for (const row of evidence.rows) {
    const { attempt, createdAt, crashes, endedAt = Infinity, id, place, reruns, type } = row
    // What waits still is `final`'s.
    if (place === "jobs" || !(isKiller(row) || isStubborn(row) || failsAlways(type))) continue
    const say = (detail: string) => breaches.push({ rule: "bounded", of: id, detail: `${type}: ${detail}` })
    const wrong = wrongEnd(row, evidence.terms)
    if (wrong !== undefined) say(wrong)
    const starts = startsOf.get(id)?.length ?? 0
    const noted = within(causesOf(evidence), createdAt, endedAt).filter(({ by }) => by !== id).length
    const most = attempt + crashes + reruns + noted
    if (starts > most) {
      say(
        `was started ${starts} times, with ${attempt} attempts, ${crashes} crashes, ${reruns} reruns and ${noted} faults`
      )
    }
    const counted = attempt - Math.floor(reruns / rerunsAnAttempt)
    if (failsAlways(type) && starts < counted) say(`was started ${starts} times and has ${attempt} attempts`)
    if (!isStubborn(row) || !isWhole(row)) continue
    const { abandonMs, timeoutMs } = evidence.terms.hang
    for (const entry of row.history.filter(isCounted)) {
      const { endedAt = 0, startedAt = 0 } = entry
      const tookMs = endedAt - startedAt
      if (tookMs > timeoutMs + abandonMs + patienceMs && causes(row, entry).length === 0) {
        say(`attempt ${entry.attempt} was abandoned after ${tookMs} ms`)
      }
    }
  }
  return breaches
}

/**
 * Ids that sort by the time they were made, many from one draw of random bytes: UUIDv7 with a counter (RFC 9562, section 6.2, method 1).
 */
import type { SecureRandom } from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"

const hex = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"))
const hexOf = (bytes: Uint8Array, from: number): string => {
  let text = ""
  for (let at = from; at < from + 4; at++) text += hex[bytes[at] ?? 0] ?? ""
  return text
}

const seedBytes = 6
/** What is drawn at least: one call for many ids that are made one by one. */
const drawnBytes = 1024
/** A counter of 42 bits that starts below half of it: no millisecond makes so many ids. */
const half = 2 ** 41
const low = 2 ** 30

/**
 * Makes `count` ids at the current time. Each one sorts after all that were made here before it, also when the clock stands or goes
 * back. Their last 32 bits are random, and so is what the counter of each millisecond starts from.
 */
export const make = (random: SecureRandom["Service"]): (count: number) => Effect.Effect<ReadonlyArray<string>> => {
  let drawn: Uint8Array = new Uint8Array(0)
  let used = 0
  let last = -1
  let counter = 0

  const idsOf = (millis: number, count: number): ReadonlyArray<string> => {
    if (millis > last) {
      last = millis
      counter = drawn.subarray(used, used + seedBytes).reduce((seed, byte) => seed * 256 + byte, 0) % half
      used += seedBytes
    }
    const time = last.toString(16).padStart(12, "0")
    const head = `${time.slice(0, 8)}-${time.slice(8)}-7`
    return Array.from({ length: count }, () => {
      counter++
      const upper = Math.floor(counter / low).toString(16).padStart(3, "0")
      const lower = (2 * low + counter % low).toString(16)
      const tail = hexOf(drawn, used)
      used += 4
      return `${head}${upper}-${lower.slice(0, 4)}-${lower.slice(4)}${tail}`
    })
  }

  return (count) =>
    Effect.clockWith((clock) => {
      const ids = () => idsOf(Math.max(0, Math.trunc(clock.currentTimeMillisUnsafe())), count)
      const needed = seedBytes + 4 * count
      if (drawn.length - used >= needed) return Effect.succeed(ids())
      return Effect.map(random.randomBytes(Math.max(needed, drawnBytes)), (bytes) => {
        drawn = bytes
        used = 0
        return ids()
      })
    })
}

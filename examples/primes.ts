/**
 * What the thread of cpu.ts runs: it never waits, so nothing but its end stops it.
 */
import { parentPort, workerData } from "node:worker_threads"

const isPrime = (number: number): boolean => {
  for (let factor = 2; factor * factor <= number; factor++) if (number % factor === 0) return false
  return number > 1
}

let primes = 0
for (let number = 2; number < workerData; number++) if (isPrime(number)) primes++
// oxlint-disable-next-line unicorn/require-post-message-target-origin -- a thread has no origin
parentPort?.postMessage(primes)

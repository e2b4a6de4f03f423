/**
 * All randomness of a run: named streams of numbers drawn from one seed, so that the same seed gives the same schedule and the same intents,
 * however the processes interleave.
 */

/** A stream of random numbers. */
export interface Dice {
  /** From 0, below 1. */
  readonly next: () => number
  /** An integer, both ends included. */
  readonly between: (least: number, most: number) => number
  readonly chance: (probability: number) => boolean
  readonly pick: <A>(all: readonly [A, ...ReadonlyArray<A>]) => A
  /** One of these, by its weight. */
  readonly weighted: <A extends { readonly weight: number }>(all: ReadonlyArray<A>) => A
  readonly uuid: () => string
}

/** FNV-1a over the name, started from the seed. */
const hash = (seed: number, name: string): number => {
  let state = (seed ^ 0x811c9dc5) >>> 0
  for (let at = 0; at < name.length; at++) state = Math.imul(state ^ name.charCodeAt(at), 0x01000193) >>> 0
  return state
}

/** The stream of this name: splitmix32. */
export const dice = (seed: number, name: string): Dice => {
  let state = hash(seed, name)
  const word = (): number => {
    state = (state + 0x9e3779b9) >>> 0
    let mixed = state
    mixed = Math.imul(mixed ^ (mixed >>> 16), 0x21f0aaad)
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97)
    return (mixed ^ (mixed >>> 15)) >>> 0
  }
  const next = () => word() / 2 ** 32
  const between = (least: number, most: number) => least + Math.floor(next() * (most - least + 1))
  return {
    next,
    between,
    chance: (probability) => next() < probability,
    pick: (all) => all[between(0, all.length - 1)] ?? all[0],
    weighted: (all) => {
      let left = next() * all.reduce((sum, { weight }) => sum + weight, 0)
      for (const one of all) {
        left -= one.weight
        if (left < 0) return one
      }
      const last = all.at(-1)
      if (last === undefined) throw new RangeError("weighted: nothing to choose from")
      return last
    },
    uuid: () => {
      const hex = Array.from({ length: 4 }, () => word().toString(16).padStart(8, "0")).join("")
      // Version 4, its variant's two bits set.
      return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-a${hex.slice(17, 20)}-${hex.slice(20)}`
    }
  }
}

/**
 * The promises, each as a pure function from the evidence to what breaks it. Written from DESIGN section 4 alone.
 */
import { unburnt } from "./rules/attempts.ts"
import { blameless, spared } from "./rules/crashes.ts"
import { atLeastOnce, exactlyOnce, fenced } from "./rules/effects.ts"
import { cancelled, legal, replayed } from "./rules/histories.ts"
import { bounded } from "./rules/hostile.ts"
import type { Rule } from "./rules/rule.ts"
import { final, present, single } from "./rules/storage.ts"
import { deduped, ordered, whole } from "./rules/together.ts"

/** All of them. */
export const rules = {
  present,
  single,
  final,
  exactlyOnce,
  atLeastOnce,
  fenced,
  whole,
  deduped,
  ordered,
  unburnt,
  blameless,
  spared,
  bounded,
  legal,
  replayed,
  cancelled
} as const satisfies Record<string, Rule>

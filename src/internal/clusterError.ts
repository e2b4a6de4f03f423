/**
 * Why a process cannot join its cluster, in words that say what to do next.
 */
import * as Schema from "effect/Schema"

const reasons = [
  /** An option, or its `MILLRACE_RUNNER_*` setting, is missing or wrong: `field` says which. */
  "InvalidConfig",
  /** Somebody listens at the address already. */
  "AddressTaken",
  /** The address is none of this machine's, or may not be listened at. */
  "AddressUnavailable"
] as const

/** The process cannot be a runner. `reason` is for programs, `message` for whoever has to repair it. */
export class ClusterError extends Schema.TaggedError<ClusterError>("millrace/ClusterError")("ClusterError", {
  reason: Schema.Literals(reasons),
  field: Schema.optionalKey(Schema.String),
  message: Schema.String,
  cause: Schema.optionalKey(Schema.Defect())
}) {
  /** Whether the same settings may work later. */
  get isRetryable(): boolean {
    return this.reason === "AddressTaken"
  }
}

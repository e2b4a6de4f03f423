/**
 * What is done with one file: the queue, the job's contract with its typed errors, and its handler. Start reading here.
 */
import * as NodeCrypto from "@effect/platform-node/NodeCrypto"
import * as Context from "effect/Context"
import { Digest, sha256 } from "effect/crypto/Digest"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Path from "effect/Path"
import type { PlatformError } from "effect/PlatformError"
import * as Ref from "effect/Ref"
import * as Schema from "effect/Schema"
import { SqlClient } from "effect/sql/SqlClient"
import { CurrentJob, Job, type JobError, JobQueue, RetryPolicy } from "../../src/index.ts"
import { formatOf } from "./folder.ts"

/** Four files at a time. */
export const Files = JobQueue.make("demo", { concurrency: 4 })

/** Nobody has taught the program to read this format yet. A business error: it is tried again, then it becomes a dead letter. */
export class UnsupportedFormat extends Schema.TaggedError<UnsupportedFormat>()("UnsupportedFormat", {
  format: Schema.String
}) {
  override get message() {
    return `no reader for ${this.format} files yet`
  }
}

/** The file cannot be read, and will not be the next time either: a dead letter at once. */
export class FileUnreadable extends Schema.TaggedError<FileUnreadable>()("FileUnreadable", {
  why: Schema.String
}) {
  readonly errorClass: JobError.ErrorClass = "Permanent"
  override get message() {
    return `cannot be read: ${this.why}`
  }
}

/** Indexes one file: counts what `wc -lw` counts, hashes as `sha256sum` does, writes a row. */
export class IndexFile extends Job.make("IndexFile", {
  payload: Schema.Struct({ runId: Schema.Int, folder: Schema.String, path: Schema.String }),
  success: Schema.Struct({ lines: Schema.Int, words: Schema.Int, sha256: Schema.String }),
  error: Schema.Union([UnsupportedFormat, FileUnreadable]),
  queue: Files,
  retry: RetryPolicy.exponential({ maxAttempts: 3, base: "300 millis" })
}) {}

/** The formats this program can read: all but one, until someone deploys the fix. */
export class Formats extends Context.Service<Formats, {
  readonly supports: (format: string) => Effect.Effect<boolean>
  readonly fix: Effect.Effect<void>
}>()("demo/Formats") {
  /** All but `missing`. */
  static readonly layer = (missing: string): Layer.Layer<Formats> =>
    Layer.effect(
      Formats,
      Effect.map(Ref.make(false), (isFixed) =>
        Formats.of({
          supports: (format) => Effect.map(Ref.get(isFixed), (fixed) => fixed || format !== missing),
          fix: Ref.set(isFixed, true)
        }))
    )
}

/** Lines and words as `wc` counts them: line feeds, and runs of anything but white space. */
const count = (content: Uint8Array): { readonly lines: number; readonly words: number } => {
  let lines = 0
  let words = 0
  let isInWord = false
  for (const byte of content) {
    const isSpace = byte === 32 || (byte >= 9 && byte <= 13)
    if (byte === 10) lines++
    if (!isSpace && !isInWord) words++
    isInWord = !isSpace
  }
  return { lines, words }
}

const why = ({ reason }: PlatformError): string =>
  reason._tag === "NotFound"
    ? "it is not there any more, or a link that leads nowhere"
    : reason._tag === "PermissionDenied"
    ? "permission denied"
    : reason.message

const read = Effect.fnUntraced(function*(folder: string, path: string) {
  const fs = yield* FileSystem.FileSystem
  const { join } = yield* Path.Path
  return yield* Effect.mapError(fs.readFile(join(folder, path)), (error) => new FileUnreadable({ why: why(error) }))
})

/** The handler. `delay` makes each file take that much longer, so that there is something to see and time to pull the plug. */
export const layer = (delay: Duration.Input) =>
  IndexFile.toLayer(({ folder, path, runId }) =>
    Effect.gen(function*() {
      const { jobId } = yield* CurrentJob.CurrentJob
      const content = yield* read(folder, path)
      const found = { ...count(content), sha256: yield* (yield* Digest).digestHex(sha256, content) }
      yield* Effect.sleep(delay)

      // This is the job's own transaction. It begins here, with its first statement, and its COMMIT carries the job's completion as well.
      const sql = yield* SqlClient
      yield* sql`insert into demo.files ${sql.insert({ run_id: runId, job_id: jobId, path, ...found })}`

      // The row is written before the format is looked at: when this fails, the row goes with the attempt.
      const format = formatOf(path)
      if (!(yield* (yield* Formats).supports(format))) return yield* new UnsupportedFormat({ format })
      return found
    })
  ).pipe(Layer.provide(NodeCrypto.layer))

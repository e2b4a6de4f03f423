/**
 * What the types of a definition promise: its handler, its requests and its results fit together, or the program does not compile.
 */
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import type { SqlClient } from "effect/sql/SqlClient"
import { describe, expect, test } from "tstyche"
import type { CurrentJob } from "../../src/CurrentJob.ts"
import * as Job from "../../src/Job.ts"
import { Discard } from "../../src/JobError.ts"
import type { JobHandlers } from "../../src/JobHandlers.ts"
import type { JobId } from "../../src/JobId.ts"
import type { Batch, Jobs, JobStatus } from "../../src/Jobs.ts"

class NotFound extends Schema.TaggedError<NotFound>()("NotFound", { path: Schema.String }) {}

class IndexFile extends Job.make("IndexFile", {
  payload: Schema.Struct({ path: Schema.String, since: Schema.Date }),
  success: Schema.Struct({ lines: Schema.Int }),
  error: NotFound
}) {}

class Tick extends Job.make("Tick") {}

declare const jobs: Jobs["Service"]
declare const jobId: JobId
declare const sql: Effect.Effect<number, { readonly _tag: "SqlError" }, SqlClient>

describe("a definition", () => {
  test("names its payload, success and error", () => {
    expect<Job.Success<typeof IndexFile>>().type.toBe<{ readonly lines: number }>()
    expect<Job.Failure<typeof IndexFile>>().type.toBe<NotFound>()
  })

  test("takes decoded payloads", () => {
    expect(IndexFile.request).type.toBeCallableWith({ path: "a", since: new Date() })
    expect(IndexFile.request).type.not.toBeCallableWith({ path: "a", since: "2026-11-23" })
    expect(IndexFile.request).type.not.toBeCallableWith({ path: "a" })
  })
})

describe("a handler", () => {
  test("gets the payload, and what it needs beside its job is asked of the layer", () => {
    expect(IndexFile.toLayer(({ path }) => Effect.as(sql, { lines: path.length }))).type.toBe<
      Layer.Layer<never, never, JobHandlers | SqlClient>
    >()
  })

  test("is given the current job and a scope", () => {
    const needy: Effect.Effect<void, never, CurrentJob> = Effect.die("not run")
    expect(Tick.toLayer(() => needy)).type.toBe<Layer.Layer<never, never, JobHandlers>>()
  })

  test("may fail as its definition says, discard or snooze, and in no other way", () => {
    expect(IndexFile.toLayer).type.toBeCallableWith(() => Effect.fail(new NotFound({ path: "a" })))
    expect(IndexFile.toLayer).type.toBeCallableWith(() => Effect.fail(new Discard({ because: "obsolete" })))
    expect(IndexFile.toLayer).type.not.toBeCallableWith(() => Effect.fail("no"))
    expect(IndexFile.toLayer).type.not.toBeCallableWith(() => Effect.succeed({ lines: "many" }))
  })
})

describe("Jobs", () => {
  test("one request answers with an id, many with a batch", () => {
    expect<Effect.Success<ReturnType<typeof submitOne>>>().type.toBe<JobId>()
    expect<Effect.Success<ReturnType<typeof submitMany>>>().type.toBe<Batch>()
  })

  test("status and await are typed by the definition", () => {
    const status = jobs.status(jobId, IndexFile)
    expect<Effect.Success<typeof status>>().type.toBe<JobStatus<{ readonly lines: number }, NotFound>>()
    const awaited = jobs.await(jobId, IndexFile)
    expect<Effect.Success<typeof awaited>>().type.toBe<{ readonly lines: number }>()
    expect<NotFound>().type.toBeAssignableTo<Effect.Error<typeof awaited>>()
  })
})

const submitOne = () => jobs.submit(IndexFile.request({ path: "a", since: new Date() }))
const submitMany = () => jobs.submit([{ type: "IndexFile", payload: { path: "a" } }], { priority: "high" })

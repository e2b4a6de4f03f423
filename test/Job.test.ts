import { assert, describe, it } from "@effect/vitest"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Job from "../src/Job.ts"
import * as JobHandlers from "../src/JobHandlers.ts"
import * as JobQueue from "../src/JobQueue.ts"

const Documents = JobQueue.make("documents")

class Unreadable extends Schema.TaggedError<Unreadable>()("Unreadable", { path: Schema.String }) {}

class IndexFile extends Job.make("IndexFile", {
  payload: Schema.Struct({ path: Schema.String, since: Schema.DateTimeUtc }),
  success: Schema.Struct({ lines: Schema.Int }),
  error: Unreadable,
  queue: Documents,
  priority: "high",
  timeout: "10 seconds",
  expiresIn: "1 hour",
  dedupeKey: ({ path, since }) => `${path} ${DateTime.toEpochMillis(since)}`
}) {}

class Ping extends Job.make("Ping") {}

const payload = { path: "/a", since: DateTime.makeUnsafe("2026-01-05T12:00:00Z") }
const stored = { path: "/a", since: "2026-01-05T12:00:00.000Z" }

/** What a handler of this definition registers. */
const handlerOf = (definition: { readonly type: string }, layer: Layer.Layer<never, never, JobHandlers.JobHandlers>) =>
  Effect.gen(function*() {
    const handlers = yield* JobHandlers.JobHandlers
    return handlers.get(definition.type) ?? assert.fail("no handler")
  }).pipe(Effect.provide(Layer.provideMerge(layer, JobHandlers.layer)))

describe("Job", () => {
  it("a request carries type, payload, the caller's options and who encodes it", () => {
    const request = IndexFile.request(payload, { dedupeKey: "mine", delay: "5 seconds", priority: 80 })
    const { definition, ...rest } = request
    assert.deepStrictEqual(rest, {
      type: "IndexFile",
      payload,
      dedupeKey: "mine",
      delay: "5 seconds",
      priority: 80
    })
    assert.strictEqual(definition?.type, "IndexFile")
    assert.strictEqual(definition?.queue, Documents)
  })

  it("defaults that were not given are the fallback queue's", () => {
    assert.strictEqual(Ping.queue, JobQueue.fallback)
    assert.strictEqual(Ping.priority, undefined)
    assert.strictEqual(Ping.expiresIn, undefined)
    assert.deepStrictEqual([IndexFile.priority, IndexFile.expiresIn], ["high", "1 hour"])
  })

  it.effect("a payload is stored as JSON and decodes to what it was, types that JSON does not know included", () =>
    Effect.gen(function*() {
      const json = JSON.parse(yield* IndexFile.encodePayload(payload))
      assert.deepStrictEqual(json, stored)
      const handler = yield* handlerOf(IndexFile, IndexFile.toLayer(() => Effect.succeed({ lines: 1 })))
      assert.deepStrictEqual(yield* handler.decode(json), payload)
    }))

  it.effect("a job without payload and without result is JSON too", () =>
    Effect.gen(function*() {
      const handler = yield* handlerOf(Ping, Ping.toLayer(() => Effect.void))
      const json = JSON.parse(yield* Ping.encodePayload(undefined))
      assert.strictEqual(yield* handler.decode(json), undefined)
      // As an untyped request without a payload is stored.
      assert.strictEqual(yield* handler.decode(null), undefined)
      const result = JSON.parse(yield* handler.encodeSuccess(undefined))
      assert.strictEqual(yield* Ping.decodeSuccess(result), undefined)
    }))

  it.effect("a payload that does not fit fails as a ParseError of class Validation that says what is wrong", () =>
    Effect.gen(function*() {
      const handler = yield* handlerOf(IndexFile, IndexFile.toLayer(() => Effect.succeed({ lines: 1 })))
      for (const wrong of [{ path: 1, since: stored.since }, {}, null, "text", [stored]]) {
        const error = yield* Effect.flip(handler.decode(wrong))
        assert.strictEqual(error._tag, "ParseError")
        assert.strictEqual(error.errorClass, "Validation")
        assert.isAbove(error.message.length, 0)
      }
      const words = (wrong: unknown) => Effect.map(Effect.flip(handler.decode(wrong)), ({ message }) => message)
      assert.strictEqual(
        yield* words({ path: 1, since: stored.since }),
        "payload.path: expected string, received 1"
      )
      assert.strictEqual(yield* words({ since: stored.since }), "payload.path: expected string, received nothing")
      assert.strictEqual(
        yield* words([stored]),
        `payload: expected a payload of IndexFile (object), received [${JSON.stringify(stored)}]`
      )
      class Deep extends Job.make("Deep", {
        payload: Schema.Struct({
          lines: Schema.Array(Schema.Struct({ price: Schema.Number, note: Schema.UndefinedOr(Schema.String) }))
        })
      }) {}
      const deep = yield* handlerOf(Deep, Deep.toLayer(() => Effect.void))
      const line = { price: 1, note: "a" }
      for (
        const [lines, said] of [
          [undefined, ": expected array, received nothing"],
          [[line, { note: "b" }], "[1].price: expected number, received nothing"],
          [[{ ...line, price: "1" }], "[0].price: expected number, received \"1\""]
        ] as const
      ) {
        const error = yield* Effect.flip(deep.decode(lines === undefined ? {} : { lines }))
        assert.strictEqual(error.message, `payload.lines${said}`)
      }
      const either = Schema.Union([Schema.Struct({ a: Schema.String }), Schema.Struct({ b: Schema.String })])
      class Either extends Job.make("Either", { payload: either }) {}
      const said = yield* Effect.flip((yield* handlerOf(Either, Either.toLayer(() => Effect.void))).decode({}))
      assert.match(said.message, /"a".*"b"/s, "of a union all that is wrong is said")
    }))

  it.effect("what is wrong with a payload that has a Redacted part is said without showing anything of it", () =>
    Effect.gen(function*() {
      const Password = Schema.RedactedFromValue(Schema.String.check(Schema.isMinLength(12)))
      const Account: Schema.Codec<unknown, unknown> = Schema.Struct({
        user: Schema.String,
        password: Password,
        linked: Schema.Array(Schema.suspend((): Schema.Codec<unknown, unknown> => Account))
      })
      class SignUp extends Job.make("SignUp", { payload: Account }) {}
      const { decode } = yield* handlerOf(SignUp, SignUp.toLayer(() => Effect.void))
      const ada = { user: "ada", password: "hunter2-hunter2", linked: [] }
      for (
        const [wrong, words] of [
          [
            { ...ada, password: "hunter2" },
            "payload.password: expected a value with a length of at least 12, received a string"
          ],
          [{ ...ada, user: ["hunter2"] }, "payload.user: expected string, received an array"],
          [{ ...ada, user: null }, "payload.user: expected string, received null"],
          [[ada], "payload: expected a payload of SignUp (object), received an array"],
          [{ ...ada, linked: [{}] }, "payload.linked[0].user: expected string, received nothing"]
        ] as const
      ) assert.strictEqual((yield* Effect.flip(decode(wrong))).message, words)

      const withSecrets = (payload: Job.Codec) => Job.make("Any", { payload }).isSecret()
      const Token = Schema.Redacted(Schema.String)
      class Login extends Schema.Class<Login>("Login")({ token: Token }) {}
      const Folder: Schema.Codec<unknown, unknown> = Schema.Struct({ in: Schema.suspend(() => Folder) })
      const endless = (): Schema.Codec<unknown, unknown> => Schema.Struct({ in: Schema.suspend(endless) })
      const { Array: list, Record, String: text, Struct, Tuple, Union } = Schema
      for (
        const schema of [
          Token,
          list(Token),
          Tuple([text, Token]),
          Record(text, Token),
          Union([text, Token]),
          Login,
          endless()
        ]
      ) {
        assert.isTrue(withSecrets(schema))
      }
      for (const schema of [IndexFile.payload, Folder, list(Struct({ a: text })), Record(text, Tuple([text]))]) {
        assert.isFalse(withSecrets(schema))
      }
    }))

  it.effect("a result and a typed failure come back typed; what the definition does not name does not", () =>
    Effect.gen(function*() {
      const handler = yield* handlerOf(IndexFile, IndexFile.toLayer(() => Effect.fail(new Unreadable({ path: "/a" }))))
      const result = JSON.parse(yield* handler.encodeSuccess({ lines: 3 }))
      assert.deepStrictEqual(yield* IndexFile.decodeSuccess(result), { lines: 3 })
      assert.isTrue((yield* Effect.exit(handler.encodeSuccess({ lines: "three" })))._tag === "Failure")

      const failure = yield* handler.encodeError(new Unreadable({ path: "/a" }))
      const decoded = yield* IndexFile.decodeError(JSON.parse(JSON.stringify(failure)))
      assert.instanceOf(decoded, Unreadable)
      assert.strictEqual(decoded.path, "/a")
      assert.isTrue((yield* Effect.exit(handler.encodeError(new Error("boom"))))._tag === "Failure")
    }))

  it.effect("the dedupe key is the same for a typed request and for the same payload given as JSON", () =>
    Effect.gen(function*() {
      const typed = yield* IndexFile.dedupeKeyOf(payload, true)
      assert.strictEqual(typed, `/a ${DateTime.toEpochMillis(payload.since)}`)
      assert.strictEqual(yield* IndexFile.dedupeKeyOf(stored, false), typed)
    }))

  it.effect("a payload that does not decode has no dedupe key, and says why", () =>
    Effect.gen(function*() {
      assert.deepInclude(yield* Effect.flip(IndexFile.dedupeKeyOf({ path: 1 }, false)), {
        _tag: "ParseError",
        message: "payload.path: expected string, received 1"
      })
      assert.strictEqual(yield* Ping.dedupeKeyOf(undefined, true), undefined)
    }))

  it.effect("a handler carries its definition's options, in milliseconds", () =>
    Effect.gen(function*() {
      const handler = yield* handlerOf(IndexFile, IndexFile.toLayer(() => Effect.succeed({ lines: 1 })))
      assert.strictEqual(handler.timeoutMs, 10_000)
      assert.strictEqual(handler.transaction, "job")
      assert.strictEqual(handler.retry.maxAttempts, 5)
      const ping = yield* handlerOf(Ping, Ping.toLayer(() => Effect.void))
      assert.strictEqual(ping.timeoutMs, undefined)
    }))

  it.effect("two handlers for one type in one process are a mistake of the program", () =>
    Effect.gen(function*() {
      const twice = Layer.mergeAll(Ping.toLayer(() => Effect.void), Ping.toLayer(() => Effect.void))
      const exit = yield* Effect.exit(handlerOf(Ping, twice))
      assert.strictEqual(exit._tag, "Failure")
      assert.include(String(exit), "Ping")
    }))

  it("a type that no column, metric or log line takes is refused where it is written, naming the field", () => {
    assert.throws(() => Job.make(""), RangeError, "type: expected a text of 1 to 200 characters, received \"\"")
    assert.throws(() => Job.make("x".repeat(201)), RangeError, "type: expected a text of 1 to 200 characters")
    assert.throws(
      () => Job.make("Task", { transaction: "group" as never }),
      RangeError,
      "transaction: expected one of job, none, grouped, received \"group\""
    )
    assert.strictEqual(Job.make("x".repeat(200)).type.length, 200)
  })

  const wrong: ReadonlyArray<readonly [string, object, string]> = [
    [
      "a number of retries",
      { retry: 3 },
      "retry: expected a policy of RetryPolicy, such as RetryPolicy.exponential(), received 3"
    ],
    [
      "a misspelt option",
      { retires: 3 },
      "retires: expected no such field, only payload, success, error, queue, priority, retry"
    ],
    [
      "a payload that is no schema",
      { payload: { path: "string" } },
      "payload: expected a schema, received {\"path\":\"string\"}"
    ],
    ["the name of a queue", { queue: "documents" }, "queue: expected a queue of JobQueue.make, received \"documents\""],
    ["a dedupe key that is no function", { dedupeKey: "path" }, "dedupeKey: expected a function of the payload"],
    ["a key that is no function", { key: "path" }, "key: expected a function of the payload, received \"path\""],
    [
      "a key where the queue does not go by key",
      { key: () => "a" },
      "key: expected none: queue \"default\" goes by job (see partitionBy of JobQueue.make), received () => \"a\""
    ],
    ["a class that is no function", { classify: "Transient" }, "classify: expected a function"],
    [
      "a timeout that is none",
      { timeout: "soon" },
      "timeout: expected a finite duration above zero, such as \"10 seconds\" or milliseconds, received \"soon\""
    ],
    ["a timeout of an unknown unit", { timeout: { second: 5 } }, "timeout: expected a finite duration above zero"],
    [
      "a lifetime that is none",
      { expiresIn: NaN },
      "expiresIn: expected a duration that is finite and not negative, such as \"10 seconds\" or milliseconds, received NaN"
    ],
    ["no object", [], "options: expected an object of payload"]
  ]

  for (const [what, options, words] of wrong) {
    it(`${what} is refused where it is written, naming the field`, () => {
      assert.throws(() => Job.make("Task", options), RangeError, `Job.make("Task"): ${words}`)
    })
  }

  it.effect("options of handlers without a definition are checked alike", () =>
    Effect.gen(function*() {
      const refusal = (options: object, handler: unknown = () => Effect.void, type: unknown = "Task") =>
        Effect.map(
          Effect.exit(
            Effect.scoped(JobHandlers.register(type as string, handler as () => Effect.Effect<void>, options))
          ),
          String
        )
      assert.include(
        yield* refusal({ retry: 3 }),
        "JobHandlers.register(\"Task\"): retry: expected a policy of RetryPolicy"
      )
      assert.include(
        yield* refusal({ timeout: "soon" }),
        "timeout: expected a finite duration above zero, such as \"10 seconds\" or milliseconds, received \"soon\""
      )
      assert.include(yield* refusal({ transaction: "nome" }), "transaction: expected one of job, none, grouped")
      assert.include(yield* refusal({ timeuot: 1 }), "timeuot: expected no such field, only retry, timeout")
      assert.include(yield* refusal({}, "not a function"), "handler: expected a function of the payload")
      assert.include(yield* refusal({}, undefined, 5), "type: expected a text of 1 to 200 characters, received 5")
      const layer = Ping.toLayer("not a function" as unknown as () => Effect.Effect<void>)
      assert.include(String(yield* Effect.exit(handlerOf(Ping, layer))), "Ping.toLayer: handler: expected a function")
    }).pipe(Effect.provide(JobHandlers.layer)))
})

/**
 * What is wrong with a payload, by its first part that is: where it lies, what was expected there, and what is there.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Predicate from "effect/Predicate"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as SchemaAST from "effect/SchemaAST"
import * as SchemaIssue from "effect/SchemaIssue"
import type { Reach } from "./json.ts"
import { shown } from "./options.ts"

/** One part that is wrong. `isOnly`: nothing else was said, no other member of a union say. */
export interface Wrong {
  /** Such as `payload.items[2].name`. */
  readonly field: string
  readonly expected: string
  readonly received: string
  readonly isOnly: boolean
}

type Path = ReadonlyArray<PropertyKey>

const format = SchemaIssue.makeFormatterStandardSchemaV1()

const issuesOf = (error: unknown): ReadonlyArray<{ readonly path: Path; readonly message: string }> =>
  Schema.isSchemaError(error)
    ? format(error.issue).issues.map(({ message, path = [] }) => ({
      message,
      path: path.map((step) => typeof step === "object" ? step.key : step)
    }))
    : []

const pathText = (path: Path): string =>
  path.map((key) => typeof key === "number" ? `[${key}]` : `.${String(key)}`).join("")

const partAt = (value: unknown, path: Path): unknown =>
  Result.getOrElse(
    Result.try(() => path.reduce((part, key) => Predicate.hasProperty(part, key) ? part[key] : undefined, value)),
    () => value
  )

/** A copy that has `undefined` at the path. */
const without = (value: unknown, [key, ...rest]: Path): unknown =>
  key === undefined
    ? undefined
    : Object.assign(Array.isArray(value) ? Array.from<unknown>(value) : { ...Predicate.isObject(value) ? value : {} }, {
      [key]: without(Predicate.hasProperty(value, key) ? value[key] : undefined, rest)
    })

/** How JSON says numbers that it has not: nobody who is told of these has heard of them. */
const numbersAsText = "\"Infinity\" | \"-Infinity\" | \"NaN\""

const plainly = (expected: string): string =>
  expected === numbersAsText ? "number" : expected.replace(`number | ${numbersAsText}`, "number")

/** What the schema expects there, if it says so. */
const expectedBy = (message: string | undefined): string | undefined =>
  message?.startsWith("Expected ") === true ? plainly(message.slice("Expected ".length)) : undefined

/** More parts than that has only a schema that makes itself anew again and again. */
const maxParts = 10_000

const innerOf = (ast: SchemaAST.AST): ReadonlyArray<SchemaAST.AST> =>
  ast._tag === "Declaration"
    ? ast.typeParameters
    : ast._tag === "Arrays"
    ? [...ast.elements, ...ast.rest]
    : ast._tag === "Objects"
    ? [...ast.propertySignatures, ...ast.indexSignatures].map(({ type }) => type)
    : ast._tag === "Union"
    ? ast.types
    : ast._tag === "Suspend"
    ? [ast.thunk()]
    : []

const isRedacted = ({ annotations }: SchemaAST.AST): boolean =>
  Predicate.hasProperty(annotations?.["representation"], "id") &&
  annotations["representation"].id === "effect/schema/Redacted"

/** Whether a part of what the schema describes is such a one. Of one that does not end: yes. */
const hasPart = ({ ast }: Schema.Top, isSuch: (part: SchemaAST.AST) => boolean): boolean => {
  const parts = new Set([ast])
  for (const part of parts) {
    if (isSuch(part) || parts.size > maxParts) return true
    for (const inner of [...innerOf(part), ...(part.encoding ?? []).map(({ to }) => to)]) parts.add(inner)
  }
  return false
}

/** Whether a part of what the schema describes is `Redacted`. */
export const hasSecrets = (schema: Schema.Top): boolean => hasPart(schema, isRedacted)

const open: ReadonlySet<SchemaAST.AST["_tag"]> = new Set(["Declaration", "Any", "Unknown", "ObjectKeyword"])

/** Which parts of a value the schema reads. */
export const reachOf = (schema: Schema.Top): Reach =>
  hasPart(schema, ({ _tag }) => open.has(_tag))
    ? "anything"
    : hasPart(schema, ({ _tag }) => _tag === "Arrays")
    ? "arrays"
    : "fields"

const kindOf = (value: unknown): string =>
  value === null || value === undefined
    ? String(value)
    : Array.isArray(value)
    ? "an array"
    : typeof value === "object"
    ? "an object"
    : `a ${typeof value}`

const missing = "Missing key"

/**
 * `error` is what `pass` fails with for `payload`. Of a key that is missing the schema says no more than that: what was expected there it
 * tells of the same payload with `undefined` in its place. `isSecret`: messages go to logs, and no part of the payload is to be seen there.
 */
export const wrongPart = Effect.fnUntraced(function*({ error, isSecret, pass, payload, type }: {
  readonly type: string
  readonly payload: unknown
  readonly error: unknown
  readonly pass: (payload: unknown) => Effect.Effect<unknown, unknown>
  readonly isSecret: boolean
}): Effect.fn.Return<Wrong> {
  const issues = issuesOf(error)
  const { message, path } = issues[0] ?? {
    message: error instanceof Error ? error.message : "a value that cannot be encoded",
    path: []
  }
  const isMissing = message === missing
  const expected = expectedBy(isMissing ? yield* messageWithout(payload, path, pass) : message)
  return {
    field: `payload${pathText(path)}`,
    expected: expected === undefined || path.length === 0
      ? `a payload of ${type} (${expected ?? message})`
      : expected,
    received: isMissing ? "nothing" : (isSecret ? kindOf : shown)(partAt(payload, path)),
    isOnly: issues.length === 1
  }
})

const messageWithout = Effect.fnUntraced(function*(
  payload: unknown,
  path: Path,
  pass: (payload: unknown) => Effect.Effect<unknown, unknown>
): Effect.fn.Return<string | undefined> {
  // Suspended: a getter of the payload may throw.
  const answer = yield* Effect.exit(Effect.suspend(() => pass(without(payload, path))))
  const [again] = Exit.isFailure(answer) ? issuesOf(Cause.squash(answer.cause)) : []
  return again !== undefined && pathText(again.path) === pathText(path) ? again.message : undefined
})

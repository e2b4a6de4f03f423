/**
 * `npm run docs`: writes the state diagram into README.md, and src/README.md, the map of the modules. With `--check`: compares, and looks
 * whether every file that README.md links to is there; exit code 1 if not.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import { fileURLToPath } from "node:url"
import * as JobState from "../src/JobState.ts"
import { written } from "./shared/written.ts"

const root = fileURLToPath(new URL("..", import.meta.url))

// ------------------------------------------------------------------------------------------------ README.md: the state diagram

const begin = "<!-- written by npm run docs, from src/JobState.ts -->"
const end = "<!-- end -->"

/** The text with its diagram as it should be. */
const withDiagram = (readme: string): string => {
  const from = readme.indexOf(begin)
  const to = readme.indexOf(end, from)
  if (from === -1 || to === -1) throw new Error(`README.md needs a place for the diagram: ${begin} ... ${end}`)
  return `${readme.slice(0, from)}${begin}\n\n\`\`\`mermaid\n${JobState.diagram()}\n\`\`\`\n\n${readme.slice(to)}`
}

// ------------------------------------------------------------------------------------------------ src/README.md: the modules

interface Rule {
  readonly name: string
  readonly from: { readonly path: ReadonlyArray<string> }
  readonly to: { readonly path: ReadonlyArray<string> }
}

const { default: cruiser }: { readonly default: { readonly forbidden: ReadonlyArray<Rule> } } = await import(
  new URL("../.dependency-cruiser.mjs", import.meta.url).href
)

const names = ["words: pure, no clock, no IO", "storage", "runtime", "operations", "assembly", "edges"]

/** The floors are read from the rules that hold them apart: a floor's rule names what lies on it, and the last one's all above. */
const floors: ReadonlyArray<ReadonlyArray<RegExp>> = (() => {
  const rules = cruiser.forbidden.filter(({ name }) => /^floor-\d/.test(name))
  const highest = rules.at(-1)?.to.path ?? []
  return [...rules.map(({ from }) => from.path), highest].map((paths) => paths.map((path) => new RegExp(path)))
})()

/** The first sentence of a file's header. */
const firstSentence = (file: string, source: string): string => {
  const header = /^\/\*\*\s*([^]*?)\s*\*\/|^((?:\/\/.*\n)+)/.exec(source)
  const text = (header?.[1] ?? header?.[2])?.replace(/^\s*([*]|\/\/) ?/gm, "")
  const sentence = text === undefined ? undefined : /^([^]*?[.])(\s|$)/.exec(text)?.[1]?.replace(/\s+/g, " ")
  if (sentence === undefined) throw new Error(`${file} needs a header whose first sentence says what it is`)
  return sentence
}

const modulesPage = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const { join } = yield* Path.Path
  const files = (yield* fs.glob("src/**/*.ts", { root })).filter((file) => file !== "src/index.ts")
  const lines = yield* Effect.forEach(files, (file) =>
    Effect.map(fs.readFileString(join(root, file)), (source) => {
      const name = file.slice("src/".length)
      return { file, line: `- [${name}](${name}): ${firstSentence(file, source)}` }
    }))
  const sections = names.map((name, level) => {
    const here = lines.filter(({ file }) => floors[level]?.some((path) => path.test(file)) === true)
    return here.length === 0 ? [] : [`## ${level} ${name}`, here.map(({ line }) => line).join("\n")]
  })
  return [
    "# The modules",
    "Written by `npm run docs` from the first sentence of each file. A file directly in `src/` is public, `internal/` is closed in the package's `exports`. " +
    "A floor imports itself and what is below it; `npm run check:structure` sees to that.",
    ...sections.toReversed().flat()
  ].join("\n\n") + "\n"
})

// ------------------------------------------------------------------------------------------------ files

/** What README.md links to in this repository. */
const linksOf = (readme: string): ReadonlyArray<string> => [
  ...new Set([...readme.matchAll(/\]\((?!https?:|#)([^)#]+)/g)].flatMap(([, target]) => target ?? []))
]

const program = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const { join } = yield* Path.Path
  const readme = yield* fs.readFileString(join(root, "README.md"))
  const pages = [
    { file: "README.md", text: withDiagram(readme) },
    { file: "src/README.md", text: yield* modulesPage }
  ]
  for (const { file, text } of pages) yield* written(join(root, file), text, "npm run docs")
  const missing = yield* Effect.filter(
    linksOf(readme),
    (target) => Effect.map(fs.exists(join(root, target)), (exists) => !exists)
  )
  for (const target of missing) yield* Console.error(`README.md names ${target}, which does not exist`)
  if (missing.length > 0) process.exitCode = 1
})

NodeRuntime.runMain(program.pipe(Effect.provide(NodeServices.layer)))

/**
 * `npm run docs`: writes the state diagram into README.md, the table of how runs end into docs/failures.md, and src/README.md, the map of the modules. With `--check`: compares, and looks
 * whether what the pages link to is there; exit code 1 if not.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import { fileURLToPath } from "node:url"
import * as Accounting from "../src/internal/accounting.ts"
import * as JobState from "../src/JobState.ts"
import { written } from "./shared/written.ts"

const root = fileURLToPath(new URL("..", import.meta.url))

// ------------------------------------------------------------------------------------------------ parts of pages that are written from the code

const end = "<!-- end -->"

/** A page with what is written from a source file as it should be. */
const withPart = (page: string, source: string, part: string): string => {
  const begin = `<!-- written by npm run docs, from ${source} -->`
  const from = page.indexOf(begin)
  const to = page.indexOf(end, from)
  if (from === -1 || to === -1) throw new Error(`a page needs the place ${begin} ... ${end}`)
  return `${page.slice(0, from)}${begin}\n\n${part}\n\n${page.slice(to)}`
}

const withDiagram = (readme: string): string =>
  withPart(readme, "src/JobState.ts", `\`\`\`mermaid\n${JobState.diagram()}\n\`\`\``)

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

/** The folders with pages for people. */
const folders = ["", "docs", "scripts/bench", "scripts/chaos", "scripts/simulate"]

/** What a page links to in this repository. */
const linksOf = (page: string): ReadonlyArray<string> => [
  ...new Set([...page.matchAll(/\]\((?!https?:)([^)]+)/g)].flatMap(([, target]) => target ?? []))
]

/** The anchors of a page, as GitHub makes them from its headings. */
const anchorsOf = (page: string): ReadonlyArray<string> =>
  [...page.matchAll(/^#+ (.+)$/gm)].map(([, heading = ""]) =>
    heading.toLowerCase().replace(/[^\p{L}\p{N} _-]/gu, "").replaceAll(" ", "-")
  )

/** Links that lead nowhere, with the page they are on. */
const brokenLinks = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const isBroken = (page: string, text: string, link: string) =>
    Effect.gen(function*() {
      const [file = "", anchor] = link.split("#")
      const target = file === "" ? page : path.join(path.dirname(page), file)
      if (!(yield* fs.exists(target))) return true
      if (anchor === undefined) return false
      return !anchorsOf(target === page ? text : yield* fs.readFileString(target)).includes(anchor)
    })
  const broken: Array<string> = []
  for (const folder of folders) {
    const names = yield* fs.readDirectory(path.join(root, folder))
    for (const name of names.filter((name) => name.endsWith(".md"))) {
      const page = path.join(root, folder, name)
      const text = yield* fs.readFileString(page)
      for (const link of linksOf(text)) {
        if (yield* isBroken(page, text, link)) broken.push(`${path.join(folder, name)} links to ${link}`)
      }
    }
  }
  return broken
})

const program = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const { join } = yield* Path.Path
  const readme = yield* fs.readFileString(join(root, "README.md"))
  const failures = yield* fs.readFileString(join(root, "docs/failures.md"))
  const pages = [
    { file: "README.md", text: withDiagram(readme) },
    { file: "docs/failures.md", text: withPart(failures, "src/internal/accounting.ts", Accounting.table()) },
    { file: "src/README.md", text: yield* modulesPage }
  ]
  for (const { file, text } of pages) yield* written(join(root, file), text, "npm run docs")
  const broken = yield* brokenLinks
  for (const link of broken) yield* Console.error(`${link}, which does not exist`)
  if (broken.length > 0) process.exitCode = 1
})

NodeRuntime.runMain(program.pipe(Effect.provide(NodeServices.layer)))

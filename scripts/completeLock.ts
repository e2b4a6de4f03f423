/**
 * Completes package-lock.json after an install from a registry that does not hold every platform's packages.
 *
 * npm leaves an optional platform package out of the lock when the registry has no such version, and `npm ci` then refuses the lock,
 * on every platform. What is missing is known without the registry: the parent pins the version, the name tells the platform.
 */
import { readFileSync, writeFileSync } from "node:fs"

interface Package {
  readonly version?: string
  readonly dev?: boolean
  readonly optionalDependencies?: Readonly<Record<string, string>>
}

const oses = new Set([
  "aix",
  "android",
  "darwin",
  "freebsd",
  "linux",
  "netbsd",
  "openbsd",
  "openharmony",
  "sunos",
  "win32"
])
const cpus = new Set(["arm", "arm64", "ia32", "loong64", "mips64el", "ppc64", "riscv64", "s390x", "x64"])
const libcs: Readonly<Record<string, string>> = {
  glibc: "glibc",
  gnu: "glibc",
  gnueabihf: "glibc",
  musl: "musl",
  musleabihf: "musl"
}

const path = new URL("../package-lock.json", import.meta.url)
const lock: { packages: Record<string, Package> } = JSON.parse(readFileSync(path, "utf8"))
const added: Array<string> = []

for (const parent of Object.values(lock.packages)) {
  for (const [name, version] of Object.entries(parent.optionalDependencies ?? {})) {
    const place = `node_modules/${name}`
    if (place in lock.packages) continue
    const words = name.slice(name.lastIndexOf("/") + 1).split("-")
    const os = words.find((word) => oses.has(word))
    const cpu = words.find((word) => cpus.has(word))
    if (os === undefined || cpu === undefined || !/^[0-9]/.test(version)) {
      throw new Error(`${name}@${version} is not in the lock, and its name does not tell a platform: add it by hand`)
    }
    const libc = words.flatMap((word) => libcs[word] ?? [])
    lock.packages[place] = {
      version,
      cpu: [cpu],
      ...(parent.dev === true ? { dev: true } : {}),
      ...(libc.length > 0 ? { libc } : {}),
      optional: true,
      os: [os]
    } as Package
    added.push(`${name}@${version}`)
  }
}

lock.packages = Object.fromEntries(Object.entries(lock.packages).sort(([a], [b]) => a.localeCompare(b, "en")))
writeFileSync(path, `${JSON.stringify(lock, null, 2)}\n`)
console.log(`${added.length} platform packages added to package-lock.json`)

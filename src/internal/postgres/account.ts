/**
 * PostgreSQL refuses to run as root. Where we are root, the server runs under an account that exists already; none is created.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { readFile, stat } from "node:fs/promises"
import * as Path from "node:path"
import { type EmbeddedPostgresError, failure } from "./EmbeddedPostgresError.ts"
import { type Account, isRoot } from "./process.ts"

/** In this order. `nobody` exists on nearly every system. */
const candidates = ["postgres", "_postgres", "nobody"]

const find = (passwd: string, name: string): Account | undefined => {
  const fields = passwd.split("\n").map((line) => line.split(":")).find(([first]) => first === name)
  const [uid, gid] = [Number(fields?.[2]), Number(fields?.[3])]
  return uid > 0 && gid > 0 ? { name, uid, gid } : undefined
}

const byId = (passwd: string, uid: number, gid: number): Account => ({
  name: passwd.split("\n").map((line) => line.split(":")).find((fields) => fields[2] === String(uid))?.[0] ??
    String(uid),
  uid,
  gid
})

/** Who runs the server of `data`: the folder's owner if it exists, else a fixed account; nobody else (`undefined`) if we are not root. */
export const choose = Effect.fnUntraced(
  function*(data: string): Effect.fn.Return<Account | undefined, EmbeddedPostgresError> {
    if (!(yield* isRoot)) return undefined
    const passwd = yield* Effect.orElseSucceed(Effect.tryPromise(() => readFile("/etc/passwd", "utf8")), () => "")
    const owner = yield* Effect.option(Effect.tryPromise(() => stat(data)))
    if (Option.isSome(owner) && owner.value.uid !== 0) return byId(passwd, owner.value.uid, owner.value.gid)
    for (const name of candidates) {
      const account = find(passwd, name)
      if (account !== undefined) return account
    }
    return yield* failure(
      "RunsAsRoot",
      `PostgreSQL does not run as root, and none of the accounts ${candidates.join(", ")} exists. ` +
        "Run this process as another user, or create one for it: useradd --system postgres"
    )
  }
)

/** Nobody in particular: what such an account may enter, every account may. */
export const anyone: Account = { name: "nobody", uid: -1, gid: -1 }

/** The first folder on the way to `path` that `account` may not enter. */
export const closedFolder = Effect.fnUntraced(function*(path: string, account: Account) {
  const folders: Array<string> = []
  for (let folder = Path.resolve(path); !folders.includes(folder); folder = Path.dirname(folder)) {
    folders.unshift(folder)
  }
  for (const folder of folders) {
    const found = yield* Effect.option(Effect.tryPromise(() => stat(folder)))
    if (Option.isNone(found)) return undefined
    const { gid, mode, uid } = found.value
    const enter = uid === account.uid ? 0o100 : gid === account.gid ? 0o010 : 0o001
    if ((mode & enter) === 0) return folder
  }
  return undefined
})

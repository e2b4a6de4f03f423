/**
 * What a statement begins with, as the server reads it: comments and empty statements in front of it and between its words do not count.
 */

const gap = /(?:[\s;]|--[^\r\n]*)*/y
const commentEdge = /\/\*|\*\//g
const word = /\w+/y

/** The end of what the server skips at `start`. Block comments nest; one that never ends is the server's to refuse. */
const skip = (sql: string, start: number): number => {
  let at = start
  while (true) {
    gap.lastIndex = at
    gap.test(sql)
    at = gap.lastIndex
    if (!sql.startsWith("/*", at)) return at
    let depth = 0
    commentEdge.lastIndex = at
    do {
      const edge = commentEdge.exec(sql)
      if (edge === null) return sql.length
      depth += edge[0] === "/*" ? 1 : -1
    } while (depth > 0)
    at = commentEdge.lastIndex
  }
}

/** Its first three words, a space between each. Fewer where something else follows. */
export const firstWords = (sql: string): string => {
  const words: Array<string> = []
  let at = 0
  while (words.length < 3) {
    word.lastIndex = skip(sql, at)
    const match = word.exec(sql)
    if (match === null) break
    words.push(match[0])
    at = word.lastIndex
  }
  return words.join(" ")
}

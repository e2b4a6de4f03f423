/**
 * The tables as text, and what all of them assume.
 */
import * as Inputs from "./inputs.ts"
import type { Table } from "./tables.ts"

const { storing, timing } = Inputs

/** Said before every table; README.md says why. */
export const assumptions = `Simulated, not measured. All tables assume:
  - placement: Effect's hash ring over addresses of equal weight, partitions in the shards in turn, ${Inputs.shards} of them where nothing else is said
  - timing: locks expire after ${timing.lockExpiration} ms and are refreshed every ${timing.lockRefresh}, runners look who is there every ${timing.assignments},
    ask each other every ${timing.health}, try for locks every ${timing.acquisition}; a take-over takes ${Inputs.takeOverMs} ms, a start ${Inputs.startupMs}
  - a runner has one core, and its jobs take turns on it; handlers wait beside each other; jobs arrive as a Poisson process
  - PostgreSQL always answers at once; a job, a message or a statement costs what it costs on an idle machine
  - costs of a job as measured with 100 bytes of payload (inputs.ts); storing one: ${storing.nodeMicros} us of Node, ${storing.databaseMicros} us of PostgreSQL, ${storing.walBytes} bytes of WAL`

/** One table, in columns. */
export const show = ({ assumed, heads, lines, title }: Table): string => {
  const widths = heads.map((head, column) => Math.max(head.length, ...lines.map((line) => line[column]?.length ?? 0)))
  const text = (line: ReadonlyArray<string>) =>
    `  ${
      line.map((cell, column) => column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0)).join(
        "  "
      )
    }`
  return [`\n${title}: ${assumed}`, ...[heads, ...lines].map(text)].join("\n")
}

/**
 * `node monitor.ts <url> <file>`: looks at what only shows while it happens, five times a second, until SIGTERM. Writes a line of JSON
 * whenever something has changed.
 */
import { openSync, writeSync } from "node:fs"
import { setTimeout as sleep } from "node:timers/promises"
import { connect } from "./load.ts"

const everyMs = 200
/** Without an answer for longer, the database, or the whole machine, stood still. */
const stoodMs = 2_000

const [url, file] = process.argv.slice(2)
if (url === undefined || file === undefined) throw new Error("usage: monitor.ts <url> <file>")
const output = openSync(file, "a")
const sql = connect(url)
const written: Record<string, string> = {}

/** Under its name, unless it is what was written last. */
const write = (name: string, value: unknown) => {
  const text = JSON.stringify(value)
  if (written[name] === text) return
  written[name] = text
  writeSync(output, `${JSON.stringify({ at: Date.now(), [name]: value })}\n`)
}

let lookedAt = performance.now()

const look = async () => {
  const [seen] = await sql`
    select
      (select coalesce(json_object_agg(q.name || '/' || p.partition, p.epoch), '{}')
        from millrace.partitions p join millrace.queues q on q.id = p.queue_id) as epochs,
      (select coalesce(json_object_agg(j.id, j.crashes), '{}') from millrace.jobs j where j.crashes > 0) as crashes,
      (select coalesce(json_agg(k.key), '[]') from (
        select j.payload ->> 'dedupe' as key from millrace.jobs j where j.payload ->> 'dedupe' is not null group by 1 having count(*) > 1
      ) k) as twice`
  write("epochs", seen?.["epochs"])
  write("crashes", seen?.["crashes"])
  write("twice", seen?.["twice"])
  const forMs = Math.round(performance.now() - lookedAt) - everyMs
  lookedAt = performance.now()
  if (forMs > stoodMs) write("stood", forMs)
}

process.on("SIGTERM", () => process.exit(0))
process.on("disconnect", () => process.exit(1))
process.send?.({ say: "ready" })
while (true) {
  // The database is restarted now and then.
  await look().catch(() => {})
  await sleep(everyMs)
}

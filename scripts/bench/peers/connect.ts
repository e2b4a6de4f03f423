/** The pool that an adapter itself uses. */
import pg from "pg"

export const makePool = (url: string): pg.Pool => {
  const pool = new pg.Pool({ connectionString: url, max: 20 })
  // The database may be dropped while an idle connection of a closed pool still says goodbye.
  const ignore = () => {}
  pool.on("error", ignore)
  pool.on("connect", (client) => client.on("error", ignore))
  return pool
}

/** What a handler that writes runs. */
export const insertRow = "insert into public.bench_rows (text) values ($1)"

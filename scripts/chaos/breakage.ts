/**
 * Breaks what the checker has to notice, on purpose and in the database only: a checker that has never found anything proves nothing.
 */

/** What can be broken. */
export const breakages = ["fence", "lose"] as const
export type Breakage = typeof breakages[number]

// As the functions of src/migrations, but for the fence: no version, no epoch, and nobody is told that nothing was taken.
const take = (from: string) => `
  delete from millrace.jobs j ${from}
  returning j.id, j.version, j.queue_id, j.partition, j.tenant_id, j.type, j.attempt, j.crashes, j.reruns, j.batch_id, j.created_at, j.payload, j.context, j.history`
const keep =
  "id, version, purge_on, outcome, queue_id, partition, tenant_id, type, attempt, crashes, reruns, batch_id, created_at, finished_at, payload, " +
  "context, result, history"

const fence = [
  `create or replace function millrace.settle(job uuid, ver int, queue int, part smallint, ep bigint, how smallint, at timestamptz, purge date, res text, entry jsonb)
   returns void language plpgsql as $$
   begin
     perform millrace.ensure_partition(purge);
     with d as (${take("where j.id = job")})
     insert into millrace.finished_jobs (${keep})
     select d.id, d.version, purge, how, d.queue_id, d.partition, d.tenant_id, d.type, d.attempt + (how = 0)::int, d.crashes, d.reruns, d.batch_id, d.created_at, at,
       d.payload, d.context, res::json, millrace.append_entry(d.history, entry) from d;
   end $$`,
  `create or replace function millrace.settle_grouped(job uuid, ver int, queue int, part smallint, ep bigint, how smallint, at timestamptz, purge date, res text, entry jsonb)
   returns void language plpgsql as $$
   begin perform millrace.settle(job, ver, queue, part, ep, how, at, purge, res, entry); end $$`,
  `create or replace function millrace.settle_together(jobs uuid[], versions int[], queues int[], partitions smallint[], epochs bigint[], at timestamptz, days int[], results text[], entries text[])
   returns void language plpgsql as $$
   begin
     with d as (${take("using unnest(jobs, days, results, entries) as s(id, day, result, entry) where j.id = s.id")},
       s.day, s.result, s.entry)
     insert into millrace.finished_jobs (${keep})
     select d.id, d.version, date '1970-01-01' + d.day, 0, d.queue_id, d.partition, d.tenant_id, d.type, d.attempt + 1, d.crashes, d.reruns, d.batch_id, d.created_at, at,
       d.payload, d.context, d.result::json, millrace.append_entry(d.history, d.entry::jsonb) from d;
   end $$`
]

const lose = [
  `create function chaos.lose() returns trigger language plpgsql as $$
   begin delete from millrace.jobs where id = new.id; return null; end $$`,
  `create trigger lose after insert on millrace.jobs for each row when (new.seq % 20 = 0) execute function chaos.lose()`
]

/** What does it, once the schema is there. */
export const statementsOf: Readonly<Record<Breakage, ReadonlyArray<string>>> = { fence, lose }

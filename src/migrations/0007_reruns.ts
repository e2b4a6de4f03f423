/**
 * Runs that ended without counting as an attempt are counted: `reruns` of a job, and, kept when it has ended, its `crashes`. See
 * `internal/accounting.ts`.
 *
 * `{schema}` stands for the schema's name; one statement an element, since the driver sends one a call.
 */
import type { Migration } from "./migration.ts"

// As before, but for the two counts.
const settle = `
create or replace function {schema}.settle(job uuid, ver int, queue int, part smallint, ep bigint, how smallint, at timestamptz, purge date, res text, entry jsonb)
returns void language plpgsql set enable_seqscan = off as $$
begin
  if to_regclass('{schema}.finished_jobs_' || to_char(purge, 'YYYYMMDD')) is null then perform {schema}.ensure_partition(purge); end if;
  with d as (
    delete from {schema}.jobs j where j.id = job and j.version = ver
      and exists (select from {schema}.partitions p where p.queue_id = queue and p.partition = part and p.epoch = ep)
    returning j.id, j.version, j.queue_id, j.partition, j.tenant_id, j.type, j.attempt, j.crashes, j.reruns, j.batch_id, j.created_at, j.payload, j.context, j.history
  )
  insert into {schema}.finished_jobs (id, version, purge_on, outcome, queue_id, partition, tenant_id, type, attempt, crashes, reruns, batch_id, created_at, finished_at, payload, context, result, history)
  select d.id, d.version, purge, how, d.queue_id, d.partition, d.tenant_id, d.type, d.attempt + (how = 0)::int, d.crashes, d.reruns, d.batch_id, d.created_at, at, d.payload, d.context, res::json, {schema}.append_entry(d.history, entry) from d;
  if not found then raise exception 'attempt superseded' using errcode = 'MR001'; end if;
end $$`

const settleTogether = `
create or replace function {schema}.settle_together(jobs uuid[], versions int[], queues int[], partitions smallint[], epochs bigint[], at timestamptz, days int[], results text[], entries text[])
returns void language plpgsql set enable_seqscan = off set enable_bitmapscan = off as $$
declare taken bigint;
begin
  with d as (
    delete from {schema}.jobs j using unnest(jobs, versions, queues, partitions, epochs, days, results, entries) as s(id, version, queue, partition, epoch, day, result, entry)
    where j.id = any(jobs) and j.id = s.id and j.version = s.version
      and exists (select from {schema}.partitions p where p.queue_id = s.queue and p.partition = s.partition and p.epoch = s.epoch)
    returning j.id, j.version, j.queue_id, j.partition, j.tenant_id, j.type, j.attempt, j.crashes, j.reruns, j.batch_id, j.created_at, j.payload, j.context, j.history,
      s.day, s.result, s.entry
  )
  insert into {schema}.finished_jobs (id, version, purge_on, outcome, queue_id, partition, tenant_id, type, attempt, crashes, reruns, batch_id, created_at, finished_at, payload, context, result, history)
  select d.id, d.version, date '1970-01-01' + d.day, 0, d.queue_id, d.partition, d.tenant_id, d.type, d.attempt + 1, d.crashes, d.reruns, d.batch_id, d.created_at, at, d.payload, d.context, d.result::json, {schema}.append_entry(d.history, d.entry::jsonb) from d;
  get diagnostics taken = row_count;
  if taken < cardinality(jobs) then raise exception 'attempts superseded' using errcode = 'MR001'; end if;
end $$`

export default {
  number: 7,
  name: "reruns",
  servesFrom: 1,
  statements: [
    `alter table {schema}.jobs
  add reruns smallint not null default 0 -- runs that the database or the end of an ownership broke off, and that counted as nothing else`,
    `alter table {schema}.dead_letters add reruns smallint not null default 0`,
    `alter table {schema}.finished_jobs add crashes smallint not null default 0, add reruns smallint not null default 0`,
    settle,
    settleTogether
  ]
} satisfies Migration

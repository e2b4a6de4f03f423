/**
 * Transactions that several attempts share are settled by one call, just before their COMMIT. (settle_grouped of before, one call an attempt,
 * stays for code that still runs it.) And a settlement costs less: a day's CHECK only spared the scan of an empty table when it was
 * attached, and was compiled anew by each statement that wrote into it, a quarter of the time of a call.
 *
 * `{schema}` stands for the schema's name; one statement an element, since the driver sends one a call.
 */
import type { Migration } from "./migration.ts"

// settle for completed jobs of any owners, all or none: what one of them lost, none may commit. For where it runs see settle. `= any`, so
// that the plan begins with the primary key whatever is known of the table.
const settleTogether = `
create function {schema}.settle_together(jobs uuid[], versions int[], queues int[], partitions smallint[], epochs bigint[], at timestamptz, days int[], results text[], entries text[])
returns void language plpgsql set enable_seqscan = off set enable_bitmapscan = off as $$
declare taken bigint;
begin
  with d as (
    delete from {schema}.jobs j using unnest(jobs, versions, queues, partitions, epochs, days, results, entries) as s(id, version, queue, partition, epoch, day, result, entry)
    where j.id = any(jobs) and j.id = s.id and j.version = s.version
      and exists (select from {schema}.partitions p where p.queue_id = s.queue and p.partition = s.partition and p.epoch = s.epoch)
    returning j.id, j.version, j.queue_id, j.partition, j.tenant_id, j.type, j.attempt, j.batch_id, j.created_at, j.payload, j.context, j.history,
      s.day, s.result, s.entry
  )
  insert into {schema}.finished_jobs (id, version, purge_on, outcome, queue_id, partition, tenant_id, type, attempt, batch_id, created_at, finished_at, payload, context, result, history)
  select d.id, d.version, date '1970-01-01' + d.day, 0, d.queue_id, d.partition, d.tenant_id, d.type, d.attempt + 1, d.batch_id, d.created_at, at, d.payload, d.context, d.result::json, {schema}.append_entry(d.history, d.entry::jsonb) from d;
  get diagnostics taken = row_count;
  if taken < cardinality(jobs) then raise exception 'attempts superseded' using errcode = 'MR001'; end if;
end $$`

// As before, but for the CHECK.
const ensurePartition = `
create or replace function {schema}.ensure_partition(d date) returns void language plpgsql security definer set search_path = {schema}, pg_temp as $$
declare n text := 'finished_jobs_' || to_char(d, 'YYYYMMDD');
begin
  if to_regclass('{schema}.' || n) is not null then return; end if;
  perform pg_advisory_xact_lock(hashtext('{schema}.ensure_partition'));
  execute format('create table {schema}.%I (like {schema}.finished_jobs including defaults including constraints)', n);
  execute format('alter table {schema}.finished_jobs attach partition {schema}.%I for values from (%L) to (%L)', n, d, d + 1);
exception when duplicate_table then null;
end $$`

const dropChecks = `
do $$
declare c record;
begin
  for c in select i.inhrelid::regclass as day, k.conname from pg_catalog.pg_inherits i join pg_catalog.pg_constraint k on k.conrelid = i.inhrelid
    where i.inhparent = '{schema}.finished_jobs'::regclass and k.contype = 'c' and k.conislocal and not k.coninhcount > 0
  loop execute format('alter table %s drop constraint %I', c.day, c.conname); end loop;
end $$`

export default {
  number: 3,
  name: "together",
  servesFrom: 1,
  statements: [settleTogether, ensurePartition, dropChecks]
} satisfies Migration

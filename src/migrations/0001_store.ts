/**
 * The store's first schema. Applied migrations are immutable: to change something, add a migration.
 *
 * `{schema}` stands for the schema's name; one statement an element, since the driver sends one a call.
 */
import type { Migration } from "./migration.ts"

const queues = `
create table {schema}.queues (
  id         int generated always as identity primary key,
  name       text not null unique,
  partitions smallint not null default 1,   -- durable; the code's value is only a request
  layout     int not null default 1,        -- raised when the partitioning changes
  paused_at  timestamptz
)`

// The fence: one row a partition. Every statement of an owner tests its epoch.
const partitions = `
create table {schema}.partitions (
  queue_id  int      not null references {schema}.queues,
  partition smallint not null,
  epoch     bigint   not null default 0,
  owner     text,                           -- null: nobody, or handed over cleanly
  careful   boolean  not null default false,-- the owner before this one did not hand over
  taken_at  timestamptz,
  primary key (queue_id, partition)
) with (fillfactor = 50, autovacuum_vacuum_threshold = 50, autovacuum_vacuum_scale_factor = 0)`

// Live jobs only. Each row is written once and deleted once on its straight way; version is raised by every update.
const jobs = `
create table {schema}.jobs (
  id          uuid primary key,
  seq         bigint   not null default nextval('{schema}.jobs_seq'), -- arrival order. Drawn before commit: 10 may be visible before 9
  version     int      not null default 0,
  queue_id    int      not null,
  payload_bytes int    not null,                                      -- of its text: what is large is not read ahead
  partition   smallint not null,
  lane        smallint not null constraint jobs_lane check (lane between 0 and 3),
  state       smallint not null constraint jobs_state check (state in (0, 1, 2)), -- 0 ready (waiting or in hand) 1 scheduled 2 retrying
  attempt     smallint not null default 0,
  crashes     smallint not null default 0,
  created_at  timestamptz not null,
  due_at      timestamptz,
  expires_at  timestamptz,
  tenant_id   text     not null default '=' collate "C",              -- '@' || id; '=' is the system; never empty, so '' sorts before all
  type        text     not null,
  dedupe_key  text,
  batch_id    uuid,
  payload     json     not null,
  context     json,
  history     jsonb    not null default '[]',                         -- first 20 and last 20 entries
  constraint jobs_due_at check (state = 0 or due_at is not null)
) with (fillfactor = 100,
        autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 50000,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000,
        autovacuum_vacuum_cost_delay = 0, toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 5000)`

// Only for runs worth knowing of after a crash. A row says something only while jobs holds the same id AND version; anything else is
// litter, removed by the next take-over.
const runningJobs = `
create table {schema}.running_jobs (
  id           uuid primary key,
  version      int         not null,
  queue_id     int         not null,
  partition    smallint    not null,
  epoch        bigint      not null,
  started_at   timestamptz not null,
  attempt      smallint    not null,
  progress     double precision,
  message      text,
  heartbeat_at timestamptz not null
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500)`

// An id is in exactly one of jobs, dead_letters, finished_jobs. version travels along, so that a replayed job never repeats one.
const deadLetters = `
create table {schema}.dead_letters (
  id          uuid primary key,
  version     int      not null,
  queue_id    int      not null,
  partition   smallint not null,
  lane        smallint not null,
  attempt     smallint not null,
  crashes     smallint not null,
  created_at  timestamptz not null,
  dead_at     timestamptz not null,
  tenant_id   text     not null collate "C",
  type        text     not null,
  dedupe_key  text,
  batch_id    uuid,
  error_tag   text     not null,
  error_class text     not null,
  failure     json     not null,
  payload     json     not null,
  context     json,
  history     jsonb    not null
)`

// Partitioned by the day after which a row may go (day of finishing + retention of its outcome, fixed at settle), so one drop serves every outcome.
// No default partition: it forbids DETACH CONCURRENTLY and makes each ATTACH scan it under an exclusive lock.
const finishedJobs = `
create table {schema}.finished_jobs (
  id          uuid     not null,
  created_at  timestamptz not null,
  finished_at timestamptz not null,
  purge_on    date     not null,
  version     int      not null,
  queue_id    int      not null,
  partition   smallint not null,
  outcome     smallint not null constraint finished_jobs_outcome check (outcome in (0, 1, 2)), -- completed cancelled expired
  attempt     smallint not null,
  tenant_id   text     not null collate "C",
  type        text     not null,
  batch_id    uuid,
  payload     json,
  context     json,
  result      json,
  history     jsonb    not null,
  primary key (id, purge_on)
) partition by range (purge_on)`

// The first 20 entries and the last 20. SQL, so that the planner inlines it.
const appendEntry = `
create function {schema}.append_entry(history jsonb, entry jsonb) returns jsonb language sql immutable parallel safe as $$
  select case when jsonb_array_length(history) >= 40 then history - 20 else history end || entry
$$`

// Called ahead of time, and by whoever settles into a day that is not there. Attaching takes only SHARE UPDATE EXCLUSIVE on the parent. Who
// waited for the lock finds the day made, and only by trying: another look at the catalog would still see what it saw before.
const ensurePartition = `
create function {schema}.ensure_partition(d date) returns void language plpgsql security definer set search_path = {schema}, pg_temp as $$
declare n text := 'finished_jobs_' || to_char(d, 'YYYYMMDD');
begin
  if to_regclass('{schema}.' || n) is not null then return; end if;
  perform pg_advisory_xact_lock(hashtext('{schema}.ensure_partition'));
  execute format('create table {schema}.%I (like {schema}.finished_jobs including defaults including constraints, check (purge_on >= %L and purge_on < %L))', n, d, d + 1);
  execute format('alter table {schema}.finished_jobs attach partition {schema}.%I for values from (%L) to (%L)', n, d, d + 1);
exception when duplicate_table then null;
end $$`

// The settle of a handler's transaction. A function, because it runs on the handler's connection, whose settings are not ours: planned
// while jobs is empty, a plain statement becomes a cached sequential scan and stays one until the next ANALYZE. With enable_seqscan off only
// the primary key is left. id and version decide; the epoch only spares a late owner's work. Nothing else belongs in the DELETE's WHERE: a
// test of state would open jobs_ready to the planner. Taking nothing must fail IN the server: COMMIT is on its way behind it.
const settle = `
create function {schema}.settle(job uuid, ver int, queue int, part smallint, ep bigint, how smallint, at timestamptz, purge date, res text, entry jsonb)
returns void language plpgsql set enable_seqscan = off as $$
begin
  if to_regclass('{schema}.finished_jobs_' || to_char(purge, 'YYYYMMDD')) is null then perform {schema}.ensure_partition(purge); end if;
  with d as (
    delete from {schema}.jobs j where j.id = job and j.version = ver
      and exists (select from {schema}.partitions p where p.queue_id = queue and p.partition = part and p.epoch = ep)
    returning j.id, j.version, j.queue_id, j.partition, j.tenant_id, j.type, j.attempt, j.batch_id, j.created_at, j.payload, j.context, j.history
  )
  insert into {schema}.finished_jobs (id, version, purge_on, outcome, queue_id, partition, tenant_id, type, attempt, batch_id, created_at, finished_at, payload, context, result, history)
  select d.id, d.version, purge, how, d.queue_id, d.partition, d.tenant_id, d.type, d.attempt + (how = 0)::int, d.batch_id, d.created_at, at, d.payload, d.context, res::json, {schema}.append_entry(d.history, entry) from d;
  if not found then raise exception 'attempt superseded' using errcode = 'MR001'; end if;
end $$`

// One finished job. A function, because it keeps its plan: planning anew over the partitions of a month costs a millisecond each time.
// stable: it sees the snapshot of the statement that calls it.
const findFinished = `
create function {schema}.find_finished(job uuid) returns setof {schema}.finished_jobs language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
begin
  return query select f.* from {schema}.finished_jobs f where f.id = job;
end $$`

// What happened to each job, one row an entry: for people, with plain SQL.
const history = `
create view {schema}.job_history as
select j.id, h.number, h.entry from {schema}.jobs j cross join lateral jsonb_array_elements(j.history) with ordinality as h(entry, number)
union all
select d.id, h.number, h.entry from {schema}.dead_letters d cross join lateral jsonb_array_elements(d.history) with ordinality as h(entry, number)
union all
select f.id, h.number, h.entry from {schema}.finished_jobs f cross join lateral jsonb_array_elements(f.history) with ordinality as h(entry, number)`

export default {
  number: 1,
  name: "store",
  servesFrom: 1,
  statements: [
    queues,
    partitions,
    `create sequence {schema}.jobs_seq`,
    jobs,
    `create index jobs_ready on {schema}.jobs (queue_id, partition, lane, tenant_id, seq) where state = 0`,
    `create index jobs_due on {schema}.jobs (queue_id, partition, due_at) where state in (1, 2)`,
    `create unique index jobs_dedupe on {schema}.jobs (tenant_id, queue_id, dedupe_key) where dedupe_key is not null`,
    runningJobs,
    `create index running_jobs_owner on {schema}.running_jobs (queue_id, partition, epoch)`,
    deadLetters,
    `create index dead_letters_list on {schema}.dead_letters (tenant_id, queue_id, dead_at, id)`,
    finishedJobs,
    appendEntry,
    ensurePartition,
    settle,
    findFinished,
    history
  ]
} satisfies Migration

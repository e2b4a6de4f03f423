-- Written by npm run schema, from src/migrations. Do not edit.

create table millrace.cluster (
  one boolean not null default true,
  shards integer not null,
  expiration_ms integer not null,
  changed_at timestamp with time zone not null default now(),
  constraint cluster_one CHECK (one),
  constraint cluster_pkey PRIMARY KEY (one)
);

create table millrace.dead_letters (
  id uuid not null,
  version integer not null,
  queue_id integer not null,
  partition smallint not null,
  lane smallint not null,
  attempt smallint not null,
  crashes smallint not null,
  created_at timestamp with time zone not null,
  dead_at timestamp with time zone not null,
  tenant_id text collate "C" not null,
  type text not null,
  dedupe_key text,
  batch_id uuid,
  error_tag text not null,
  error_class text not null,
  failure json not null,
  payload json not null,
  context json,
  history jsonb not null,
  key text,
  place integer,
  reruns smallint not null default 0,
  constraint dead_letters_pkey PRIMARY KEY (id)
);

create table millrace.finished_jobs (
  id uuid not null,
  created_at timestamp with time zone not null,
  finished_at timestamp with time zone not null,
  purge_on date not null,
  version integer not null,
  queue_id integer not null,
  partition smallint not null,
  outcome smallint not null,
  attempt smallint not null,
  tenant_id text collate "C" not null,
  type text not null,
  batch_id uuid,
  payload json,
  context json,
  result json,
  history jsonb not null,
  crashes smallint not null default 0,
  reruns smallint not null default 0,
  constraint finished_jobs_outcome CHECK ((outcome = ANY (ARRAY[0, 1, 2]))),
  constraint finished_jobs_pkey PRIMARY KEY (id, purge_on)
) partition by RANGE (purge_on);

create table millrace.jobs (
  id uuid not null,
  seq bigint not null default nextval('millrace.jobs_seq'::regclass),
  version integer not null default 0,
  queue_id integer not null,
  payload_bytes integer not null,
  partition smallint not null,
  lane smallint not null,
  state smallint not null,
  attempt smallint not null default 0,
  crashes smallint not null default 0,
  created_at timestamp with time zone not null,
  due_at timestamp with time zone,
  expires_at timestamp with time zone,
  tenant_id text collate "C" not null default '='::text,
  type text not null,
  dedupe_key text,
  batch_id uuid,
  payload json not null,
  context json,
  history jsonb not null default '[]'::jsonb,
  key text,
  place integer,
  reruns smallint not null default 0,
  constraint jobs_due_at CHECK (((state = 0) OR (due_at IS NOT NULL))),
  constraint jobs_lane CHECK (((lane >= 0) AND (lane <= 3))),
  constraint jobs_pkey PRIMARY KEY (id),
  constraint jobs_state CHECK ((state = ANY (ARRAY[0, 1, 2])))
) with (
  autovacuum_analyze_scale_factor=0,
  autovacuum_analyze_threshold=20000,
  autovacuum_vacuum_cost_delay=0,
  autovacuum_vacuum_insert_scale_factor=0,
  autovacuum_vacuum_insert_threshold=50000,
  autovacuum_vacuum_scale_factor=0,
  autovacuum_vacuum_threshold=5000,
  fillfactor=100,
  toast.autovacuum_vacuum_scale_factor=0,
  toast.autovacuum_vacuum_threshold=5000
);

create table millrace.migrations (
  number integer not null,
  name text not null,
  checksum text not null,
  serves_from integer not null,
  applied_at timestamp with time zone not null default now(),
  constraint migrations_pkey PRIMARY KEY (number)
);

create table millrace.partitions (
  queue_id integer not null,
  partition smallint not null,
  epoch bigint not null default 0,
  owner text,
  careful boolean not null default false,
  taken_at timestamp with time zone,
  lock integer,
  lock_pid integer,
  lock_epoch bigint,
  constraint partitions_pkey PRIMARY KEY (queue_id, partition),
  constraint partitions_queue_id_fkey FOREIGN KEY (queue_id) REFERENCES millrace.queues(id)
) with (
  autovacuum_vacuum_scale_factor=0,
  autovacuum_vacuum_threshold=50,
  fillfactor=50
);

create table millrace.queues (
  id integer generated always as identity not null,
  name text not null,
  partitions smallint not null default 1,
  layout integer not null default 1,
  paused_at timestamp with time zone,
  shard_group smallint not null default 0,
  partition_by smallint not null default 0,
  ordered boolean not null default false,
  former_partitions smallint,
  barrier bigint,
  constraint queues_name_key UNIQUE (name),
  constraint queues_ordered CHECK (((NOT ordered) OR (partition_by = 2))),
  constraint queues_partition_by CHECK ((partition_by = ANY (ARRAY[0, 1, 2]))),
  constraint queues_pkey PRIMARY KEY (id),
  constraint queues_shard_group_fkey FOREIGN KEY (shard_group) REFERENCES millrace.shard_groups(number)
);

create table millrace.running_jobs (
  id uuid not null,
  version integer not null,
  queue_id integer not null,
  partition smallint not null,
  epoch bigint not null,
  started_at timestamp with time zone not null,
  attempt smallint not null,
  progress double precision,
  message text,
  heartbeat_at timestamp with time zone not null,
  constraint running_jobs_pkey PRIMARY KEY (id)
) with (
  autovacuum_vacuum_scale_factor=0,
  autovacuum_vacuum_threshold=500,
  fillfactor=70
);

create table millrace.shard_groups (
  number smallint not null,
  name text not null,
  constraint shard_groups_name_key UNIQUE (name),
  constraint shard_groups_number CHECK (((number >= 0) AND (number <= 31))),
  constraint shard_groups_pkey PRIMARY KEY (number)
);

create sequence millrace.jobs_seq;

CREATE INDEX dead_letters_list ON millrace.dead_letters USING btree (tenant_id, queue_id, dead_at, id);

CREATE INDEX jobs_due ON millrace.jobs USING btree (queue_id, partition, due_at) WHERE (state = ANY (ARRAY[1, 2]));

CREATE INDEX jobs_key ON millrace.jobs USING btree (queue_id, tenant_id, key, seq) WHERE ((key IS NOT NULL) AND (state = ANY (ARRAY[0, 2])));

CREATE INDEX jobs_ready ON millrace.jobs USING btree (queue_id, partition, lane, tenant_id, seq) WHERE (state = 0);

CREATE INDEX running_jobs_owner ON millrace.running_jobs USING btree (queue_id, partition, epoch);

CREATE UNIQUE INDEX jobs_dedupe ON millrace.jobs USING btree (tenant_id, queue_id, dedupe_key) WHERE (dedupe_key IS NOT NULL);

CREATE OR REPLACE FUNCTION millrace.append_entry(history jsonb, entry jsonb)
 RETURNS jsonb
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
  select case when jsonb_array_length(history) >= 40 then history - 20 else history end || entry
$function$
;

CREATE OR REPLACE FUNCTION millrace.ensure_partition(d date)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'millrace', 'pg_temp'
AS $function$
declare n text := 'finished_jobs_' || to_char(d, 'YYYYMMDD');
begin
  if to_regclass('millrace.' || n) is not null then return; end if;
  perform pg_advisory_xact_lock(hashtext('millrace.ensure_partition'));
  execute format('create table millrace.%I (like millrace.finished_jobs including defaults including constraints)', n);
  execute format('alter table millrace.finished_jobs attach partition millrace.%I for values from (%L) to (%L)', n, d, d + 1);
exception when duplicate_table then null;
end $function$
;

CREATE OR REPLACE FUNCTION millrace.find_finished(job uuid)
 RETURNS SETOF millrace.finished_jobs
 LANGUAGE plpgsql
 STABLE
 SET plan_cache_mode TO 'force_generic_plan'
 SET enable_seqscan TO 'off'
AS $function$
begin
  return query select f.* from millrace.finished_jobs f where f.id = job;
end $function$
;

CREATE OR REPLACE FUNCTION millrace.place(tenant text, key text)
 RETURNS integer
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
  select ('x' || encode(substr(sha256(convert_to(coalesce(tenant || chr(10) || key, tenant), 'UTF8')), 1, 4), 'hex'))::bit(32)::int & 2147483647
$function$
;

CREATE OR REPLACE FUNCTION millrace.settle(job uuid, ver integer, queue integer, part smallint, ep bigint, how smallint, at timestamp with time zone, purge date, res text, entry jsonb)
 RETURNS void
 LANGUAGE plpgsql
 SET enable_seqscan TO 'off'
AS $function$
begin
  if to_regclass('millrace.finished_jobs_' || to_char(purge, 'YYYYMMDD')) is null then perform millrace.ensure_partition(purge); end if;
  with d as (
    delete from millrace.jobs j where j.id = job and j.version = ver
      and exists (select from millrace.partitions p where p.queue_id = queue and p.partition = part and p.epoch = ep)
    returning j.id, j.version, j.queue_id, j.partition, j.tenant_id, j.type, j.attempt, j.crashes, j.reruns, j.batch_id, j.created_at, j.payload, j.context, j.history
  )
  insert into millrace.finished_jobs (id, version, purge_on, outcome, queue_id, partition, tenant_id, type, attempt, crashes, reruns, batch_id, created_at, finished_at, payload, context, result, history)
  select d.id, d.version, purge, how, d.queue_id, d.partition, d.tenant_id, d.type, d.attempt + (how = 0)::int, d.crashes, d.reruns, d.batch_id, d.created_at, at, d.payload, d.context, res::json, millrace.append_entry(d.history, entry) from d;
  if not found then raise exception 'attempt superseded' using errcode = 'MR001'; end if;
end $function$
;

CREATE OR REPLACE FUNCTION millrace.settle_grouped(job uuid, ver integer, queue integer, part smallint, ep bigint, how smallint, at timestamp with time zone, purge date, res text, entry jsonb)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
declare immediate text := pg_catalog.current_setting('millrace.initially_immediate', true);
begin
  perform millrace.settle(job, ver, queue, part, ep, how, at, purge, res, entry);
  set constraints all immediate;
  set constraints all deferred;
  if coalesce(immediate, '') = '' then
    select coalesce(pg_catalog.string_agg(pg_catalog.format('%I.%I', n.nspname, c.conname), ', '), '-') into immediate
    from pg_catalog.pg_constraint c join pg_catalog.pg_namespace n on n.oid = c.connamespace
    where c.condeferrable and not c.condeferred and c.conparentid = 0 and pg_catalog.has_schema_privilege(n.oid, 'usage');
    perform pg_catalog.set_config('millrace.initially_immediate', immediate, true);
  end if;
  if immediate <> '-' then execute 'set constraints ' || immediate || ' immediate'; end if;
end $function$
;

CREATE OR REPLACE FUNCTION millrace.settle_together(jobs uuid[], versions integer[], queues integer[], partitions smallint[], epochs bigint[], at timestamp with time zone, days integer[], results text[], entries text[])
 RETURNS void
 LANGUAGE plpgsql
 SET enable_seqscan TO 'off'
 SET enable_bitmapscan TO 'off'
AS $function$
declare taken bigint;
begin
  with d as (
    delete from millrace.jobs j using unnest(jobs, versions, queues, partitions, epochs, days, results, entries) as s(id, version, queue, partition, epoch, day, result, entry)
    where j.id = any(jobs) and j.id = s.id and j.version = s.version
      and exists (select from millrace.partitions p where p.queue_id = s.queue and p.partition = s.partition and p.epoch = s.epoch)
    returning j.id, j.version, j.queue_id, j.partition, j.tenant_id, j.type, j.attempt, j.crashes, j.reruns, j.batch_id, j.created_at, j.payload, j.context, j.history,
      s.day, s.result, s.entry
  )
  insert into millrace.finished_jobs (id, version, purge_on, outcome, queue_id, partition, tenant_id, type, attempt, crashes, reruns, batch_id, created_at, finished_at, payload, context, result, history)
  select d.id, d.version, date '1970-01-01' + d.day, 0, d.queue_id, d.partition, d.tenant_id, d.type, d.attempt + 1, d.crashes, d.reruns, d.batch_id, d.created_at, at, d.payload, d.context, d.result::json, millrace.append_entry(d.history, d.entry::jsonb) from d;
  get diagnostics taken = row_count;
  if taken < cardinality(jobs) then raise exception 'attempts superseded' using errcode = 'MR001'; end if;
end $function$
;

create view millrace.job_history as
 SELECT j.id,
    h.number,
    h.entry
   FROM (millrace.jobs j
     CROSS JOIN LATERAL jsonb_array_elements(j.history) WITH ORDINALITY h(entry, number))
UNION ALL
 SELECT d.id,
    h.number,
    h.entry
   FROM (millrace.dead_letters d
     CROSS JOIN LATERAL jsonb_array_elements(d.history) WITH ORDINALITY h(entry, number))
UNION ALL
 SELECT f.id,
    h.number,
    h.entry
   FROM (millrace.finished_jobs f
     CROSS JOIN LATERAL jsonb_array_elements(f.history) WITH ORDINALITY h(entry, number));

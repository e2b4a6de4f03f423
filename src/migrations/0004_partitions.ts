/**
 * Queues of several partitions: where their jobs go, who may host them, and what all runners have to agree on.
 *
 * `{schema}` stands for the schema's name; one statement an element, since the driver sends one a call.
 */
import type { Migration } from "./migration.ts"

// Shard groups have numbers, not names, in the cluster: lock numbers depend on the sorted list of groups, so that list is constant.
const shardGroups = `
create table {schema}.shard_groups (
  number smallint primary key constraint shard_groups_number check (number between 0 and 31),
  name   text not null unique
)`

// What the numbers of the shard locks depend on. A runner that counts otherwise would lock something else.
const cluster = `
create table {schema}.cluster (
  one           boolean primary key default true constraint cluster_one check (one),
  shards        int not null,                                              -- of each group
  expiration_ms int not null,                                              -- how long a runner counts as living after its last heartbeat
  changed_at    timestamptz not null default now()
)`

const queues = `
alter table {schema}.queues
  add shard_group  smallint not null default 0 references {schema}.shard_groups,
  add partition_by smallint not null default 0 constraint queues_partition_by check (partition_by in (0, 1, 2)), -- job tenant key
  add ordered      boolean  not null default false                         -- jobs of one key start in the order of submission, one at a time
    constraint queues_ordered check (not ordered or partition_by = 2)`

// Where a job of a tenant, or of a tenant's key, goes: this modulo the number of partitions. JavaScript computes the same (placeOf).
const place = `
create function {schema}.place(tenant text, key text) returns int language sql immutable parallel safe as $$
  select ('x' || encode(substr(sha256(convert_to(coalesce(tenant || chr(10) || key, tenant), 'UTF8')), 1, 4), 'hex'))::bit(32)::int & 2147483647
$$`

export default {
  number: 4,
  name: "partitions",
  servesFrom: 1,
  statements: [
    shardGroups,
    `insert into {schema}.shard_groups (number, name) values (0, 'default')`,
    cluster,
    queues,
    // place: null where the partition comes from the id. Neither has a default, so that no row is written.
    `alter table {schema}.jobs add key text, add place int`,
    `alter table {schema}.dead_letters add key text, add place int`,
    // What stands in front of a job of its key: those that are ready, running or between two attempts.
    `create index jobs_key on {schema}.jobs (queue_id, tenant_id, key, seq) where key is not null and state in (0, 2)`,
    place
  ]
} satisfies Migration

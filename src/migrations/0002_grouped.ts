/**
 * Transactions that several attempts share: each is settled in it while others are still to come.
 *
 * `{schema}` stands for the schema's name; one statement an element, since the driver sends one a call.
 */
import type { Migration } from "./migration.ts"

// settle, and then what COMMIT would do for this attempt alone: its deferred constraints are checked here, inside of its savepoint, so that
// only it fails of them. Behind that all constraints are again as a transaction begins with, for the next attempt. There is no word for
// that: those that are initially immediate have to be named. They are looked up once a transaction ('-': none; '' is what is left of
// a setting of an earlier one). Not among them, for they cannot be named: those in schemas that this user may not use.
const settleGrouped = `
create function {schema}.settle_grouped(job uuid, ver int, queue int, part smallint, ep bigint, how smallint, at timestamptz, purge date, res text, entry jsonb)
returns void language plpgsql as $$
declare immediate text := pg_catalog.current_setting('millrace.initially_immediate', true);
begin
  perform {schema}.settle(job, ver, queue, part, ep, how, at, purge, res, entry);
  set constraints all immediate;
  set constraints all deferred;
  if coalesce(immediate, '') = '' then
    select coalesce(pg_catalog.string_agg(pg_catalog.format('%I.%I', n.nspname, c.conname), ', '), '-') into immediate
    from pg_catalog.pg_constraint c join pg_catalog.pg_namespace n on n.oid = c.connamespace
    where c.condeferrable and not c.condeferred and c.conparentid = 0 and pg_catalog.has_schema_privilege(n.oid, 'usage');
    perform pg_catalog.set_config('millrace.initially_immediate', immediate, true);
  end if;
  if immediate <> '-' then execute 'set constraints ' || immediate || ' immediate'; end if;
end $$`

export default {
  number: 2,
  name: "grouped",
  servesFrom: 1,
  statements: [settleGrouped]
} satisfies Migration

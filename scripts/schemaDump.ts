/**
 * The schema as text, read from the catalogue, so that a review sees what a migration does. pg_dump is no part of the embedded server.
 */
import type { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"

interface Line {
  readonly line: string
}

// Sorted throughout, and without what differs between the server's versions (PostgreSQL 18 names its NOT NULL constraints).
const tables = (sql: PgClient, schema: string) =>
  sql<{ readonly name: string; readonly line: string }>`
    select c.relname::text as name,
      format(E'create table %s (\n%s\n)%s%s;', c.oid::regclass,
        (select string_agg('  ' || part, E',\n' order by rank, position) from (
          select 0 as rank, a.attnum::int as position, format('%s %s', a.attname, format_type(a.atttypid, a.atttypmod))
              || case when a.attcollation <> t.typcollation then ' collate ' || (select quote_ident(collname) from pg_collation where oid = a.attcollation) else '' end
              || case when a.attidentity = 'a' then ' generated always as identity' else '' end
              || case when a.attnotnull then ' not null' else '' end
              || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '') as part
          from pg_attribute a join pg_type t on t.oid = a.atttypid left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
          where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
          union all
          select 1, row_number() over (order by k.conname)::int, format('constraint %s %s', k.conname, pg_get_constraintdef(k.oid))
          from pg_constraint k where k.conrelid = c.oid and k.contype <> 'n') parts),
        coalesce(' partition by ' || pg_get_partkeydef(c.oid), ''),
        coalesce(E' with (\n  ' || (select string_agg(o, E',\n  ' order by o) from (
          select unnest(c.reloptions) as o union all
          select 'toast.' || unnest(s.reloptions) from pg_class s where s.oid = c.reltoastrelid) options) || E'\n)', '')) as line
    from pg_class c where c.relnamespace = ${schema}::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
    order by 1`

const rest = (sql: PgClient, schema: string) =>
  Effect.all([
    sql<Line>`select format('create sequence %s;', c.oid::regclass) as line from pg_class c
      where c.relnamespace = ${schema}::regnamespace and c.relkind = 'S'
        and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'i') order by 1`,
    sql<
      Line
    >`select pg_get_indexdef(i.indexrelid) || ';' as line from pg_index i join pg_class c on c.oid = i.indexrelid
      where c.relnamespace = ${schema}::regnamespace and not c.relispartition
        and not exists (select from pg_constraint k where k.conindid = i.indexrelid and k.contype in ('p', 'u')) order by 1`,
    sql<
      Line
    >`select pg_get_functiondef(p.oid) || ';' as line from pg_proc p where p.pronamespace = ${schema}::regnamespace order by p.proname`,
    sql<Line>`select format(E'create view %s as\n%s', c.oid::regclass, pg_get_viewdef(c.oid)) as line from pg_class c
      where c.relnamespace = ${schema}::regnamespace and c.relkind = 'v' order by c.relname`
  ])

/** Everything in `schema`, in a stable order. `sql` has to see nothing of it on its search_path. */
export const dumpSchema = (sql: PgClient, schema: string) =>
  Effect.gen(function*() {
    const created = (yield* tables(sql, schema)).map(({ line }) => line)
    const others = (yield* rest(sql, schema)).flat().map(({ line }) => line.replace(/[ \t]+$/gm, ""))
    return `-- Written by npm run schema, from src/migrations. Do not edit.\n\n${
      [...created, ...others].join("\n\n")
    }\n`
  })

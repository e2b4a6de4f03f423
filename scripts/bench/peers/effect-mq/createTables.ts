/**
 * The tables of a drizzle schema, as drizzle-kit would make them: effect-mq leaves its own to the user's migrations, and drizzle-kit would be a
 * heavy dependency for seven tables.
 */
import { is, SQL } from "drizzle-orm"
import { getTableConfig, IndexedColumn, PgDialect, type PgTable } from "drizzle-orm/pg-core"

const dialect = new PgDialect()

const quote = (name: string) => `"${name}"`

type Config = ReturnType<typeof getTableConfig>

const literal = (value: unknown) =>
  is(value, SQL)
    ? dialect.sqlToQuery(value).sql
    : `'${typeof value === "object" ? JSON.stringify(value) : String(value)}'`

const column = (column: Config["columns"][number]) =>
  [
    quote(column.name),
    column.getSQLType(),
    column.primary ? "primary key" : "",
    column.notNull ? "not null" : "",
    column.generatedIdentity === undefined
      ? ""
      : `generated ${column.generatedIdentity.type === "always" ? "always" : "by default"} as identity`,
    column.default === undefined ? "" : `default ${literal(column.default)}`
  ].filter((part) => part !== "").join(" ")

const index = (table: Config, { config }: Config["indexes"][number]) => {
  const columns = config.columns.map((column) => {
    if (!is(column, IndexedColumn)) return `(${dialect.sqlToQuery(column as SQL).sql})`
    const { nulls, opClass, order } = column.indexConfig
    const sort = config.method === "gin" ? "" : `${order ?? "asc"} nulls ${nulls ?? "last"}`
    return [quote(column.name ?? ""), opClass ?? "", sort].join(" ")
  })
  const where = config.where === undefined ? "" : ` where ${dialect.sqlToQuery(config.where).sql}`
  const unique = config.unique ? "unique " : ""
  return `create ${unique}index ${quote(config.name ?? "")} on ${quote(table.name)} using ${config.method ?? "btree"}`
    + ` (${columns.join(", ")})${where}`
}

/** One statement a table and one an index, in order. */
export const createTables = (tables: ReadonlyArray<PgTable>): ReadonlyArray<string> =>
  tables.flatMap((each) => {
    const table = getTableConfig(each)
    const keys = table.primaryKeys.map(({ columns }) =>
      `primary key (${columns.map(({ name }) => quote(name)).join(", ")})`
    )
    const references = table.foreignKeys.map((key) => {
      const { columns, foreignColumns, foreignTable } = key.reference()
      const names = (each: typeof columns) => each.map(({ name }) => quote(name)).join(", ")
      return `foreign key (${names(columns)}) references ${quote(getTableConfig(foreignTable).name)}`
        + ` (${names(foreignColumns)}) on delete ${key.onDelete ?? "no action"}`
    })
    return [
      `create table ${quote(table.name)} (${[...table.columns.map(column), ...keys, ...references].join(", ")})`,
      ...table.indexes.map((each) => index(table, each))
    ]
  })

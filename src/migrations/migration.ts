/**
 * What a step of the schema is. See Migrations.ts, which takes them.
 */

/** One step. `{schema}` in a statement stands for the schema's name. Never change an applied one. */
export interface Migration {
  readonly number: number
  readonly name: string
  /** The oldest code version (`Migrations.codeVersion`) that works on the schema after this step. */
  readonly servesFrom: number
  /** One statement each. */
  readonly statements: ReadonlyArray<string>
}

/**
 * The database that a script is given: `DATABASE_URL`. An empty one is none.
 */
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"

/** Its URL. */
export const givenDatabase = Effect.map(
  Config.option(Config.Redacted("DATABASE_URL")),
  (url) => Option.filter(Option.map(url, Redacted.value), (url) => url !== "")
)

/**
 * A tracer that keeps every span it makes.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Tracer from "effect/Tracer"

/** The spans made so far, in the order in which they began. */
export class Spans
  extends Context.Service<Spans, { readonly all: ReadonlyArray<Tracer.NativeSpan> }>()("millrace/test/Spans")
{
  /** Records all spans of what is built on it. */
  static readonly layer = Layer.effectContext(Effect.sync(() => {
    const all: Array<Tracer.NativeSpan> = []
    const tracer = Tracer.make({
      span: (options) => {
        const span = new Tracer.NativeSpan(options)
        all.push(span)
        return span
      }
    })
    return Context.make(Spans, { all }).pipe(Context.add(Tracer.Tracer, tracer))
  }))
}

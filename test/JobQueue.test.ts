import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as JobQueue from "../src/JobQueue.ts"

const day = 86_400_000

/** What a wrong option says. */
const complaint = (options: JobQueue.Options, name = "documents"): string => {
  let message = ""
  assert.throws(() => {
    try {
      JobQueue.make(name, options)
    } catch (error) {
      message = error instanceof RangeError ? error.message : `not a RangeError: ${String(error)}`
      throw error
    }
  })
  return message
}

describe("JobQueue", () => {
  it("a name is enough", () => {
    const week = 7 * day
    assert.deepStrictEqual(JobQueue.make("documents"), {
      name: "documents",
      concurrency: 10,
      partitions: 1,
      partitionBy: "job",
      isOrdered: false,
      group: "default",
      weights: { critical: 8, high: 4, normal: 2, low: 1 },
      retention: { completedMs: week, cancelledMs: week, expiredMs: week },
      maxPayloadBytes: 1024 * 1024
    })
  })

  it("what is given replaces the default beside it, and only that", () => {
    const queue = JobQueue.make("documents", {
      concurrency: 3,
      weights: { low: 5 },
      retention: { completed: "1 hour", expired: 0 }
    })
    assert.strictEqual(queue.concurrency, 3)
    assert.deepStrictEqual(queue.weights, { critical: 8, high: 4, normal: 2, low: 5 })
    assert.deepStrictEqual(queue.retention, { completedMs: 3_600_000, cancelledMs: 7 * day, expiredMs: 0 })
  })

  it("wrong options are refused where they are written, naming queue, field and what was given", () => {
    for (const concurrency of [0, -1, 1.5, NaN, Infinity, 10_001]) {
      assert.strictEqual(
        complaint({ concurrency }),
        `JobQueue.make("documents"): concurrency: expected an integer from 1 to 10000, received ${concurrency}`
      )
    }
    assert.include(complaint({ maxPayloadBytes: 0 }), "maxPayloadBytes: expected")
    assert.include(
      complaint({ maxPayloadBytes: JobQueue.maxJsonBytes + 1 }),
      "maxPayloadBytes: expected an integer from 1 to 8388608"
    )
    assert.strictEqual(
      complaint({ weights: { low: 0 } }),
      "JobQueue.make(\"documents\"): weights.low: expected an integer from 1 to 1000, received 0"
    )
    assert.include(complaint({ weights: { high: 1.5 } }), "weights.high: expected")
  })

  it("fields that do not exist are refused: a misspelt one would be passed over in silence", () => {
    assert.strictEqual(
      complaint({ weights: { urgent: 3 } as object }),
      "JobQueue.make(\"documents\"): weights.urgent: expected no such field, only critical, high, normal, low, received 3"
    )
    assert.strictEqual(
      complaint({ concurency: 3 } as object),
      "JobQueue.make(\"documents\"): concurency: expected no such field, only concurrency, partitions, partitionBy, ordered, group, weights, retention, maxPayloadBytes, received 3"
    )
    for (const field of ["partition", "partitionedBy", "isOrdered", "shardGroup"]) {
      assert.include(complaint({ [field]: 1 }), `${field}: expected no such field, only concurrency`)
    }
    assert.include(
      complaint({ retention: { complete: "1 day" } as object }),
      "retention.complete: expected no such field"
    )
  })

  it("callers without types are told the field too", () => {
    assert.include(complaint({}, null as never), "JobQueue.make(null): name: expected")
    assert.include(complaint(5 as never), "options: expected an object of concurrency")
    assert.include(
      complaint({ partitions: "2" as never }),
      "partitions: expected an integer from 1 to 1000, received \"2\""
    )
    assert.include(
      complaint({ ordered: "yes" as never, partitionBy: "key" }),
      "ordered: expected true or false, received \"yes\""
    )
    assert.include(
      complaint({ group: 5 as never }),
      "group: expected 1 to 100 letters, digits, '.', '_' or '-', received 5"
    )
    assert.include(complaint({ weights: 5 as never }), "weights: expected an object of critical")
    assert.include(
      complaint({ weights: { low: "1" as never } }),
      "weights.low: expected an integer from 1 to 1000, received \"1\""
    )
    assert.include(complaint({ retention: "7 days" as never }), "retention: expected an object of completed")
    assert.include(
      complaint({ retention: { completed: NaN } }),
      "retention.completed: expected a duration from 0 to 36500 days, such as \"10 seconds\" or milliseconds, received NaN"
    )
  })

  it("a division that cannot be is refused by the name of its field", () => {
    for (const partitions of [0, 1.5, 1_001, NaN]) {
      assert.include(complaint({ partitions, concurrency: 10_000 }), "partitions: expected an integer from 1 to 1000")
    }
    assert.strictEqual(
      complaint({ partitions: 11 }),
      "JobQueue.make(\"documents\"): partitions: expected at most the concurrency of 10, of which each partition gets its share, received 11"
    )
    assert.include(
      complaint({ partitionBy: "user" as never }),
      "partitionBy: expected one of job, tenant, key, received \"user\""
    )
    assert.include(complaint({ ordered: true }), "ordered: expected true only with partitionBy \"key\"")
    assert.include(complaint({ ordered: true, partitionBy: "tenant" }), "ordered: expected")
    assert.include(complaint({ group: "a b" }), "group: expected 1 to 100 letters")
  })

  it("partitions share the concurrency: together they have all of it, and none has more than one beyond another's", () => {
    for (const concurrency of [1, 2, 7, 10, 64]) {
      for (const partitions of [1, 2, 3, 7].filter((count) => count <= concurrency)) {
        const queue = JobQueue.make("documents", { concurrency, partitions })
        const shares = Array.from({ length: partitions }, (_, index) => JobQueue.shareOf(queue, index, partitions))
        assert.strictEqual(shares.reduce((sum, share) => sum + share, 0), concurrency)
        assert.isAtMost(Math.max(...shares) - Math.min(...shares), 1)
      }
    }
    // Another program has divided it further than this one's concurrency goes; or less far, and one is left over.
    assert.strictEqual(JobQueue.shareOf(JobQueue.make("documents", { concurrency: 2 }), 3, 4), 1)
    assert.strictEqual(JobQueue.shareOf(JobQueue.make("documents", { concurrency: 9 }), 5, 2), 1)
  })

  it("a retention without an end, which no date can hold, is refused: it would keep every job from being settled", () => {
    assert.strictEqual(
      complaint({ retention: { completed: Duration.infinity } }),
      "JobQueue.make(\"documents\"): retention.completed: expected a duration from 0 to 36500 days, such as \"10 seconds\" or milliseconds, received Infinity"
    )
    assert.include(complaint({ retention: { cancelled: -1 } }), "retention.cancelled: expected")
    // @ts-expect-error a word that is no duration
    assert.include(complaint({ retention: { expired: "for ever" } }), "retention.expired: expected")
  })

  it("names that would break an entity id, a path or a metric are refused", () => {
    for (const name of ["", " ", "a/b", "a b", "-a", ".a", "_a", "ü", "a\n", "a".repeat(101), "a;drop"]) {
      assert.isFalse(JobQueue.isName(name), JSON.stringify(name))
      assert.include(complaint({}, name), "name: expected")
    }
    for (const name of ["a", "Documents", "eu-west.mail_2", "0", "a".repeat(100)]) assert.isTrue(JobQueue.isName(name))
  })
})

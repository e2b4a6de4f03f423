import { expect, test } from "tstyche"
import type { BatchId, JobId } from "../../src/JobId.ts"

test("the id of a job is neither any string nor the id of a batch", () => {
  expect<string>().type.not.toBeAssignableTo<JobId>()
  expect<BatchId>().type.not.toBeAssignableTo<JobId>()
  expect<JobId>().type.toBeAssignableTo<string>()
})

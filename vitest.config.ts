import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    // One embedded PostgreSQL for the whole run; each file makes a database of its own in it.
    globalSetup: ["test/utils/globalSetup.ts"],
    pool: "forks",
    maxWorkers: 2,
    testTimeout: 30_000,
    hookTimeout: 60_000,
    // Machines of CI stall for seconds. A test that needed its second try is still reported as such.
    retry: process.env["CI"] === undefined ? 0 : 1,
    // .ci/run reads the counts from the report.
    reporters: process.env["CI"] === undefined ? ["default"] : ["default", "json"],
    outputFile: { json: "coverage/tests.json" }
  }
})

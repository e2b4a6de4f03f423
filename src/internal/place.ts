/**
 * Where a tenant's jobs, or those of a tenant's key, belong: a number that every program and the SQL function `place` compute alike. Its
 * remainder by the count of partitions is the partition.
 */
import { createHash } from "node:crypto"
import type { TenantKey } from "../JobStore.ts"

/** The first 31 bits of a SHA-256: names that differ in a letter are as far apart as any others, which cheaper sums do not promise. */
export const placeOf = (tenant: TenantKey, key: string | undefined): number =>
  createHash("sha256").update(key === undefined ? tenant : `${tenant}\n${key}`).digest().readUInt32BE(0) & 0x7fffffff

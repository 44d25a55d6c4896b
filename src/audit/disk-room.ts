/**
 * How much the logs of tenants may still write on the disk that all logs of a node share. A part of it is never theirs, so that the cluster's
 * own log, and through it everyone else's work, goes on when one tenant's records pile up. Must never: ask the file system for every record.
 */
import { statfsSync } from 'node:fs';
import { BulkheadError } from '../base/errors.ts';
import { AUDIT_DISK_RESERVE_BYTES, AUDIT_DISK_RESERVE_SHARE } from '../base/limits.ts';
import type { Clock } from '../base/time.ts';

export interface DiskSpace {
  readonly freeBytes: number;
  readonly totalBytes: number;
}

const ASK_EVERY_MS = 1_000;

export function diskSpaceOf(dir: string): DiskSpace {
  const { bavail, blocks, bsize } = statfsSync(dir);
  return { freeBytes: bavail * bsize, totalBytes: blocks * bsize };
}

export class DiskRoom {
  readonly #measure: () => DiskSpace;
  readonly #clock: Clock;
  #askedMs = -Infinity;
  #freeBytes = 0;
  #reserveBytes = 0;

  constructor(measure: () => DiskSpace, clock: Clock) {
    this.#measure = measure;
    this.#clock = clock;
  }

  /** Bytes that may be written until less than `share` of the reserve is free; 0 when the file system does not say. */
  bytesAbove(share: number): number {
    const nowMs = this.#clock.monotonicMs();
    if (nowMs - this.#askedMs >= ASK_EVERY_MS) this.#ask(nowMs);
    return Math.max(0, this.#freeBytes - this.#reserveBytes * share);
  }

  #ask(nowMs: number): void {
    this.#askedMs = nowMs;
    try {
      const { freeBytes, totalBytes } = this.#measure();
      this.#freeBytes = freeBytes;
      this.#reserveBytes = Math.min(AUDIT_DISK_RESERVE_BYTES, totalBytes * AUDIT_DISK_RESERVE_SHARE);
    } catch {
      // Unknown room is no room: the cluster's log, which does not ask, goes on.
      this.#freeBytes = 0;
    }
  }

  /** What was handed to the disk since it was last asked counts as used. */
  took(bytes: number): void {
    this.#freeBytes -= bytes;
  }
}

export function logFull(origin: string, limitBytes: number): BulkheadError {
  return new BulkheadError('QUOTA_EXCEEDED', `the audit log ${origin} has reached its ${Math.floor(limitBytes)} bytes, so calls of its tenant are refused on this node: export it (bulkhead audit export) and ask the operator of the node for more (auditBytesPerTenant in its configuration, and free disk space)`);
}

export function diskFull(origin: string): BulkheadError {
  return new BulkheadError('RESOURCE_EXHAUSTED', `the disk under the audit log ${origin} has only its reserve left, so calls of tenants are refused on this node: ask the operator of the node to free disk space, then try again`);
}

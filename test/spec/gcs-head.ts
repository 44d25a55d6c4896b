/** A head's tables over a memory store with a clock that stands still: for tests of what the head decides and in which order it acts. */
import type { AuditRecord } from '../../src/base/audit-record.ts';
import { HeadState } from '../../src/gcs/head-state.ts';
import { MemoryStore } from '../../src/gcs/memory-store.ts';
import type { Compare, Operation, Store, TxnResult } from '../../src/gcs/store.ts';

export class TestClock {
  ms = 1_000_000;
  nowMs(): number {
    return this.ms;
  }

  monotonicMs(): number {
    return this.ms;
  }
}

/** What reached the outside, in order: `audit …`, `store …`. */
export class RecordingStore extends MemoryStore {
  readonly events: string[] = [];
  failNext: Error | undefined;

  override async txn(compares: readonly Compare[], operations: readonly Operation[]): Promise<TxnResult> {
    const { failNext } = this;
    this.failNext = undefined;
    if (failNext !== undefined) throw failNext;
    const result = await super.txn(compares, operations);
    this.events.push(`store ${operations.map((o) => `${o.type} ${o.key}`).join(', ')}`);
    return result;
  }
}

export interface TestHead {
  readonly head: HeadState;
  readonly store: RecordingStore;
  readonly clock: TestClock;
  readonly records: { readonly log: string; readonly record: AuditRecord }[];
  readonly fatal: unknown[];
  /** Makes the next audit record fail. */
  failAudit: Error | undefined;
}

export async function testHead(store: RecordingStore = new RecordingStore(), clock = new TestClock()): Promise<TestHead> {
  const records: { log: string; record: AuditRecord }[] = [];
  const fatal: unknown[] = [];
  const made: { failAudit: Error | undefined } = { failAudit: undefined };
  const head = await HeadState.load({
    store: store as Store, clock, onFatal: (cause) => fatal.push(cause),
    appendAudit: async (log, record) => {
      const { failAudit } = made;
      made.failAudit = undefined;
      if (failAudit !== undefined) throw failAudit;
      await Promise.resolve();
      records.push({ log, record });
      store.events.push(`audit ${log || 'cluster'} ${record.type === 'lifecycle' ? record.event : record.action}`);
    },
  });
  store.events.length = 0;
  return Object.assign(made, { head, store, clock, records, fatal });
}

export const hex = (n: number, digits: number): string => n.toString(16).padStart(digits, '0');
export const jobId = (n: number): string => `job-${hex(n, 24)}`;

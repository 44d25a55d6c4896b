/**
 * Where the head keeps what must survive it: a small key-value store with revisions, in the shape of etcd's KV, Watch and Lease, so
 * that SQLite (embedded default), memory (tests) and etcd (several machines) stand behind one interface and one contract suite.
 * Must never: acknowledge a write that `kill -9` or a power cut could still lose (the memory store excepted).
 */
import { BulkheadError } from '../base/errors.ts';
import { quote } from '../base/ids.ts';

/** A policy file of `MAX_POLICY_BYTES`, escaped, must fit; etcd then needs `--max-request-bytes` of this size. */
export const MAX_VALUE_BYTES = 4 * 2 ** 20;
export const MAX_KEY_CHARS = 4_096;
/** etcd's default `--max-txn-ops`. */
export const MAX_TXN_OPERATIONS = 128;
/** Events kept for watchers that start in the past; an older start is refused as compacted. */
export const HISTORY_EVENTS = 1_024;
export const MIN_LEASE_TTL_MS = 10;
export const MAX_LEASE_TTL_MS = 24 * 3_600_000;

export interface StoredValue {
  readonly key: string;
  readonly value: Uint8Array;
  /** Revision of the write that made the key, and of the one that wrote it last. */
  readonly createRevision: number;
  readonly modRevision: number;
  /** 0: none. */
  readonly lease: number;
}

/** The key's `modRevision` must be this; 0: the key must not exist. */
export interface Compare {
  readonly key: string;
  readonly modRevision: number;
}

export type Operation =
  | { readonly type: 'put'; readonly key: string; readonly value: Uint8Array; readonly lease?: number }
  | { readonly type: 'delete'; readonly key: string };

/** The write of one key at one revision; `value` undefined means that the key was deleted. */
export interface StoreEvent {
  readonly key: string;
  readonly value: Uint8Array | undefined;
  readonly revision: number;
}

export interface TxnResult {
  /** False: a comparison failed and nothing was written. */
  readonly succeeded: boolean;
  /** The store's revision afterwards. */
  readonly revision: number;
}

export interface RangeResult {
  /** In the order of their keys. */
  readonly items: readonly StoredValue[];
  readonly revision: number;
}

export interface Watch {
  close(): void;
}

export interface Store {
  get(key: string): Promise<StoredValue | undefined>;
  /** All keys that start with `prefix`, as they were at one revision. */
  range(prefix: string): Promise<RangeResult>;
  put(key: string, value: Uint8Array, options?: { readonly lease?: number }): Promise<number>;
  /** Deleting what does not exist is no write: the revision stays. */
  delete(key: string): Promise<number>;
  /** All operations at one revision, or none. A key may be written once per transaction. Durable when it resolves. */
  txn(compares: readonly Compare[], operations: readonly Operation[]): Promise<TxnResult>;
  /**
   * Every event with a revision of at least `fromRevision`, in order, each once, the past ones first; the events of one
   * transaction come together. Throws INVALID_ARGUMENT when `fromRevision` is compacted away.
   */
  watch(prefix: string, fromRevision: number, listener: (events: readonly StoreEvent[]) => void): Promise<Watch>;
  /** A lease's keys are deleted when it is not kept alive for its time, counted anew when the store is opened. */
  grantLease(ttlMs: number): Promise<number>;
  /** Throws INVALID_ARGUMENT when the lease has ended: its holder must take its keys anew. */
  keepAlive(lease: number): Promise<void>;
  revokeLease(lease: number): Promise<void>;
  revision(): Promise<number>;
  close(): Promise<void>;
}

const KEY = /^[\x21-\x7e]+$/;

export function checkKey(key: string): void {
  if (key.length > MAX_KEY_CHARS || !KEY.test(key)) throw new BulkheadError('INVALID_ARGUMENT', `store key ${quote(key)} is not valid: 1 to ${MAX_KEY_CHARS} printable ASCII characters without spaces`);
}

export function checkPrefix(prefix: string): void {
  if (prefix !== '') checkKey(prefix);
}

export function checkLeaseTtl(ttlMs: number): void {
  if (!Number.isSafeInteger(ttlMs) || ttlMs < MIN_LEASE_TTL_MS || ttlMs > MAX_LEASE_TTL_MS) throw new BulkheadError('INVALID_ARGUMENT', `lease time ${ttlMs} ms is not valid: a whole number from ${MIN_LEASE_TTL_MS} to ${MAX_LEASE_TTL_MS}`);
}

export function checkTxn(compares: readonly Compare[], operations: readonly Operation[]): void {
  if (operations.length > MAX_TXN_OPERATIONS || compares.length > MAX_TXN_OPERATIONS) throw new BulkheadError('RESOURCE_EXHAUSTED', `a transaction of ${Math.max(operations.length, compares.length)} parts exceeds the limit of ${MAX_TXN_OPERATIONS}`);
  const keys = new Set<string>();
  for (const compare of compares) checkKey(compare.key);
  for (const operation of operations) {
    checkKey(operation.key);
    if (keys.has(operation.key)) throw new BulkheadError('INVALID_ARGUMENT', `a transaction writes ${quote(operation.key)} twice`);
    keys.add(operation.key);
    if (operation.type === 'put' && operation.value.length > MAX_VALUE_BYTES) throw new BulkheadError('RESOURCE_EXHAUSTED', `a value of ${operation.value.length} bytes exceeds the limit of ${MAX_VALUE_BYTES}`);
  }
}

export function compacted(fromRevision: number, oldest: number): BulkheadError {
  return new BulkheadError('INVALID_ARGUMENT', `revision ${fromRevision} is compacted away, the oldest kept is ${oldest}: read the range anew and watch from its revision`);
}

export function leaseEnded(lease: number): BulkheadError {
  return new BulkheadError('INVALID_ARGUMENT', `lease ${lease} has ended: take a new one and write its keys again`);
}

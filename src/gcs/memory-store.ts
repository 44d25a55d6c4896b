/** The store without a disk, for tests: same contract, nothing survives. Must never be composed into a shipped process. */
import { LeaseClock, Watchers } from './store-watchers.ts';
import {
  HISTORY_EVENTS, checkKey, checkLeaseTtl, checkPrefix, checkTxn, compacted, leaseEnded,
  type Compare, type Operation, type RangeResult, type Store, type StoredValue, type StoreEvent, type TxnResult, type Watch,
} from './store.ts';

export class MemoryStore implements Store {
  readonly #values = new Map<string, StoredValue>();
  readonly #history: StoreEvent[] = [];
  readonly #watchers = new Watchers();
  readonly #leases = new LeaseClock((lease) => this.#endLease(lease));
  #revision = 0;
  #nextLease = 1;
  /** Revisions up to this are no longer in the history. */
  #compactedTo = 0;

  async get(key: string): Promise<StoredValue | undefined> {
    checkKey(key);
    return this.#values.get(key);
  }

  async range(prefix: string): Promise<RangeResult> {
    checkPrefix(prefix);
    const items = [...this.#values.values()].filter((v) => v.key.startsWith(prefix)).sort((a, b) => (a.key < b.key ? -1 : 1));
    return { items, revision: this.#revision };
  }

  async put(key: string, value: Uint8Array, options: { readonly lease?: number } = {}): Promise<number> {
    return (await this.txn([], [{ type: 'put', key, value, ...options }])).revision;
  }

  async delete(key: string): Promise<number> {
    return (await this.txn([], [{ type: 'delete', key }])).revision;
  }

  async txn(compares: readonly Compare[], operations: readonly Operation[]): Promise<TxnResult> {
    checkTxn(compares, operations);
    for (const { key, modRevision } of compares) if ((this.#values.get(key)?.modRevision ?? 0) !== modRevision) return { succeeded: false, revision: this.#revision };
    for (const o of operations) if (o.type === 'put' && o.lease !== undefined && !this.#leases.has(o.lease)) throw leaseEnded(o.lease);
    this.#write(operations);
    return { succeeded: true, revision: this.#revision };
  }

  #write(operations: readonly Operation[]): void {
    const revision = this.#revision + 1;
    const events: StoreEvent[] = [];
    for (const operation of operations) {
      const before = this.#values.get(operation.key);
      if (operation.type === 'delete') {
        if (before === undefined) continue;
        this.#values.delete(operation.key);
        events.push({ key: operation.key, value: undefined, revision });
        continue;
      }
      const value = operation.value.slice();
      this.#values.set(operation.key, { key: operation.key, value, createRevision: before?.createRevision ?? revision, modRevision: revision, lease: operation.lease ?? 0 });
      events.push({ key: operation.key, value, revision });
    }
    if (events.length === 0) return;
    this.#revision = revision;
    this.#history.push(...events);
    const surplus = this.#history.splice(0, Math.max(0, this.#history.length - HISTORY_EVENTS));
    this.#compactedTo = surplus.at(-1)?.revision ?? this.#compactedTo;
    this.#watchers.notify(events);
  }

  async watch(prefix: string, fromRevision: number, listener: (events: readonly StoreEvent[]) => void): Promise<Watch> {
    checkPrefix(prefix);
    if (fromRevision <= this.#compactedTo) throw compacted(fromRevision, this.#compactedTo + 1);
    return this.#watchers.add(prefix, fromRevision, this.#history.filter((e) => e.revision >= fromRevision && e.key.startsWith(prefix)), listener);
  }

  async grantLease(ttlMs: number): Promise<number> {
    checkLeaseTtl(ttlMs);
    const lease = this.#nextLease++;
    this.#leases.start(lease, ttlMs);
    return lease;
  }

  async keepAlive(lease: number): Promise<void> {
    if (!this.#leases.keepAlive(lease)) throw leaseEnded(lease);
  }

  async revokeLease(lease: number): Promise<void> {
    this.#leases.forget(lease);
    this.#endLease(lease);
  }

  #endLease(lease: number): void {
    this.#write([...this.#values.values()].filter((v) => v.lease === lease).map(({ key }) => ({ type: 'delete', key })));
  }

  async revision(): Promise<number> {
    return this.#revision;
  }

  async close(): Promise<void> {
    this.#leases.stop();
    this.#watchers.clear();
  }
}

/** Reading a tenant's log on this node: the last records, a running view, counts. Must never: show a record that is not durable, or make a log by asking for it. */
import { hex } from '../base/ids.ts';
import type { AuditRecord } from '../base/audit-record.ts';
import { BulkheadError } from '../base/errors.ts';
import type { AuditStore } from './audit-store.ts';
import { openCheckpoint } from './checkpoint-signer.ts';
import { TILE_WIDTH } from './core/merkle.ts';
import { RecordDecoder, RESTART_INTERVAL } from './core/record-codec.ts';
import { splitBundle } from './core/tiles.ts';
import type { TenantLog } from './tenant-log.ts';

export interface RecordFilter {
  /** Inclusive, ms. */
  readonly fromMs?: number;
  /** Exclusive, ms. */
  readonly toMs?: number;
  /** Action of a decision or name of an event. */
  readonly action?: string;
  /** Only decisions with this outcome. */
  readonly allow?: boolean;
}

export interface TailOptions extends RecordFilter {
  /** First sequence number; without it the last `limit` matching records are shown. */
  readonly from?: number;
  /** With `from`: at most so many records in all. Without: so many before following. Default 100 without `from`, none with it. */
  readonly limit?: number;
  /** Goes on with records as they become durable, until `signal`. */
  readonly follow?: boolean;
  readonly signal?: AbortSignal;
}

export interface NumberedRecord {
  readonly seq: number;
  readonly record: AuditRecord;
}

const DEFAULT_LIMIT = 100;
/** Records that `tail` without `from` holds at once. */
const MAX_LIMIT = 100_000;

function matches(filter: RecordFilter, r: AuditRecord): boolean {
  if (filter.fromMs !== undefined && r.timeMs < filter.fromMs) return false;
  if (filter.toMs !== undefined && r.timeMs >= filter.toMs) return false;
  if (filter.action !== undefined && filter.action !== (r.type === 'decision' ? r.action : r.event)) return false;
  return filter.allow === undefined || (r.type === 'decision' && r.allow === filter.allow);
}

/** Decoded records [from, to) of a log. */
async function* records(log: TenantLog, from: number, to: number): AsyncGenerator<NumberedRecord, void, undefined> {
  const decoder = new RecordDecoder();
  const block = from - (from % RESTART_INTERVAL);
  let seq = block;
  for await (const bundle of log.bundles(block / TILE_WIDTH, to)) {
    const decoded: NumberedRecord[] = [];
    try {
      splitBundle(bundle, Math.min(TILE_WIDTH, to - seq), (start, end) => {
        const record = decoder.decode(bundle, start, end, seq);
        if (seq >= from) decoded.push({ seq, record });
        seq++;
      });
    } catch (cause) {
      throw new BulkheadError('UNAVAILABLE', `record ${seq} of the audit log ${log.origin} cannot be read: its files were damaged or changed`, { cause });
    }
    yield* decoded;
  }
}

/** Throws INVALID_ARGUMENT for numbers out of range, UNAVAILABLE when the log fails while it is followed. */
export async function* tail(store: AuditStore, tenant: string, options: TailOptions = {}): AsyncGenerator<NumberedRecord, void, undefined> {
  const { from, follow = false, signal } = options;
  const limit = options.limit ?? (from === undefined ? DEFAULT_LIMIT : Number.POSITIVE_INFINITY);
  if (from !== undefined && !(Number.isSafeInteger(from) && from >= 0)) throw new BulkheadError('INVALID_ARGUMENT', 'from is the number of a record: an integer from 0');
  if (options.limit !== undefined && !(Number.isSafeInteger(limit) && limit >= 0 && limit <= MAX_LIMIT)) throw new BulkheadError('INVALID_ARGUMENT', `limit is an integer from 0 to ${MAX_LIMIT}`);
  if (!follow && !store.has(tenant)) return;
  const log = store.forTenant(tenant);
  let next: number;
  if (from === undefined) {
    next = log.durable;
    yield* await lastMatching(log, options, limit, next);
  } else {
    let left = limit;
    next = from;
    const end = log.durable;
    if (left === 0) return;
    if (next < end) {
      for await (const r of records(log, next, end)) {
        if (signal?.aborted === true) return;
        if (!matches(options, r.record)) continue;
        yield r;
        if (--left === 0) return;
      }
      next = end;
    }
    if (follow) yield* following(log, next, left, options);
    return;
  }
  if (follow) yield* following(log, next, Number.POSITIVE_INFINITY, options);
}

async function lastMatching(log: TenantLog, filter: RecordFilter, limit: number, end: number): Promise<NumberedRecord[]> {
  if (limit === 0) return [];
  let found: NumberedRecord[] = [];
  // Blocks from the newest backwards, so that a long log is not read for its last lines.
  for (let to = end; to > 0 && found.length < limit; ) {
    const from = to - 1 - ((to - 1) % RESTART_INTERVAL);
    const block: NumberedRecord[] = [];
    for await (const r of records(log, from, to)) if (matches(filter, r.record)) block.push(r);
    found = [...block, ...found].slice(-limit);
    to = from;
  }
  return found;
}

async function* following(log: TenantLog, from: number, limit: number, options: TailOptions): AsyncGenerator<NumberedRecord, void, undefined> {
  const { signal } = options;
  let next = from;
  let left = limit;
  const aborted = new Promise<'aborted'>((resolve) => {
    if (signal?.aborted === true) resolve('aborted');
    signal?.addEventListener('abort', () => resolve('aborted'), { once: true });
  });
  for (;;) {
    if (signal?.aborted === true) return;
    const woken = await Promise.race([aborted, log.whenDurable(next).then(() => 'more' as const)]);
    if (woken === 'aborted') return;
    const end = log.durable;
    for await (const r of records(log, next, end)) {
      if (!matches(options, r.record)) continue;
      yield r;
      if (--left === 0) return;
    }
    next = end;
  }
}

export interface AuditStats {
  readonly tenant: string;
  readonly origin: string;
  /** Of the checkpoint signed for this answer. */
  readonly treeSize: number;
  /** Hex. */
  readonly rootHash: string;
  readonly records: number;
  /** On disk, index and state included. */
  readonly bytes: number;
  readonly bytesPerRecord: number;
  readonly allow: number;
  readonly deny: number;
  readonly actions: Readonly<Record<string, { readonly allow: number; readonly deny: number }>>;
  readonly events: Readonly<Record<string, number>>;
  /** Undefined while the log is empty. */
  readonly firstMs: number | undefined;
  readonly lastMs: number | undefined;
}

/** Counts of a tenant's log here; undefined when it has none. Constant time in the length of the log. */
export async function stats(store: AuditStore, tenant: string): Promise<AuditStats | undefined> {
  if (!store.has(tenant)) return undefined;
  const log = store.forTenant(tenant);
  const checkpoint = openCheckpoint(await log.checkpoint(false), log.trustedKeys);
  const tally = log.tally();
  const records = log.durable;
  const bytes = log.diskBytes();
  // Names of actions come from records: a null prototype keeps `__proto__` a name.
  const named = <T>(pairs: readonly (readonly [string, T])[]): Record<string, T> => {
    const out = Object.create(null) as Record<string, T>;
    for (const [name, value] of pairs) out[name] = value;
    return out;
  };
  return {
    tenant, origin: log.origin, treeSize: checkpoint.treeSize, rootHash: hex(checkpoint.rootHash), records, bytes, bytesPerRecord: records === 0 ? 0 : bytes / records,
    allow: tally.actions.reduce((n, [, a]) => n + a, 0), deny: tally.actions.reduce((n, [, , d]) => n + d, 0),
    actions: named(tally.actions.map(([name, allow, deny]) => [name, { allow, deny }] as const)), events: named(tally.events),
    firstMs: tally.firstMs < 0 ? undefined : tally.firstMs, lastMs: tally.lastMs < 0 ? undefined : tally.lastMs,
  };
}

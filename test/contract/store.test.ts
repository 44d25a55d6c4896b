/** One suite for every implementation of the head's store. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { MemoryStore } from '../../src/gcs/memory-store.ts';
import { SqliteStore } from '../../src/gcs/sqlite-store.ts';
import { HISTORY_EVENTS, MAX_TXN_OPERATIONS, MAX_VALUE_BYTES, type Store, type StoreEvent } from '../../src/gcs/store.ts';

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const text = (value: Uint8Array | undefined): string | undefined => value && new TextDecoder().decode(value);
const shown = (events: readonly StoreEvent[]) => events.map((e) => `${e.revision} ${e.key}=${text(e.value) ?? '(deleted)'}`);

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'bulkhead-store-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

describe.each<[string, () => Store]>([
  ['memory', () => new MemoryStore()],
  ['sqlite', () => SqliteStore.open(join(dir, 'store.sqlite'))],
])('%s store', (_name, open) => {
  let store: Store;
  beforeEach(() => {
    store = open();
  });
  afterEach(() => store.close());

  it('gives back what was put, with its revisions', async () => {
    expect(await store.get('a')).toBeUndefined();
    expect(await store.put('a', bytes('1'))).toBe(1);
    expect(await store.put('a', bytes('2'))).toBe(2);
    const { value, ...facts } = (await store.get('a')) ?? expect.unreachable();
    expect([text(value), facts]).toEqual(['2', { key: 'a', createRevision: 1, modRevision: 2, lease: 0 }]);
    expect(await store.revision()).toBe(2);
  });

  it('keeps values apart from the arrays they came in', async () => {
    const value = bytes('before');
    await store.put('a', value);
    value.fill(0);
    expect(text((await store.get('a'))?.value)).toBe('before');
  });

  it('deletes, and makes a deleted key anew', async () => {
    await store.put('a', bytes('1'));
    expect(await store.delete('a')).toBe(2);
    expect(await store.get('a')).toBeUndefined();
    expect(await store.delete('a')).toBe(2);
    await store.put('a', bytes('2'));
    expect((await store.get('a'))?.createRevision).toBe(3);
  });

  it('ranges over a prefix in the order of keys, and over nothing else', async () => {
    for (const key of ['a/2', 'a/1', 'a', 'a0', 'b/1', 'a/~', 'a/!']) await store.put(key, bytes(key));
    expect((await store.range('a/')).items.map((i) => i.key)).toEqual(['a/!', 'a/1', 'a/2', 'a/~']);
    expect((await store.range('')).items).toHaveLength(7);
    expect(await store.range('c/')).toEqual({ items: [], revision: 7 });
  });

  it('treats wildcards of SQL as letters', async () => {
    await store.put('a%', bytes('1'));
    await store.put('ab', bytes('2'));
    expect((await store.range('a%')).items.map((i) => i.key)).toEqual(['a%']);
    expect((await store.range("a'")).items).toEqual([]);
  });

  it('writes a transaction at one revision, or nothing of it', async () => {
    await store.put('a', bytes('1'));
    const good = await store.txn([{ key: 'a', modRevision: 1 }, { key: 'new', modRevision: 0 }], [{ type: 'put', key: 'new', value: bytes('n') }, { type: 'delete', key: 'a' }]);
    expect(good).toEqual({ succeeded: true, revision: 2 });
    expect([await store.get('a'), (await store.get('new'))?.modRevision]).toEqual([undefined, 2]);
    for (const compare of [{ key: 'new', modRevision: 1 }, { key: 'new', modRevision: 0 }, { key: 'a', modRevision: 1 }]) {
      expect(await store.txn([{ key: 'new', modRevision: 2 }, compare], [{ type: 'put', key: 'x', value: bytes('x') }])).toEqual({ succeeded: false, revision: 2 });
    }
    expect(await store.get('x')).toBeUndefined();
  });

  it('lets one of many that compare the same revision win', async () => {
    await store.put('lock', bytes('free'));
    const tries = await Promise.all(Array.from({ length: 20 }, (_, i) => store.txn([{ key: 'lock', modRevision: 1 }], [{ type: 'put', key: 'lock', value: bytes(String(i)) }])));
    expect(tries.filter((t) => t.succeeded)).toHaveLength(1);
  });

  it.each([
    ['a key with a space', (s: Store) => s.put('a b', bytes('1')), 'INVALID_ARGUMENT'],
    ['an empty key', (s: Store) => s.put('', bytes('1')), 'INVALID_ARGUMENT'],
    ['a key with a control character', (s: Store) => s.get('a\u0000'), 'INVALID_ARGUMENT'],
    ['a key beyond ASCII', (s: Store) => s.put('ä', bytes('1')), 'INVALID_ARGUMENT'],
    ['a prefix that is no key', (s: Store) => s.range('a\u007f'), 'INVALID_ARGUMENT'],
    ['the same key twice', (s: Store) => s.txn([], [{ type: 'put', key: 'a', value: bytes('1') }, { type: 'delete', key: 'a' }]), 'INVALID_ARGUMENT'],
    ['a value that is too large', (s: Store) => s.put('a', new Uint8Array(MAX_VALUE_BYTES + 1)), 'RESOURCE_EXHAUSTED'],
    ['too many operations', (s: Store) => s.txn([], Array.from({ length: MAX_TXN_OPERATIONS + 1 }, (_, i) => ({ type: 'delete', key: String(i) }) as const)), 'RESOURCE_EXHAUSTED'],
    ['a lease that never was', (s: Store) => s.put('a', bytes('1'), { lease: 99 }), 'INVALID_ARGUMENT'],
    ['a lease of no time', (s: Store) => s.grantLease(0), 'INVALID_ARGUMENT'],
  ])('refuses %s, and changes nothing', async (_what, act, code) => {
    await store.put('before', bytes('1'));
    await expect(act(store)).rejects.toMatchObject({ code });
    expect(await store.revision()).toBe(1);
  });

  it('replays the past to a watcher, then goes on, each event once and transactions whole', async () => {
    await store.put('w/1', bytes('a'));
    await store.put('other', bytes('o'));
    const seen: string[][] = [];
    const watch = await store.watch('w/', 1, (events) => seen.push(shown(events)));
    await store.txn([], [{ type: 'put', key: 'w/2', value: bytes('b') }, { type: 'delete', key: 'w/1' }, { type: 'put', key: 'other', value: bytes('p') }]);
    await store.delete('w/none');
    watch.close();
    await store.put('w/3', bytes('c'));
    expect(seen).toEqual([['1 w/1=a'], ['3 w/2=b', '3 w/1=(deleted)']]);
  });

  it('starts a watcher in the future silently until then', async () => {
    const seen: string[][] = [];
    await store.watch('w/', 3, (events) => seen.push(shown(events)));
    for (const v of ['a', 'b', 'c']) await store.put('w/1', bytes(v));
    expect(seen).toEqual([['3 w/1=c']]);
  });

  it('refuses a watch from before its history, which is bounded', async () => {
    for (let i = 0; i < HISTORY_EVENTS / 64 + 2; i++) await store.txn([], Array.from({ length: 64 }, (_, k) => ({ type: 'put', key: `k/${k}`, value: bytes(String(i)) }) as const));
    await expect(store.watch('k/', 1, () => undefined)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    const revision = await store.revision();
    const events: StoreEvent[] = [];
    await store.watch('k/', revision - 3, (e) => events.push(...e));
    expect(events).toHaveLength(4 * 64);
  });

  it('deletes the keys of a lease that is not kept alive, and tells watchers', async () => {
    const lease = await store.grantLease(1_000);
    await store.put('leased/1', bytes('1'), { lease });
    await store.put('leased/2', bytes('2'), { lease });
    await store.put('kept', bytes('3'));
    const gone = new Promise<string[]>((resolve) => void store.watch('leased/', 4, (events) => resolve(shown(events).sort())));
    expect(await gone).toEqual(['4 leased/1=(deleted)', '4 leased/2=(deleted)']);
    await expect(store.keepAlive(lease)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect((await store.range('')).items.map((i) => i.key)).toEqual(['kept']);
  });

  it('keeps a lease that is kept alive, and ends one that is revoked', async () => {
    const lease = await store.grantLease(1_500);
    await store.put('leased', bytes('1'), { lease });
    for (let i = 0; i < 4; i++) {
      await new Promise((resolve) => setTimeout(resolve, 400));
      await store.keepAlive(lease);
    }
    expect((await store.get('leased'))?.lease).toBe(lease);
    await store.revokeLease(lease);
    expect(await store.get('leased')).toBeUndefined();
  });

  it('frees a key from its lease when it is written without one', async () => {
    const lease = await store.grantLease(60_000);
    await store.put('a', bytes('1'), { lease });
    await store.put('a', bytes('2'));
    await store.revokeLease(lease);
    expect(text((await store.get('a'))?.value)).toBe('2');
  });
});

describe('sqlite store, across processes', () => {
  const path = (): string => join(dir, 'store.sqlite');

  it('has everything after it was closed and opened, history and leases too', async () => {
    const first = SqliteStore.open(path());
    const lease = await first.grantLease(700);
    await first.put('leased', bytes('1'), { lease });
    await first.put('a', bytes('2'));
    await first.close();
    const second = SqliteStore.open(path());
    try {
      expect(await second.revision()).toBe(2);
      const events: string[] = [];
      const gone = new Promise<void>((resolve) => void second.watch('', 1, (e) => {
        events.push(...shown(e));
        if (events.length === 3) resolve();
      }));
      await gone;
      expect(events).toEqual(['1 leased=1', '2 a=2', '3 leased=(deleted)']);
      expect(await second.grantLease(1_000)).toBeGreaterThan(lease);
    } finally {
      await second.close();
    }
  });

  it('is closed to other users and to a second process', async () => {
    const store = SqliteStore.open(path());
    try {
      await store.put('a', bytes('1'));
      expect(statSync(path()).mode & 0o777).toBe(0o600);
      expect(() => SqliteStore.open(path())).toThrow(expect.objectContaining({ code: 'UNAVAILABLE', safeMessage: expect.stringContaining('another process') }));
      expect(text((await store.get('a'))?.value)).toBe('1');
    } finally {
      await store.close();
    }
  });

  it('refuses a file that is not one', () => {
    writeFileSync(path(), 'this is not a database, and it is long enough to be looked at as one '.repeat(20));
    expect(() => SqliteStore.open(path())).toThrow(expect.objectContaining({ code: 'UNAVAILABLE' }));
  });

  it('loses no acknowledged write to kill -9, and never half a transaction', async () => {
    for (let round = 0; round < 3; round++) {
      const child = spawn(fileURLToPath(new URL('../../node_modules/.bin/node', import.meta.url)), [fileURLToPath(new URL('./store-writer.ts', import.meta.url)), path()], { stdio: ['ignore', 'pipe', 'inherit'] });
      const exited = once(child, 'exit');
      let acknowledged = -1;
      for await (const line of createInterface({ input: child.stdout })) {
        acknowledged = Number(line);
        if (acknowledged === 40 * (round + 1)) child.kill('SIGKILL');
      }
      await exited;
      const store = SqliteStore.open(path());
      try {
        const numbers = async (prefix: string): Promise<Set<string>> => new Set((await store.range(prefix)).items.map((i) => i.key.slice(2)));
        const [a, b] = [await numbers('a/'), await numbers('b/')];
        expect(a).toEqual(b);
        for (let i = 0; i <= acknowledged; i++) expect(a.has(String(i)), `write ${i} of ${acknowledged} acknowledged ones`).toBe(true);
        expect(acknowledged).toBeGreaterThanOrEqual(40 * (round + 1));
      } finally {
        await store.close();
      }
    }
  });
});

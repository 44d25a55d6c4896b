/** The contract of AuditLog and AuditLogs, group commit, failure of the disk, reopening, checkpoints, tail and stats. */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { stats, tail, type NumberedRecord } from '../../src/audit/audit-query.ts';
import { loadOrCreateCosigner, loadOrCreateSigner, openCheckpoint } from '../../src/audit/checkpoint-signer.ts';
import type { AuditStore } from '../../src/audit/audit-store.ts';
import { NODE_DISK, type AuditDisk } from '../../src/audit/tenant-log.ts';
import { BulkheadError } from '../../src/base/errors.ts';
import { clock, cosigner, decision, endOfEntries, fill, lifecycle, newDirectory, newSigner, openStore, ORIGIN, signer, START_MS } from './audit-fixture.ts';

async function all(records: AsyncIterable<NumberedRecord>): Promise<NumberedRecord[]> {
  const out: NumberedRecord[] = [];
  for await (const r of records) out.push(r);
  return out;
}

function codeOf(body: () => unknown): string {
  try {
    body();
  } catch (error) {
    if (error instanceof BulkheadError) return error.code;
    throw error;
  }
  return 'nothing thrown';
}

/** A disk whose writes wait until they are let go, or fail. */
class HeldDisk implements AuditDisk {
  writes = 0;
  syncs = 0;
  held: (() => void)[] = [];
  hold = false;
  failure: Error | undefined;
  syncFailure: Error | undefined;

  readonly write: AuditDisk['write'] = (fd, bytes, offset, length, position, done) => {
    this.writes++;
    const go = (): void => (this.failure === undefined ? NODE_DISK.write(fd, bytes, offset, length, position, done) : done(this.failure, 0));
    if (this.hold) this.held.push(go);
    else go();
  };

  readonly fdatasync: AuditDisk['fdatasync'] = (fd, done) => {
    this.syncs++;
    if (this.syncFailure === undefined) NODE_DISK.fdatasync(fd, done);
    else setImmediate(() => done(this.syncFailure as Error));
  };

  release(): void {
    for (const go of this.held.splice(0)) go();
  }
}

/** As if nothing were kept back for the cluster's log. */
const PLENTY = { freeBytes: 2 ** 40, totalBytes: 2 ** 40 };
const turn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 5));

describe('append', () => {
  it('numbers records from 0 per tenant and tells when they are on disk', async () => {
    const store = await openStore();
    const acme = store.forTenant('acme');
    const heard: number[] = [];
    acme.onDurable = (durable) => heard.push(durable);
    expect([acme.append(decision(0)), acme.append(decision(1)), store.forTenant('globex').append(decision(0))]).toEqual([0, 1, 0]);
    expect(acme.durable).toBe(0);
    await acme.whenDurable(1);
    expect(acme.durable).toBe(2);
    expect(heard).toEqual([2]);
    await store.appendDurably('acme', lifecycle('worker.started'));
    expect(acme.durable).toBe(3);
    expect(store.forTenant('acme')).toBe(acme);
    expect(store.tenants()).toEqual(['', 'acme', 'globex']);
  });

  it('commits a burst of one turn as one batch, and what comes meanwhile as the next', async () => {
    const disk = new HeldDisk();
    const store = await openStore({ disk });
    const log = store.forTenant('acme');
    disk.hold = true;
    for (let i = 0; i < 1000; i++) log.append(decision(i));
    await turn();
    expect(disk.writes).toBe(1);
    for (let i = 1000; i < 1500; i++) log.append(decision(i));
    await turn();
    expect([disk.writes, log.durable]).toEqual([1, 0]);
    disk.hold = false;
    disk.release();
    await log.whenDurable(1499);
    expect([disk.writes, disk.syncs, log.durable]).toEqual([2, 2, 1500]);
    expect((await all(tail(store, 'acme', { from: 0 }))).map((r) => r.record)).toEqual(Array.from({ length: 1500 }, (_, i) => decision(i)));
  });

  it('refuses with RESOURCE_EXHAUSTED while the disk hangs, loses nothing, and goes on afterwards', async () => {
    const disk = new HeldDisk();
    const store = await openStore({ disk });
    const log = store.forTenant('acme');
    disk.hold = true;
    let accepted = 0;
    let refusal = '';
    for (let i = 0; i < 1000 && refusal === ''; i++) {
      refusal = codeOf(() => log.append(decision(i, { detail: `${i}`.padStart(60_000, 'x') })));
      if (refusal === 'nothing thrown') refusal = '';
      if (refusal === '') accepted++;
      if (i === 0) await turn();
    }
    expect(refusal).toBe('RESOURCE_EXHAUSTED');
    disk.hold = false;
    disk.release();
    await log.whenDurable(accepted - 1);
    expect(log.append(decision(accepted))).toBe(accepted);
    await log.whenDurable(accepted);
    const records = await all(tail(store, 'acme', { from: 0 }));
    expect(records.length).toBe(accepted + 1);
    expect(records[accepted - 1]?.record.detail.length).toBe(60_000);
    expect(records[accepted]?.record).toEqual(decision(accepted));
  });

  it('refuses a record that is too long or has impossible numbers, and leaves no gap', async () => {
    const store = await openStore();
    const log = store.forTenant('acme');
    expect(log.append(decision(0))).toBe(0);
    expect(codeOf(() => log.append(decision(1, { detail: 'x'.repeat(70_000) })))).toBe('INVALID_ARGUMENT');
    expect(codeOf(() => log.append(decision(1, { timeMs: Number.NaN })))).toBe('INVALID_ARGUMENT');
    expect(log.append(decision(1))).toBe(1);
    await log.whenDurable(1);
    expect((await all(tail(store, 'acme'))).map((r) => r.record)).toEqual([decision(0), decision(1)]);
  });

  it('opens logs by tenant names only', async () => {
    const store = await openStore();
    for (const name of ['../evil', 'a/b', '.', '_cluster', 'A', 'x'.repeat(64), 'a\0b', 'lock ']) expect(codeOf(() => store.forTenant(name))).toBe('INVALID_ARGUMENT');
    expect(store.tenants()).toEqual(['']);
  });
});

describe('a failing disk', () => {
  it('writes a batch of a few records in its own turn when nobody else waits, and larger ones not', async () => {
    const own: number[] = [];
    const store = await openStore({ disk: { ...NODE_DISK, writeNow: (fd, bytes, offset, length, position) => {
      own.push(length);
      // A disk may take less than it is given.
      return NODE_DISK.writeNow?.(fd, bytes, offset, Math.ceil(length / 2), position) ?? 0;
    } }, alone: () => true });
    await fill(store, 'acme', 1);
    expect(own).toEqual([]);
    await fill(store, 'acme', 2, 1);
    expect(own.length).toBeGreaterThan(1);
    const before = own.length;
    await fill(store, 'acme', 500, 3);
    expect(own.length).toBe(before);
    await store.close();
    const again = await openStore({ dir: store.options.dir });
    expect(again.forTenant('acme').durable).toBe(503);
  });

  it('closes the log for good when a write in its own turn fails', async () => {
    let failing = false;
    const store = await openStore({ disk: { ...NODE_DISK, writeNow: (...call) => {
      if (failing) throw Object.assign(new Error('no space'), { code: 'ENOSPC' });
      return NODE_DISK.writeNow?.(...call) ?? 0;
    } }, alone: () => true });
    await fill(store, 'acme', 1);
    await fill(store, 'acme', 1, 1);
    failing = true;
    const log = store.forTenant('acme');
    await expect(log.whenDurable(log.append(decision(2)))).rejects.toThrow(/disk is full/);
    expect(log.durable).toBe(2);
    expect(() => log.append(decision(3))).toThrow(/disk is full/);
  });

  it.each(['write', 'fdatasync'] as const)('closes the log for good when %s fails, says so once, and reopening finds what was acknowledged', async (what) => {
    const disk = new HeldDisk();
    const dir = join(newDirectory(), 'audit');
    const store = await openStore({ disk, dir });
    const log = store.forTenant('acme');
    await fill(store, 'acme', 10);
    const heard: [number, string | undefined][] = [];
    log.onDurable = (durable, failure) => heard.push([durable, (failure as BulkheadError | undefined)?.code]);
    const full = Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' });
    if (what === 'write') disk.failure = full;
    else disk.syncFailure = full;
    log.append(decision(10));
    await expect(log.whenDurable(10)).rejects.toMatchObject({ code: 'UNAVAILABLE', safeMessage: expect.stringContaining('disk is full') });
    expect(heard).toEqual([[10, 'UNAVAILABLE']]);
    expect(codeOf(() => log.append(decision(11)))).toBe('UNAVAILABLE');
    await expect(store.appendDurably('acme', decision(11))).rejects.toMatchObject({ code: 'UNAVAILABLE' });
    // Another tenant's log is another file: it is not touched by this failure.
    disk.failure = disk.syncFailure = undefined;
    await fill(store, 'globex', 1);
    expect(codeOf(() => log.append(decision(11)))).toBe('UNAVAILABLE');
    await store.close().catch(() => undefined);
    const again = await openStore({ dir });
    const records = await all(tail(again, 'acme', { from: 0 }));
    expect(records.slice(0, 10).map((r) => r.record)).toEqual(Array.from({ length: 10 }, (_, i) => decision(i)));
    expect(again.forTenant('acme').append(decision(records.length))).toBe(records.length);
  });

  it('short writes are continued', async () => {
    const disk = new HeldDisk();
    const store = await openStore({ disk: { write: (fd, bytes, offset, length, position, done) => NODE_DISK.write(fd, bytes, offset, Math.ceil(length / 3), position, done), fdatasync: disk.fdatasync } });
    await fill(store, 'acme', 500);
    expect((await all(tail(store, 'acme', { from: 0 }))).map((r) => r.record)).toEqual(Array.from({ length: 500 }, (_, i) => decision(i)));
    await store.close();
    expect((await openStore({ dir: store.options.dir })).forTenant('acme').durable).toBe(500);
  });

  it('a checkpoint that cannot be written closes the log too', async () => {
    const problems: string[] = [];
    const store = await openStore({ checkpointIntervalMs: 5, onProblem: (tenant) => problems.push(tenant) });
    const log = store.forTenant('acme');
    const heard: (string | undefined)[] = [];
    log.onDurable = (_, failure) => heard.push((failure as BulkheadError | undefined)?.code);
    fs.mkdirSync(join(store.options.dir, 'acme', '.state.new'));
    log.append(decision(0));
    while (problems.length === 0) await turn();
    expect(problems).toEqual(['acme']);
    expect(heard).toEqual([undefined, 'UNAVAILABLE']);
    expect(codeOf(() => log.append(decision(1)))).toBe('UNAVAILABLE');
    await fill(store, 'globex', 1);
    await turn();
    expect(problems).toEqual(['acme']);
  });

  it('a really full file system ends the same way', async (context) => {
    const mount = join(newDirectory(), 'small');
    fs.mkdirSync(mount);
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', mount], { stdio: 'pipe' });
    } catch {
      await context.annotate('no right to mount a tmpfs here: the failing disk above stands for it');
      return;
    }
    try {
      const dir = join(mount, 'audit');
      const store = await openStore({ dir, diskSpace: () => PLENTY });
      const log = store.forTenant('acme');
      let failure: Error | undefined;
      log.onDurable = (_, error) => {
        failure = error;
      };
      let appended = 0;
      for (; failure === undefined && appended < 100_000; appended++) {
        log.append(decision(appended, { detail: `${appended}`.padStart(400, 'x') }));
        if (appended % 20 === 0) await turn();
      }
      expect(failure).toMatchObject({ code: 'UNAVAILABLE', cause: { code: 'ENOSPC' } });
      expect(codeOf(() => log.append(decision(0)))).toBe('UNAVAILABLE');
      const durable = log.durable;
      expect(durable).toBeGreaterThan(0);
      await store.close().catch(() => undefined);
      execFileSync('mount', ['-o', 'remount,size=2m', mount]);
      const again = await openStore({ dir, diskSpace: () => PLENTY });
      const records = await all(tail(again, 'acme', { from: 0 }));
      expect(records.length).toBeGreaterThanOrEqual(durable);
      for (const [i, r] of records.entries()) expect(r.record.detail).toBe(`${i}`.padStart(400, 'x'));
      await fill(again, 'acme', 1, records.length);
      await again.close();
    } finally {
      execFileSync('umount', ['-l', mount]);
    }
  });
});

describe('reopening', () => {
  it('goes on with number, tree and counts; directories and files are private', async () => {
    const dir = join(newDirectory(), 'audit');
    let store = await openStore({ dir });
    await fill(store, 'acme', 5000);
    await store.close();
    store = await openStore({ dir });
    expect(store.forTenant('acme').durable).toBe(5000);
    await fill(store, 'acme', 300, 5000);
    await store.checkpoint('acme');
    const before = await stats(store, 'acme');
    await store.close();
    expect((fs.statSync(dir).mode & 0o777).toString(8)).toBe('700');
    for (const file of ['entries', 'index', 'state']) expect((fs.statSync(join(dir, 'acme', file)).mode & 0o777).toString(8)).toBe('600');
    store = await openStore({ dir });
    expect(await stats(store, 'acme')).toEqual(before);
    expect(before).toMatchObject({ treeSize: 5300, records: 5300, allow: 4240, deny: 1060, firstMs: START_MS, lastMs: START_MS + 5299 });
    expect(before?.actions['task.submit']).toEqual({ allow: 2120, deny: 530 });
    expect(before?.bytesPerRecord).toBeLessThan(20);
    expect((await all(tail(store, 'acme', { from: 0 }))).map((r) => r.record)).toEqual(Array.from({ length: 5300 }, (_, i) => decision(i)));
    await store.close();
    // The index can be made again from the entries, which then are checked against the signed root.
    fs.rmSync(join(dir, 'acme', 'index'));
    store = await openStore({ dir });
    expect({ ...(await stats(store, 'acme')), bytes: 0, bytesPerRecord: 0 }).toEqual({ ...before, bytes: 0, bytesPerRecord: 0 });
    expect((await all(tail(store, 'acme', { from: 4990, limit: 20 }))).map((r) => r.record)).toEqual(Array.from({ length: 20 }, (_, i) => decision(4990 + i)));
  });

  it('of what a crash left: the room ahead of the records is no record, a torn batch in it is cut off, and damage before whole batches is refused', async () => {
    const dir = join(newDirectory(), 'audit');
    const store = await openStore({ dir });
    await fill(store, 'acme', 300);
    await store.checkpoint('acme');
    const signed = endOfEntries(store, dir, 'acme');
    await fill(store, 'acme', 10, 300);
    const end = endOfEntries(store, dir, 'acme');
    const length = end - signed;
    const entries = join(dir, 'acme', 'entries');
    expect(fs.statSync(entries).size).toBeGreaterThan(end);
    const crashed = async (change: (bytes: Buffer) => void): Promise<AuditStore> => {
      const copy = join(newDirectory(), 'audit');
      fs.cpSync(dir, copy, { recursive: true, filter: (path) => !path.endsWith('lock') });
      const bytes = fs.readFileSync(join(copy, 'acme', 'entries'));
      change(bytes);
      fs.writeFileSync(join(copy, 'acme', 'entries'), bytes);
      return openStore({ dir: copy });
    };
    const whole = await crashed(() => undefined);
    expect(whole.forTenant('acme').durable).toBe(310);
    await fill(whole, 'acme', 5, 310);
    expect(whole.forTenant('acme').durable).toBe(315);
    const torn = await crashed((bytes) => bytes.fill(7, end, end + 5_000));
    expect(torn.forTenant('acme').durable).toBe(310);
    const lost = await crashed((bytes) => bytes.fill(0, end - length, end));
    expect(lost.forTenant('acme').durable).toBe(300);
    for (const hurt of [(bytes: Buffer) => bytes.fill(0, end - length - 100, end), (bytes: Buffer) => bytes.fill(9, end - length - 100, end - length)]) {
      await expect(crashed(hurt).then((opened) => opened.forTenant('acme'))).rejects.toThrow(/acme cannot be opened/);
    }
    // A whole batch behind a damaged one: the octets of the last batch again, further on.
    await expect(crashed((bytes) => {
      bytes.copy(bytes, end + 20_000, end - length, end);
      bytes.fill(0, end - length, end);
    }).then((opened) => opened.forTenant('acme'))).rejects.toThrow(/whole ones follow/);
    await store.close();
    expect(fs.statSync(entries).size).toBe(end);
  });

  it('one process at a time; a lock of a dead one is taken over', async () => {
    const dir = join(newDirectory(), 'audit');
    const store = await openStore({ dir });
    await expect(openStore({ dir })).rejects.toMatchObject({ code: 'UNAVAILABLE', safeMessage: expect.stringContaining('in use by process') });
    await store.close();
    fs.writeFileSync(join(dir, 'lock'), '4194999 12345');
    await (await openStore({ dir })).close();
    fs.writeFileSync(join(dir, 'lock'), '');
    await (await openStore({ dir })).close();
    expect(fs.existsSync(join(dir, 'lock'))).toBe(false);
  });

  it('after a new signer, what the former one signed opens only when its key is named', async () => {
    const dir = join(newDirectory(), 'audit');
    const store = await openStore({ dir });
    await fill(store, 'acme', 3);
    await store.close();
    const next = newSigner();
    await expect(openStore({ dir, signer: next })).rejects.toMatchObject({ code: 'UNAVAILABLE', safeMessage: expect.stringContaining('checkpoint is not valid') });
    const reopened = await openStore({ dir, signer: next, formerKeys: [signer.publicKeyLine] });
    await fill(reopened, 'acme', 1, 3);
    expect(openCheckpoint(await reopened.checkpoint('acme'), [next.publicKeyLine]).treeSize).toBe(4);
  });

  it('close refuses what comes while it commits, and lets readers end', async () => {
    const disk = new HeldDisk();
    const store = await openStore({ disk });
    const log = store.forTenant('acme');
    await fill(store, 'acme', 3000);
    const reader = tail(store, 'acme', { from: 0 });
    await reader.next();
    disk.hold = true;
    log.append(decision(3000));
    await turn();
    const closing = store.close();
    expect(codeOf(() => log.append(decision(3001)))).toBe('UNAVAILABLE');
    await turn();
    disk.hold = false;
    disk.release();
    await closing;
    expect(log.durable).toBe(3001);
    await expect(all(log.bundles(0, 3000) as never)).rejects.toMatchObject({ code: 'UNAVAILABLE' });
    await expect(log.checkpoint()).rejects.toMatchObject({ code: 'UNAVAILABLE' });
    const again = await openStore({ dir: store.options.dir });
    expect(await all(tail(again, 'acme', { from: 2999 }))).toHaveLength(2);
  });

  it('append and waiting after close are refused', async () => {
    const store = await openStore();
    const log = store.forTenant('acme');
    log.append(decision(0));
    await store.close();
    expect(log.durable).toBe(1);
    expect(codeOf(() => log.append(decision(1)))).toBe('UNAVAILABLE');
    await expect(log.whenDurable(1)).rejects.toMatchObject({ code: 'UNAVAILABLE' });
    expect(codeOf(() => store.forTenant('globex'))).toBe('UNAVAILABLE');
  });
});

describe('checkpoints', () => {
  it('are signed on demand by both keys and cover what is durable', async () => {
    const store = await openStore();
    await fill(store, 'acme', 700);
    const note = await store.checkpoint('acme');
    expect(openCheckpoint(note, [signer.publicKeyLine, cosigner.publicKeyLine])).toMatchObject({ origin: `${ORIGIN}/tenant/acme`, treeSize: 700 });
    expect(note.split('\n').filter((l) => l.startsWith('— '))).toHaveLength(2);
    expect(await store.checkpoint('acme')).toBe(note);
    expect(openCheckpoint(await store.checkpoint(''), [signer.publicKeyLine]).origin).toBe(`${ORIGIN}/cluster`);
    for (const bad of [note.replace('\n700\n', '\n701\n'), note.replace('acme', 'acmf')]) expect(() => openCheckpoint(bad, [signer.publicKeyLine])).toThrow(/signature/);
    expect(() => openCheckpoint(note, [newSigner().publicKeyLine])).toThrow(/not signed by a known key/);
    expect(() => openCheckpoint(note, [cosigner.publicKeyLine])).toThrow(/not signed by a known key/);
    const cosignature = note.trimEnd().split('\n').at(-1) as string;
    const broken = note.replace(cosignature, `${cosignature.slice(0, 400)}${cosignature[400] === 'A' ? 'B' : 'A'}${cosignature.slice(401)}`);
    expect(() => openCheckpoint(broken, [signer.publicKeyLine, cosigner.publicKeyLine])).toThrow(/signature/);
    expect(openCheckpoint(broken, [signer.publicKeyLine]).treeSize).toBe(700);
  });

  it('are signed by themselves when the log grew, and taken while batches are in flight', async () => {
    const store = await openStore({ checkpointIntervalMs: 10 });
    const log = store.forTenant('acme');
    await fill(store, 'acme', 10);
    while (log.grew) await turn();
    const state = JSON.parse(fs.readFileSync(join(store.options.dir, 'acme', 'state'), 'utf8')) as { checkpoint: string };
    expect(openCheckpoint(state.checkpoint, [signer.publicKeyLine]).treeSize).toBe(10);
    const notes: Promise<string>[] = [];
    for (let i = 10; i < 3000; i++) {
      log.append(decision(i));
      if (i % 100 === 0) notes.push(store.checkpoint('acme'));
      if (i % 50 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    const sizes = (await Promise.all(notes)).map((n) => openCheckpoint(n, [signer.publicKeyLine]).treeSize);
    expect(sizes).toEqual(sizes.toSorted((a, b) => a - b));
  });

  it('keys are made once, kept private, and refused when others can read them', () => {
    const dir = join(newDirectory(), 'keys');
    const first = loadOrCreateSigner(dir, ORIGIN);
    const second = loadOrCreateCosigner(dir, ORIGIN);
    expect(loadOrCreateSigner(dir, ORIGIN).publicKeyLine).toBe(first.publicKeyLine);
    expect(loadOrCreateCosigner(dir, ORIGIN).publicKeyLine).toBe(second.publicKeyLine);
    expect(fs.readFileSync(join(dir, 'audit-ed25519.vkey'), 'utf8')).toBe(`${first.publicKeyLine}\n`);
    for (const file of fs.readdirSync(dir)) expect(fs.statSync(join(dir, file)).mode & 0o077).toBe(0);
    fs.chmodSync(join(dir, 'audit-ed25519.pem'), 0o644);
    expect(() => loadOrCreateSigner(dir, ORIGIN)).toThrow(/readable by others/);
    fs.chmodSync(join(dir, 'audit-ed25519.pem'), 0o600);
    fs.writeFileSync(join(dir, 'audit-ed25519.pem'), 'not a key');
    expect(() => loadOrCreateSigner(dir, ORIGIN)).toThrow(/not a private key/);
    for (const name of ['', 'a b', 'a+b', 'ü', 'a\n']) expect(() => loadOrCreateSigner(join(dir, 'x'), name)).toThrow(/key name/);
  });
});

describe('tail and stats', () => {
  it('show the last records, or from a number, filtered', async () => {
    const store = await openStore();
    await fill(store, 'acme', 9000);
    await store.appendDurably('acme', lifecycle('svid.issued', { timeMs: START_MS + 9000 }));
    const seqs = async (options: Parameters<typeof tail>[2]): Promise<number[]> => (await all(tail(store, 'acme', options))).map((r) => r.seq);
    expect(await seqs({ limit: 3 })).toEqual([8998, 8999, 9000]);
    expect(await seqs({})).toHaveLength(100);
    expect(await seqs({ limit: 0 })).toEqual([]);
    expect(await seqs({ from: 4095, limit: 3 })).toEqual([4095, 4096, 4097]);
    expect(await seqs({ from: 8999 })).toEqual([8999, 9000]);
    expect(await seqs({ from: 20_000 })).toEqual([]);
    expect(await seqs({ allow: false, limit: 2 })).toEqual([8994, 8999]);
    expect(await seqs({ action: 'svid.issued' })).toEqual([9000]);
    expect(await seqs({ action: 'object.get', from: 10, limit: 2 })).toEqual([11, 13]);
    expect(await seqs({ fromMs: START_MS + 100, toMs: START_MS + 103 })).toEqual([100, 101, 102]);
    expect(await seqs({ limit: 9001 })).toHaveLength(9001);
    await expect(seqs({ from: -1 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(seqs({ limit: 1e9 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it('follow new records until told to stop', async () => {
    const store = await openStore();
    await fill(store, 'acme', 5);
    const stop = new AbortController();
    const seen: number[] = [];
    const following = (async () => {
      for await (const { seq } of tail(store, 'acme', { limit: 2, follow: true, allow: true, signal: stop.signal })) {
        seen.push(seq);
        if (seq === 8) stop.abort();
      }
    })();
    for (let i = 5; i < 9; i++) await fill(store, 'acme', 1, i);
    await following;
    expect(seen).toEqual([2, 3, 5, 6, 7, 8]);
  });

  it('asking for a log that is not there makes none', async () => {
    const store: AuditStore = await openStore();
    expect(await stats(store, 'globex')).toBeUndefined();
    expect(await all(tail(store, 'globex'))).toEqual([]);
    expect(store.tenants()).toEqual(['']);
    expect(await stats(store, '')).toMatchObject({ records: 0, treeSize: 0, bytesPerRecord: 0, firstMs: undefined });
    expect(clock.nowMs()).toBe(START_MS);
  });

  it('count hostile names as names', async () => {
    const store = await openStore();
    const log = store.forTenant('acme');
    for (let i = 0; i < 1000; i++) log.append(decision(i, { action: i % 2 === 0 ? '__proto__' : `a${i}` }));
    await log.whenDurable(999);
    const s = await stats(store, 'acme');
    expect(Object.keys(s?.actions ?? {})).toContain('__proto__');
    expect(Object.keys(s?.actions ?? {}).length).toBeLessThan(520);
    expect((s?.allow ?? 0) + (s?.deny ?? 0)).toBe(1000);
  });
});

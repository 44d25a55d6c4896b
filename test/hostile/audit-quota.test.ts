/** One tenant's records never take the disk that all logs share: its calls stop, nobody else's, and nothing that was recorded is lost. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { exportTenant } from '../../src/audit/audit-export.ts';
import { tail } from '../../src/audit/audit-query.ts';
import type { AuditStore } from '../../src/audit/audit-store.ts';
import type { AuditDisk } from '../../src/audit/tenant-log.ts';
import type { AuditRecord } from '../../src/base/audit-record.ts';
import { BulkheadError } from '../../src/base/errors.ts';
import { AUDIT_HEADROOM_BYTES } from '../../src/base/limits.ts';
import { decision, fill, lifecycle, newDirectory, openStore } from '../contract/audit-fixture.ts';
import { jobId, testHead } from '../spec/gcs-head.ts';

/** Takes everything and keeps nothing: volume without wear. */
const NO_DISK: AuditDisk = { write: (_fd, _bytes, _offset, length, _position, done) => void setImmediate(done, null, length), fdatasync: (_fd, done) => void setImmediate(done, null) };
const GIB = 2 ** 30;
const BIG = 'x'.repeat(60_000);

function refusal(body: () => unknown): { code: string; message: string } | undefined {
  try {
    body();
    return undefined;
  } catch (error) {
    if (!(error instanceof BulkheadError)) throw error;
    return { code: error.code, message: error.message };
  }
}

/** Appends until it is refused; the sequence number of the last record, and why it ended. Waits for the disk now and then. */
async function flood(store: AuditStore, tenant: string, record: (i: number) => AuditRecord, most: number): Promise<{ last: number; why: { code: string; message: string } | undefined }> {
  const log = store.forTenant(tenant);
  let last = -1;
  for (let i = 0; i < most; i++) {
    const why = refusal(() => (last = log.append(record(i))));
    if (why !== undefined) {
      if (last >= 0) await log.whenDurable(last);
      return { last, why };
    }
    if (i % 50 === 49) await log.whenDurable(last);
  }
  return { last, why: undefined };
}

/** A denied GET of a ref that is not adjacent to the last: the cheapest record of all. */
const get = (i: number): AuditRecord => decision(1, { index: i * 7, allow: false, rule: 'default-deny' });
const operators = decision(0, { action: 'audit.export', principal: 'spiffe://cluster.example/system/admin' });

describe('the quota of a tenant’s log', () => {
  const quota = 64 * 1024;

  it('refuses the calls of the tenant that filled it, with what to do, and of nobody else', async () => {
    const store = await openStore({ bytesPerTenant: quota });
    const { last, why } = await flood(store, 'acme', get, 100_000);
    expect(why?.code).toBe('QUOTA_EXCEEDED');
    expect(why?.message).toMatch(/cluster\.example\/node\/n1\/tenant\/acme has reached its 65536 bytes.*export it.*ask the operator of the node for more/u);
    const log = store.forTenant('acme');
    expect(store.forTenant('acme').diskBytes()).toBeLessThan(quota + 8 * 1024);
    expect(last).toBeGreaterThan(1_000);
    for (let i = 0; i < 100; i++) expect(refusal(() => log.append(get(i)))?.code).toBe('QUOTA_EXCEEDED');
    await expect(store.appendDurably('acme', decision(3))).rejects.toMatchObject({ code: 'QUOTA_EXCEEDED' });
    await fill(store, 'globex', 100);
    await store.appendDurably('', lifecycle('node.joined'));
    // Every record that was taken is there, and none that was refused.
    expect(log.durable).toBe(last + 1);
  });

  it('still takes what has happened already, the auditors’ calls and the operator’s, so that it can be exported whole', async () => {
    const store = await openStore({ bytesPerTenant: quota });
    const { last } = await flood(store, 'acme', get, 100_000);
    await store.appendDurably('acme', lifecycle('task.failed'));
    await store.appendDurably('acme', decision(0, { action: 'audit.export' }));
    await store.appendDurably('acme', operators);
    // A neighbour cannot use that way.
    await expect(store.appendDurably('acme', decision(0, { action: 'audit.read', allow: false, principal: 'spiffe://cluster.example/tenant/globex/user/eve' }))).rejects.toMatchObject({ code: 'QUOTA_EXCEEDED' });
    await exportTenant({ store, tenant: 'acme', out: join(newDirectory(), 'out'), format: 'jsonl' });
    const records: AuditRecord[] = [];
    for await (const { record } of tail(store, 'acme', { from: 0 })) records.push(record);
    expect(records).toHaveLength(last + 4);
    expect(records.slice(last + 1).map((r) => (r.type === 'decision' ? r.action : r.event))).toEqual(['task.failed', 'audit.export', 'audit.export']);
  });

  it('holds across a restart, and a larger one lets the tenant go on', async () => {
    const dir = join(newDirectory(), 'audit');
    const store = await openStore({ dir, bytesPerTenant: quota });
    const { last } = await flood(store, 'acme', get, 100_000);
    await store.close();
    const again = await openStore({ dir, bytesPerTenant: quota });
    expect(refusal(() => again.forTenant('acme').append(get(0)))?.code).toBe('QUOTA_EXCEEDED');
    await again.close();
    const larger = await openStore({ dir, bytesPerTenant: 2 * quota });
    expect(larger.forTenant('acme').append(get(0))).toBe(last + 1);
  });

  it('bounds the auditors’ part too: reading the log over and over ends, and the operator’s calls and facts do not', async () => {
    const store = await openStore({ disk: NO_DISK, bytesPerTenant: quota });
    const large = decision(0, { action: 'audit.read', detail: BIG });
    const log = store.forTenant('acme');
    const { why } = await flood(store, 'acme', (i) => ({ ...large, detail: `${BIG}${i}` }), 2 + AUDIT_HEADROOM_BYTES / 2 / BIG.length);
    expect(why?.code).toBe('QUOTA_EXCEEDED');
    expect(log.diskBytes()).toBeLessThan(quota + AUDIT_HEADROOM_BYTES / 2 + 100_000);
    await store.appendDurably('acme', operators);
    await store.appendDurably('acme', lifecycle('task.failed'));
  });
});

describe('the reserve of the disk', () => {
  it('is never a tenant’s: all of them are refused, the cluster’s own log is written, and room that comes back is used', async () => {
    let freeBytes = 100 * GIB;
    let asked = 0;
    let nowMs = 0;
    const store = await openStore({ clock: { nowMs: () => 1_700_000_000_000, monotonicMs: () => nowMs }, diskSpace: () => ({ freeBytes: (asked++, freeBytes), totalBytes: 1_000 * GIB }) });
    await fill(store, 'acme', 10);
    freeBytes = 1 * GIB;
    nowMs += 1_000;
    for (const tenant of ['acme', 'globex']) {
      const why = refusal(() => store.forTenant(tenant).append(get(0)));
      expect(why?.code).toBe('RESOURCE_EXHAUSTED');
      expect(why?.message).toMatch(/only its reserve left.*ask the operator of the node to free disk space/u);
    }
    // Facts go on into the reserve, not to its end.
    await store.appendDurably('acme', lifecycle('task.failed'));
    freeBytes = GIB / 4;
    nowMs += 1_000;
    await expect(store.appendDurably('acme', lifecycle('task.failed'))).rejects.toMatchObject({ code: 'RESOURCE_EXHAUSTED' });
    await store.appendDurably('', lifecycle('node.joined'));
    freeBytes = 0;
    nowMs += 1_000;
    await store.appendDurably('', lifecycle('node.joined'));
    freeBytes = 100 * GIB;
    nowMs += 1_000;
    await store.appendDurably('acme', get(1));
    // Once a second, however often it is full.
    const before = asked;
    for (let i = 0; i < 1_000; i++) store.forTenant('acme').append(get(i));
    expect(asked).toBe(before);
  });

  it('leaves a log at most as much as there is for all others, counting what was written since the disk was asked', async () => {
    const room = 200_000_000;
    const store = await openStore({ disk: NO_DISK, diskSpace: () => ({ freeBytes: GIB + room, totalBytes: 1_000 * GIB }) });
    const large = (i: number): AuditRecord => decision(1, { detail: `${BIG}${i}` });
    const first = await flood(store, 'globex', large, 4_000);
    expect(first.why?.code).toBe('QUOTA_EXCEEDED');
    expect(store.forTenant('globex').diskBytes()).toBeGreaterThan(AUDIT_HEADROOM_BYTES - 100_000);
    const second = await flood(store, 'acme', large, 4_000);
    expect(second.why?.code).toBe('RESOURCE_EXHAUSTED');
    const both = store.forTenant('globex').diskBytes() + store.forTenant('acme').diskBytes();
    expect(both).toBeGreaterThan(room - 100_000);
    expect(both).toBeLessThan(room + 100_000);
    await store.appendDurably('', lifecycle('node.joined'));
  });

  it('is unknown: no tenant writes, the cluster does', async () => {
    const store = await openStore({ diskSpace: () => { throw new Error('no such file system'); } });
    expect(refusal(() => store.forTenant('acme').append(get(0)))?.code).toBe('RESOURCE_EXHAUSTED');
    await store.appendDurably('', lifecycle('node.joined'));
  });
});

it.each(['QUOTA_EXCEEDED', 'RESOURCE_EXHAUSTED'] as const)('a tenant’s log that is full (%s) refuses one change at the head, and ends neither the head nor other tenants’ changes', async (code) => {
  const test = await testHead();
  const { head } = test;
  const open = (tenant: string, n: number) => head.commit((now, out) => head.jobs.step({ type: 'open', jobId: jobId(n), tenant: tenant as never, name: 'j', by: `spiffe://td/tenant/${tenant}/user/ana`, expiresMs: now + 60_000 }, now, out));
  for (const name of ['acme', 'globex']) await head.commit((now, out) => head.tenants.step({ type: 'create', name, quota: {}, by: 'spiffe://td/system/admin' }, now, out));
  test.failAudit = new BulkheadError(code, 'the audit log is full');
  await expect(open('acme', 1)).rejects.toMatchObject({ code });
  expect(() => head.jobs.get(jobId(1) as never)).toThrow('does not exist');
  await open('globex', 2);
  expect(head.jobs.get(jobId(2) as never)).toMatchObject({ tenant: 'globex' });
  expect(test.fatal).toEqual([]);
});

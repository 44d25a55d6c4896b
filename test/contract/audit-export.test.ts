/** Exports: every format verifies; ranges are complete; several nodes side by side; OCSF has what its classes require; nothing raw gets out. */
import * as fs from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { exportTenant, readLogMaterial, writeExport, type LogMaterial } from '../../src/audit/audit-export.ts';
import { verifyExport } from '../../src/audit/audit-verify.ts';
import { EXPORT_FORMATS, recordLine, RECORDS_FILE } from '../../src/audit/core/record-lines.ts';
import { ACTIONS } from '../../src/base/decision.ts';
import type { AuditRecord } from '../../src/base/audit-record.ts';
import type { AuditStore } from '../../src/audit/audit-store.ts';
import { decision, fill, lifecycle, newDirectory, newSigner, openStore, signer, START_MS } from './audit-fixture.ts';

const HOSTILE = ['\u0000\u0007\u001b]0;title\u0007', 'a\r\nforged: line', '\u2028\u2029', '\u202eevil\u2066', '\ud800 lone \udfff', '__proto__', '|=\\ act=allow', '"},{"seq":1', '\u{e0041}\ufeff\u00ad', '=cmd()', 'é 漢字 😀'];

async function hostileStore(): Promise<AuditStore> {
  const store = await openStore();
  const log = store.forTenant('acme');
  for (const [i, text] of HOSTILE.entries()) {
    log.append(decision(i, { detail: text, resource: text, principal: `spiffe://cluster.example/${text}`, rule: text, action: text, resourceKind: text }));
    log.append(lifecycle(`event.${text}`, { resource: text, detail: text.repeat(50) }));
  }
  for (let i = 0; i < 600; i++) log.append(decision(i));
  await log.whenDurable(2 * HOSTILE.length + 599);
  return store;
}

const out = (): string => join(newDirectory(), 'export');
const place = { origin: 'cluster.example/node/n1/tenant/acme', tenant: 'acme', seq: 7, leafHash: 'aa', treeSize: 9, rootHash: 'bb' };

describe('export', () => {
  it.each(EXPORT_FORMATS)('%s: verifies with the trusted key, and holds no raw control or hidden character', async (format) => {
    const store = await hostileStore();
    const dir = out();
    const summary = await exportTenant({ store, tenant: 'acme', format, out: dir });
    expect(summary.records).toBe(2 * HOSTILE.length + 600);
    const verdict = await verifyExport(dir, { trustedKeys: [signer.publicKeyLine], tenant: 'acme' });
    expect(verdict).toMatchObject({ ok: true, trusted: true, tenant: 'acme', format, logs: [{ treeSize: summary.records, records: summary.records, problems: [] }] });
    expect((await verifyExport(dir)).trusted).toBe(false);
    const text = fs.readFileSync(join(dir, summary.logs[0]?.directory ?? '', RECORDS_FILE[format]), 'utf8');
    expect(text.split('\n')).toHaveLength(summary.records + 1);
    expect(text).not.toMatch(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u00ad\u2028-\u202f\u2066-\u2069\ufeff]|\u{e0041}/u);
    expect(text.isWellFormed()).toBe(true);
    for (const [dirent, mode] of fs.readdirSync(dir, { recursive: true }).map((f) => [f, fs.statSync(join(dir, String(f))).mode & 0o077] as const)) expect([dirent, mode]).toEqual([dirent, 0]);
  });

  it('JSON Lines give back the record, hostile text included', async () => {
    const store = await hostileStore();
    const dir = out();
    const { logs } = await exportTenant({ store, tenant: 'acme', format: 'jsonl', out: dir });
    const lines = fs.readFileSync(join(dir, logs[0]?.directory ?? '', 'records.jsonl'), 'utf8').trimEnd().split('\n').map((l) => JSON.parse(l) as Record<string, unknown>);
    for (const [i, text] of HOSTILE.entries()) {
      expect(lines[2 * i]).toMatchObject({ seq: 2 * i, type: 'decision', detail: text, resource: text, rule: text, action: text });
      expect(lines[2 * i + 1]).toMatchObject({ type: 'lifecycle', event: `event.${text}`, detail: text.repeat(50) });
    }
  });

  it('CEF escapes what would end a field or a header', () => {
    const line = recordLine('cef', decision(0, { action: 'a|b\\c', detail: 'x=1\ny\\n act=allow', rule: '\u0007' }), place);
    expect(line).toContain('|a\\|b\\\\c|decision a\\|b\\\\c|');
    expect(line).toContain('msg=x\\=1\\\\u000ay\\\\n act\\=allow');
    expect(line).toContain('cs5=\\\\u0007');
    expect(line.match(/ act=/g)).toHaveLength(1);
  });

  it('a range holds exactly its records, with what proves that none is missing', async () => {
    const store = await openStore();
    await fill(store, 'acme', 13_000);
    const cases: [number | undefined, number | undefined, number][] = [
      [undefined, undefined, 13_000], [START_MS, START_MS + 1, 1], [START_MS + 4999, START_MS + 5002, 3], [START_MS + 12_990, undefined, 10], [undefined, START_MS + 300, 300],
      [START_MS + 50_000, START_MS + 60_000, 0], [0, 5, 0], [START_MS + 4096, START_MS + 8192, 4096], [START_MS + 7, START_MS + 7, 0],
    ];
    for (const [fromMs, toMs, records] of cases) {
      const dir = out();
      const summary = await exportTenant({ store, tenant: 'acme', format: 'jsonl', out: dir, ...(fromMs === undefined ? {} : { fromMs }), ...(toMs === undefined ? {} : { toMs }) });
      expect(summary.records).toBe(records);
      const verdict = await verifyExport(dir);
      expect(verdict.logs[0]?.problems).toEqual([]);
      expect(verdict).toMatchObject({ ok: true, logs: [{ records }] });
    }
    const dir = out();
    const { logs } = await exportTenant({ store, tenant: 'acme', format: 'jsonl', out: dir, fromMs: START_MS + 9000, toMs: START_MS + 9100 });
    expect(logs[0]).toMatchObject({ firstIndex: 8192, endIndex: 9216 });
    expect(fs.readdirSync(join(dir, logs[0]?.directory ?? '', 'tile', 'entries'))).toHaveLength(4);
  });

  it('a range stays complete when the clock stepped back', async () => {
    const store = await openStore();
    const log = store.forTenant('acme');
    for (let i = 0; i < 9000; i++) log.append(decision(i, { timeMs: START_MS + (i < 6000 ? i : i - 5000) }));
    await log.whenDurable(8999);
    const dir = out();
    expect((await exportTenant({ store, tenant: 'acme', format: 'jsonl', out: dir, fromMs: START_MS + 1500, toMs: START_MS + 1600 })).records).toBe(200);
    expect(await verifyExport(dir)).toMatchObject({ ok: true, logs: [{ records: 200 }] });
  });

  it('every checkpoint signed under load is one that the final export extends', async () => {
    const store = await openStore({ checkpointIntervalMs: 3 });
    const log = store.forTenant('acme');
    const notes: Promise<string>[] = [];
    for (let i = 0, burst = 1; i < 20_000; burst = (burst * 7) % 2003) {
      for (let end = Math.min(20_000, i + burst); i < end; i++) {
        log.append(decision(i));
        if (i % 997 === 0) notes.push(store.checkpoint('acme'));
      }
      await new Promise((resolve) => setTimeout(resolve, 4));
    }
    await log.whenDurable(19_999);
    const earlier = await Promise.all(notes);
    const dir = out();
    await exportTenant({ store, tenant: 'acme', format: 'jsonl', out: dir });
    const verdict = await verifyExport(dir, { trustedKeys: [signer.publicKeyLine], earlierCheckpoints: earlier });
    expect(verdict.logs[0]?.problems).toEqual([]);
    expect(new Set(earlier).size).toBeGreaterThan(3);
  });

  it('logs of several nodes stand side by side; empty ones too', async () => {
    const other = newSigner('cluster.example/node/n2');
    const one = await openStore();
    const two = await openStore({ origin: 'cluster.example/node/n2', signer: other });
    await fill(one, 'acme', 10);
    two.forTenant('acme');
    const materials = [await readLogMaterial(one, 'acme'), await readLogMaterial(two, 'acme')] as LogMaterial[];
    const dir = out();
    const summary = await writeExport(dir, materials, { tenant: 'acme', format: 'ocsf' });
    expect(summary.logs.map((l) => [l.origin, l.treeSize])).toEqual([['cluster.example/node/n1/tenant/acme', 10], ['cluster.example/node/n2/tenant/acme', 0]]);
    expect(await verifyExport(dir, { trustedKeys: [signer.publicKeyLine, other.publicKeyLine] })).toMatchObject({ ok: true });
    const half = await verifyExport(dir, { trustedKeys: [signer.publicKeyLine] });
    expect(half.ok).toBe(false);
    expect(half.logs[1]?.problems[0]?.what).toContain('not signed by a known key');
    expect(await readLogMaterial(one, 'globex')).toBeUndefined();
    await expect(exportTenant({ store: one, tenant: 'globex', format: 'jsonl', out: out() })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it('material that came broken over the network is refused: chunks anywhere are fine, changed bytes are not', async () => {
    const store = await openStore();
    await fill(store, 'acme', 600);
    const material = async (change: (bytes: Buffer) => Buffer, chunk: number): Promise<LogMaterial> => {
      const whole = (await readLogMaterial(store, 'acme')) as LogMaterial;
      const parts: Uint8Array[] = [];
      for await (const part of whole.entries) parts.push(part);
      const bytes = change(Buffer.concat(parts));
      return { ...whole, entries: (async function* () {
        for (let at = 0; at < bytes.length; at += chunk) yield bytes.subarray(at, at + chunk);
      })() };
    };
    for (const chunk of [1, 3, 1000, 1e6]) expect((await writeExport(out(), [await material((b) => b, chunk)], { tenant: 'acme', format: 'jsonl' })).records).toBe(600);
    const changes: ((b: Buffer) => Buffer)[] = [(b) => b.subarray(0, -1), (b) => b.subarray(0, b.length - 40), (b) => Buffer.concat([b, Buffer.of(0, 1, 9)]), (b) => { b[b.length - 1] = (b[b.length - 1] as number) ^ 1; return b; }, () => Buffer.alloc(0)];
    for (const change of changes) await expect(writeExport(out(), [await material(change, 500)], { tenant: 'acme', format: 'jsonl' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    const twice = [await material((b) => b, 100), await material((b) => b, 100)];
    await expect(writeExport(out(), twice, { tenant: 'acme', format: 'jsonl' })).rejects.toThrow(/two logs/);
  });

  it('wrong options are refused before anything is written', async () => {
    const store = await openStore();
    await fill(store, 'acme', 1);
    const full = newDirectory();
    fs.writeFileSync(join(full, 'precious'), '');
    await expect(exportTenant({ store, tenant: 'acme', format: 'jsonl', out: full })).rejects.toThrow(/not empty/);
    await expect(exportTenant({ store, tenant: 'acme', format: 'xml' as 'jsonl', out: out() })).rejects.toThrow(/format/);
    await expect(exportTenant({ store, tenant: 'acme', format: 'jsonl', out: out(), fromMs: 2, toMs: 1 })).rejects.toThrow(/ends before/);
    await expect(exportTenant({ store, tenant: 'acme', format: 'jsonl', out: out(), fromMs: Number.NaN })).rejects.toThrow(/whole milliseconds/);
    await expect(verifyExport(full)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(verifyExport(join(full, 'nothing'))).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});

describe('OCSF', () => {
  /** Required attributes of the classes in OCSF 1.5, and of the objects that we fill. */
  const BASE = ['activity_id', 'category_uid', 'class_uid', 'metadata', 'severity_id', 'time', 'type_uid'];
  const REQUIRED: Readonly<Record<number, { category: number; fields: string[]; activities: number[] }>> = {
    6003: { category: 6, fields: ['actor', 'api', 'src_endpoint'], activities: [1, 2, 3, 4, 99] },
    3002: { category: 3, fields: ['user'], activities: [1, 2, 3, 99] },
    6002: { category: 6, fields: ['app'], activities: [1, 2, 3, 4, 5, 6, 7, 8, 99] },
  };

  function check(record: AuditRecord): Record<string, unknown> {
    const event = JSON.parse(recordLine('ocsf', record, place)) as Record<string, unknown>;
    const rule = REQUIRED[event['class_uid'] as number];
    expect(rule).toBeDefined();
    for (const field of [...BASE, ...(rule?.fields ?? [])]) expect([field, event[field]]).not.toEqual([field, undefined]);
    expect(event['category_uid']).toBe(rule?.category);
    expect(rule?.activities).toContain(event['activity_id']);
    expect(event['type_uid']).toBe((event['class_uid'] as number) * 100 + (event['activity_id'] as number));
    expect(Number.isInteger(event['time'])).toBe(true);
    expect(event['metadata']).toMatchObject({ version: '1.5.0', product: { name: 'Bulkhead', vendor_name: 'Bulkhead' } });
    if (event['activity_id'] === 99) expect(event['activity_name']).toMatch(/./);
    if (event['class_uid'] === 3002) expect(event['service'] ?? event['dst_endpoint']).toMatchObject({ name: 'Bulkhead' });
    if (event['class_uid'] === 6003) expect(event).toMatchObject({ api: { operation: expect.any(String) }, src_endpoint: { uid: record.principal }, actor: { user: { uid: record.principal } } });
    if (event['class_uid'] === 6002) expect(event['app']).toMatchObject({ name: expect.any(String), vendor_name: 'Bulkhead' });
    expect(event['unmapped']).toMatchObject({ tenant: 'acme', proof: { origin: place.origin, leaf_index: 7, leaf_hash: 'aa', tree_size: 9, root_hash: 'bb' } });
    return event;
  }

  it('every action becomes an API Activity, opening a session an Authentication', () => {
    for (const action of ACTIONS) {
      for (const allow of [true, false]) {
        const event = check(decision(0, { action, allow }));
        expect(event).toMatchObject({ class_uid: action === 'session.open' ? 3002 : 6003, status_id: allow ? 1 : 2, action_id: allow ? 1 : 2, disposition_id: allow ? 1 : 2 });
        expect([action, event['activity_id']]).not.toEqual([action, 99]);
      }
    }
  });

  it('SVIDs and sessions are Authentication; other lifetimes Application Lifecycle', () => {
    for (const event of ['svid.issued', 'svid.revoked', 'session.opened', 'session.expired']) expect(check(lifecycle(event))).toMatchObject({ class_uid: 3002 });
    for (const event of ['worker.started', 'worker.killed', 'actor.died', 'policy.applied', 'node.joined', 'task.finished', 'something', '']) expect(check(lifecycle(event))).toMatchObject({ class_uid: 6002 });
  });
});

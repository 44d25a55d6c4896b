/** Every way of changing an export that an insider might try, and what the offline verifier says of it: never ok, and the first bad record by name. */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { exportTenant } from '../../src/audit/audit-export.ts';
import { AuditStore } from '../../src/audit/audit-store.ts';
import { verifyExport, type LogVerdict } from '../../src/audit/audit-verify.ts';
import { EXPORT_FORMATS, RECORDS_FILE } from '../../src/audit/core/record-lines.ts';
import { clock, decision, newDirectory, newSigner, ORIGIN, signer, START_MS } from '../contract/audit-fixture.ts';

const SIZE = 1500;
const LOG = 'cluster.example_node_n1_tenant_acme';
let base: string;

beforeAll(async () => {
  base = fs.mkdtempSync(join(tmpdir(), 'bulkhead-audit-tamper-'));
  const make = async (name: string, key: typeof signer, allow?: boolean): Promise<void> => {
    await using store = await AuditStore.open({ dir: join(base, `store-${name}`), origin: ORIGIN, signer: key, clock });
    for (const tenant of ['acme', 'globex']) {
      const log = store.forTenant(tenant);
      for (let i = 0; i < SIZE; i++) log.append(decision(i, { principal: `spiffe://cluster.example/tenant/${tenant}/user/ana`, ...(allow === undefined ? {} : { allow }) }));
      await log.whenDurable(SIZE - 1);
      for (const format of EXPORT_FORMATS) await exportTenant({ store, tenant, format, out: join(base, `${name}-${tenant}-${format}`) });
      await exportTenant({ store, tenant, format: 'jsonl', out: join(base, `${name}-${tenant}-range`), fromMs: START_MS + 300, toMs: START_MS + 310 });
    }
  };
  await make('true', signer);
  await make('forged', newSigner());
  await make('whitewashed', newSigner(), true);
});

afterAll(() => fs.rmSync(base, { recursive: true, force: true }));

function copy(name: string): string {
  const dir = join(newDirectory(), 'export');
  fs.cpSync(join(base, name), dir, { recursive: true });
  return dir;
}

async function verdict(dir: string): Promise<LogVerdict> {
  const v = await verifyExport(dir, { trustedKeys: [signer.publicKeyLine], tenant: 'acme' });
  expect(v.ok).toBe(v.logs.every((l) => l.problems.length === 0));
  return v.logs[0] as LogVerdict;
}

function edit(path: string, change: (bytes: Buffer) => Uint8Array | string): void {
  fs.writeFileSync(path, change(fs.readFileSync(path)));
}

const flip = (at: number) => (bytes: Buffer): Buffer => {
  bytes[at] = (bytes[at] as number) ^ 1;
  return bytes;
};
const lines = (change: (l: string[]) => string[]) => (bytes: Buffer): string => change(bytes.toString().split('\n')).join('\n');

describe('the records file', () => {
  for (const format of EXPORT_FORMATS) {
    const cases: [string, (bytes: Buffer) => Uint8Array | string, number][] = [
      ['a line changed', lines((l) => l.with(700, (l[700] as string).replace('ana', 'eve'))), 700],
      ['a deny made an allow', lines((l) => l.with(704, (l[704] as string).replace('"allow":false', '"allow":true').replace('act=deny', 'act=allow').replace('"action":"Denied"', '"action":"Allowed"'))), 704],
      ['a line removed', lines((l) => l.toSpliced(701, 1)), 701],
      ['the first line removed', lines((l) => l.slice(1)), 0],
      ['a line put in', lines((l) => l.toSpliced(702, 0, l[3] as string)), 702],
      ['two lines swapped', lines((l) => l.with(710, l[711] as string).with(711, l[710] as string)), 710],
      ['the tail cut off', lines((l) => [...l.slice(0, 1400), '']), 1400],
      ['all lines gone', () => '', 0],
      ['the last newline gone', (b) => b.subarray(0, -1), SIZE - 1],
      ['a byte that is not UTF-8', (b) => flip(b.length - 5)(Buffer.concat([b.subarray(0, -4), Buffer.of(0xff), b.subarray(-4)])), SIZE - 1],
      ['carriage returns', lines((l) => l.map((x) => (x === '' ? x : `${x}\r`))), 0],
    ];
    it.each(cases)(`${format}: %s`, async (_, change, index) => {
      const dir = copy(`true-acme-${format}`);
      edit(join(dir, LOG, RECORDS_FILE[format]), change);
      expect((await verdict(dir)).problems[0]).toMatchObject({ index, what: expect.stringContaining('record') });
    });

    it(`${format}: lines added at the end, or the file missing`, async () => {
      const dir = copy(`true-acme-${format}`);
      const path = join(dir, LOG, RECORDS_FILE[format]);
      edit(path, lines((l) => [...l.slice(0, -1), l[0] as string, '']));
      expect((await verdict(dir)).problems).toEqual([{ index: -1, what: `line ${SIZE + 1} of ${RECORDS_FILE[format]} has no leaf behind it` }]);
      fs.rmSync(path);
      expect((await verdict(dir)).problems[0]).toMatchObject({ index: 0, what: expect.stringContaining('ends before record 0') });
    });
  }
});

describe('entries and tiles', () => {
  it('any changed byte of an entry bundle is found, and its record named', async () => {
    const dir = copy('true-acme-jsonl');
    const path = join(dir, LOG, 'tile/entries/002');
    const bytes = fs.readFileSync(path);
    for (let at = 0, step = 1; at < bytes.length; at += step++) {
      fs.writeFileSync(path, flip(at)(Buffer.from(bytes)));
      const [first] = (await verdict(dir)).problems;
      expect(first?.index).toBeGreaterThanOrEqual(512);
      expect(first?.index).toBeLessThan(768);
    }
    // Where exactly: the last byte belongs to the last record of the bundle.
    fs.writeFileSync(path, flip(bytes.length - 1)(Buffer.from(bytes)));
    expect((await verdict(dir)).problems[0]).toMatchObject({ index: 767, what: expect.stringContaining('record 767 was changed') });
  });

  it.each([
    ['an entry removed', (b: Buffer) => b.subarray(2 + b.readUInt16BE(0))],
    ['an entry put in', (b: Buffer) => Buffer.concat([b, Buffer.of(0, 2, 0, 0)])],
    ['the end cut', (b: Buffer) => b.subarray(0, -1)],
    ['nothing left', () => Buffer.alloc(0)],
    ['noise', (b: Buffer) => Buffer.alloc(b.length, 0xff)],
  ] as const)('a bundle with %s', async (_, change) => {
    const dir = copy('true-acme-jsonl');
    edit(join(dir, LOG, 'tile/entries/001'), change);
    const [first] = (await verdict(dir)).problems;
    expect(first?.index).toBeGreaterThanOrEqual(256);
    expect(first?.index).toBeLessThan(512);
  });

  it.each(['tile/entries/001', 'tile/0/001', 'tile/1/000.p/5', 'tile/entries/005.p/220', 'tile/0/005.p/220', 'checkpoint', 'key.vkey'])('a missing %s', async (file) => {
    const dir = copy('true-acme-jsonl');
    fs.rmSync(join(dir, LOG, file));
    expect((await verdict(dir)).problems[0]?.what).toMatch(/missing|unreadable/);
  });

  it.each(['tile/0/001', 'tile/1/000.p/5', 'tile/0/005.p/220'])('a changed byte in %s', async (file) => {
    const dir = copy('true-acme-jsonl');
    edit(join(dir, LOG, file), flip(40));
    expect((await verdict(dir)).problems.length).toBeGreaterThan(0);
  });

  it('two entries swapped together with their leaf hashes', async () => {
    const dir = copy('true-acme-jsonl');
    edit(join(dir, LOG, 'tile/0/000'), (b) => Buffer.concat([b.subarray(0, 64), b.subarray(96, 128), b.subarray(64, 96), b.subarray(128)]));
    expect((await verdict(dir)).problems[0]).toMatchObject({ index: 2 });
  });

  it('a consistent forgery of all of it, signed with another key', async () => {
    for (const name of ['forged', 'whitewashed']) {
      expect((await verdict(copy(`${name}-acme-jsonl`))).problems[0]?.what).toContain('not signed by a known key');
    }
    // The true checkpoint over forged content.
    const dir = copy('whitewashed-acme-jsonl');
    for (const file of ['checkpoint', 'key.vkey']) fs.copyFileSync(join(base, 'true-acme-jsonl', LOG, file), join(dir, LOG, file));
    const manifest = fs.readFileSync(join(base, 'true-acme-jsonl', 'manifest.json'));
    fs.writeFileSync(join(dir, 'manifest.json'), manifest);
    expect((await verdict(dir)).problems.map((p) => p.what).join()).toContain('does not hash to the root');
  });

  it('the entries of a forgery with the true tiles: the first record that differs is named', async () => {
    const dir = copy('true-acme-jsonl');
    for (const file of ['tile/entries', 'records.jsonl']) fs.cpSync(join(base, 'whitewashed-acme-jsonl', LOG, file), join(dir, LOG, file), { recursive: true });
    expect((await verdict(dir)).problems[0]).toMatchObject({ index: 4, what: expect.stringContaining('record 4 was changed') });
  });
});

describe('checkpoint and manifest', () => {
  it.each([
    ['another size', (t: string) => t.replace(`\n${SIZE}\n`, `\n${SIZE - 1}\n`)], ['another origin', (t: string) => t.replace('tenant/acme', 'tenant/acmf')], ['a bent signature', (t: string) => `${t.slice(0, -10)}${t.at(-10) === 'A' ? 'B' : 'A'}${t.slice(-9)}`],
    ['no signature', (t: string) => t.slice(0, t.indexOf('— '))], ['no text', () => ''], ['an extension line', (t: string) => t.replace('\n\n', '\nextra\n\n')],
  ] as const)('a checkpoint with %s', async (_, change) => {
    const dir = copy('true-acme-jsonl');
    edit(join(dir, LOG, 'checkpoint'), (b) => change(b.toString()));
    expect((await verdict(dir)).problems[0]?.what).toMatch(/signature|signed|note|checkpoint|base64/);
  });

  it("another tenant's log swapped in, in each way", async () => {
    const swapped = copy('true-acme-jsonl');
    fs.rmSync(join(swapped, LOG), { recursive: true });
    fs.cpSync(join(base, 'true-globex-jsonl', 'cluster.example_node_n1_tenant_globex'), join(swapped, LOG), { recursive: true });
    expect((await verdict(swapped)).problems.map((p) => p.what).join()).toMatch(/another log/);
    const whole = copy('true-globex-jsonl');
    expect((await verdict(whole)).problems[0]?.what).toContain("the export is of the tenant 'globex', not of 'acme'");
    edit(join(whole, 'manifest.json'), (b) => b.toString().replace('"tenant": "globex"', '"tenant": "acme"'));
    expect((await verdict(whole)).problems.map((p) => p.what).join()).toContain("not one of the tenant 'acme'");
  });

  it.each([
    ['fewer records', { records: 3 }], ['a smaller tree', { treeSize: 10, endIndex: 10 }], ['another root', { rootHash: 'ab'.repeat(32) }], ['a range that hides the end', { endIndex: 512 }], ['a range that hides the beginning', { firstIndex: 4096, endIndex: 4096 }],
    ['a range that hides all', { firstIndex: 0, endIndex: 0 }], ['an impossible range', { firstIndex: 7 }],
  ] as const)('a manifest with %s', async (_, change) => {
    const dir = copy('true-acme-jsonl');
    edit(join(dir, 'manifest.json'), (b) => {
      const manifest = JSON.parse(b.toString()) as { logs: object[] };
      return JSON.stringify({ ...manifest, logs: manifest.logs.map((l) => ({ ...l, ...change })) });
    });
    expect((await verdict(dir)).problems.length).toBeGreaterThan(0);
  });

  it('a time range that was narrowed, widened or cut', async () => {
    expect((await verdict(copy('true-acme-range'))).problems).toEqual([]);
    for (const [from, to] of [[START_MS + 301, START_MS + 310], [START_MS + 299, START_MS + 310], [START_MS + 300, START_MS + 309], [START_MS + 300, START_MS + 1400]]) {
      const dir = copy('true-acme-range');
      edit(join(dir, 'manifest.json'), (b) => JSON.stringify({ ...(JSON.parse(b.toString()) as object), fromMs: from, toMs: to }));
      expect([from, to, (await verdict(dir)).problems.length]).not.toEqual([from, to, 0]);
    }
  });

  it('a manifest that leads out of the directory, or is none', async () => {
    for (const directory of ['..', '../x', '/etc', 'a/b', '.', '', `${LOG}\0`]) {
      const dir = copy('true-acme-jsonl');
      edit(join(dir, 'manifest.json'), (b) => {
        const manifest = JSON.parse(b.toString()) as { logs: object[] };
        return JSON.stringify({ ...manifest, logs: manifest.logs.map((l) => ({ ...l, directory })) });
      });
      await expect(verifyExport(dir)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    }
    for (const text of ['', '[]', '{"logs":[]}', 'x'.repeat(100), '{"__proto__":{}}']) {
      const dir = copy('true-acme-jsonl');
      fs.writeFileSync(join(dir, 'manifest.json'), text);
      await expect(verifyExport(dir)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    }
    const empty = copy('true-acme-jsonl');
    edit(join(empty, 'manifest.json'), (b) => JSON.stringify({ ...(JSON.parse(b.toString()) as object), logs: [] }));
    expect((await verifyExport(empty)).ok).toBe(false);
    const twice = copy('true-acme-jsonl');
    edit(join(twice, 'manifest.json'), (b) => {
      const manifest = JSON.parse(b.toString()) as { logs: object[] };
      return JSON.stringify({ ...manifest, logs: [...manifest.logs, ...manifest.logs] });
    });
    expect((await verifyExport(twice)).ok).toBe(false);
  });

  it('a history that does not extend an earlier checkpoint, though the key signed both', async () => {
    const dir = join(newDirectory(), 'audit');
    const notes: string[] = [];
    const exports: string[] = [];
    const run = async (at: string, allow: boolean, sizes: number[]): Promise<void> => {
      await using store = await AuditStore.open({ dir: at, origin: ORIGIN, signer, clock });
      const log = store.forTenant('acme');
      for (const size of sizes) {
        for (let i = log.durable; i < size; i++) log.append(decision(i, { allow }));
        if (size > 0) await log.whenDurable(size - 1);
        notes.push(await store.checkpoint('acme'));
        exports.push(join(newDirectory(), 'export'));
        await exportTenant({ store, tenant: 'acme', format: 'jsonl', out: exports.at(-1) as string });
      }
      exports.push(join(newDirectory(), 'export'));
      await exportTenant({ store, tenant: 'acme', format: 'jsonl', out: exports.at(-1) as string, fromMs: START_MS + 5000 });
    };
    await run(dir, true, [0, 1, 300, 512, 6000]);
    await run(join(newDirectory(), 'other'), false, [300]);
    const check = (which: number, earlier: string[]) => verifyExport(exports[which] as string, { trustedKeys: [signer.publicKeyLine], earlierCheckpoints: earlier });
    const honest = notes.slice(0, 5);
    expect(await check(4, honest)).toMatchObject({ ok: true });
    // The checkpoint of another node says nothing of this log.
    expect(await check(4, [fs.readFileSync(join(base, 'true-globex-jsonl', 'cluster.example_node_n1_tenant_globex', 'checkpoint'), 'utf8')])).toMatchObject({ ok: true });
    const what = async (which: number, earlier: string[]): Promise<string> => (await check(which, earlier)).logs[0]?.problems.map((p) => p.what).join() ?? '';
    expect(await what(4, [notes[5] as string])).toContain('the past was rewritten: the first 300 records');
    expect(await what(2, honest)).toContain('the log was cut: it had 6000 records');
    expect(await what(4, [notes[2] as string, notes[5] as string])).toContain('contradict each other');
    expect(await what(4, [(notes[2] as string).replace('\n300\n', '\n301\n')])).toContain('not usable');
    // A range has no leaves of the early bundles, only their roots.
    expect(await check(5, [notes[3] as string, notes[4] as string])).toMatchObject({ ok: true });
    expect(await what(5, [notes[2] as string])).toContain('export it without a time range');
  });

  it('links and pipes in place of files do not lead out or hang', async () => {
    const outside = join(newDirectory(), 'secret');
    fs.writeFileSync(outside, 'secret');
    for (const file of ['checkpoint', 'records.jsonl', 'tile/entries/001', 'tile/0/001']) {
      const dir = copy('true-acme-jsonl');
      const path = join(dir, LOG, file);
      fs.rmSync(path);
      fs.symlinkSync(outside, path);
      expect(JSON.stringify((await verdict(dir)).problems)).toMatch(/missing|unreadable|ends before|cannot be checked/);
      fs.rmSync(path);
      execFileSync('mkfifo', [path]);
      expect((await verdict(dir)).problems.length).toBeGreaterThan(0);
    }
  });
});

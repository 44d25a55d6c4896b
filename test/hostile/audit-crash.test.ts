/** Crashes and a disk that lies: kill -9, torn writes at every byte, files shortened, swapped and bent behind the log's back. */
import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { exportTenant } from '../../src/audit/audit-export.ts';
import { tail } from '../../src/audit/audit-query.ts';
import type { AuditStore } from '../../src/audit/audit-store.ts';
import { loadOrCreateSigner } from '../../src/audit/checkpoint-signer.ts';
import type { AuditRecord } from '../../src/base/audit-record.ts';
import { clock, decision, endOfEntries, fill, newDirectory, openStore, ORIGIN } from '../contract/audit-fixture.ts';

async function read(store: AuditStore): Promise<AuditRecord[]> {
  const out: AuditRecord[] = [];
  for await (const { record } of tail(store, 'acme', { from: 0 })) out.push(record);
  return out;
}

const decisions = (n: number): AuditRecord[] => Array.from({ length: n }, (_, i) => decision(i));

describe('kill -9', () => {
  it('in the middle of appending loses no record that was acknowledged', async () => {
    const root = newDirectory();
    const dir = join(root, 'audit');
    const signer = loadOrCreateSigner(join(root, 'keys'), ORIGIN);
    for (let round = 0; round < 3; round++) {
      const child = spawn(process.execPath, [join(import.meta.dirname, 'audit-crash-child.ts'), root], { stdio: ['ignore', 'pipe', 'inherit'] });
      let acknowledged = 0;
      let text = '';
      child.stdout.on('data', (chunk: Buffer) => {
        text += chunk.toString();
        // Only whole lines count: the last one may be cut by the kill.
        const lines = text.split('\n');
        text = lines.pop() ?? '';
        acknowledged = Number(lines.at(-1) ?? acknowledged);
        if (acknowledged > (round + 1) * 3000) child.kill('SIGKILL');
      });
      const code = await new Promise((resolve) => child.on('exit', (_, signal) => resolve(signal)));
      expect(code).toBe('SIGKILL');
      expect(acknowledged).toBeGreaterThan(round * 3000);
      const store = await openStore({ dir, signer, clock });
      const records = await read(store);
      expect(records.length).toBeGreaterThanOrEqual(acknowledged);
      expect(records).toEqual(decisions(records.length));
      await store.close();
    }
  }, 30_000);
});

/** A store with 600 records under a signed checkpoint and 3 more batches of one record, as a crash leaves it; its directory. */
async function crashed(): Promise<{ dir: string; entries: string; ends: number[] }> {
  const dir = join(newDirectory(), 'audit');
  const store = await openStore({ dir, checkpointIntervalMs: 1e6 });
  await fill(store, 'acme', 600);
  await store.checkpoint('acme');
  const entries = join(dir, 'acme', 'entries');
  const ends = [endOfEntries(store, dir, 'acme')];
  for (let i = 600; i < 603; i++) {
    await fill(store, 'acme', 1, i);
    ends.push(endOfEntries(store, dir, 'acme'));
  }
  const copy = join(newDirectory(), 'audit');
  fs.cpSync(dir, copy, { recursive: true });
  fs.rmSync(join(copy, 'lock'));
  return { dir: copy, entries: join(copy, 'acme', 'entries'), ends };
}

async function refusal(dir: string): Promise<string> {
  const store = await openStore({ dir });
  try {
    store.forTenant('acme');
    return 'opened';
  } catch (error) {
    expect(error).toMatchObject({ code: 'UNAVAILABLE' });
    const message = (error as Error).message;
    expect(message).toContain(`the audit log ${ORIGIN}/tenant/acme cannot be opened`);
    // The cluster's log and other tenants' are not affected.
    await fill(store, 'globex', 1);
    return message;
  } finally {
    await store.close();
  }
}

describe('torn writes', () => {
  it('cut at every byte of the last batch, or filled with zeros or noise from there, it opens with every complete batch', async () => {
    const { dir, entries, ends } = await crashed();
    const file = fs.readFileSync(entries);
    const state = fs.readFileSync(join(dir, 'acme', 'state'));
    const index = fs.readFileSync(join(dir, 'acme', 'index'));
    const [, , before, end] = ends as [number, number, number, number];
    const whole = file.subarray(0, end);
    const room = Buffer.alloc(file.length - end);
    expect([room.length > 0, file.subarray(end).equals(room)]).toEqual([true, true]);
    for (let at = before; at < end; at++) {
      for (const tear of [whole.subarray(0, at), Buffer.concat([whole.subarray(0, at), Buffer.alloc(end - at)]), Buffer.concat([whole.subarray(0, at), Buffer.alloc(end - at), room]), Buffer.concat([whole.subarray(0, at), Buffer.alloc(end - at, 0xa5), room])]) {
        if (tear.subarray(0, end).equals(whole)) continue;
        fs.writeFileSync(entries, tear);
        fs.writeFileSync(join(dir, 'acme', 'state'), state);
        fs.writeFileSync(join(dir, 'acme', 'index'), index);
        const store = await openStore({ dir, checkpointIntervalMs: 1e6 });
        const log = store.forTenant('acme');
        expect([at, log.durable]).toEqual([at, 602]);
        expect(fs.statSync(entries).size).toBe(before);
        if (at % 7 === 0) {
          await fill(store, 'acme', 1, 602);
          expect(await read(store)).toEqual(decisions(603));
        }
        await store.close();
      }
    }
  }, 30_000);

  it('an index or state that was being replaced does not matter', async () => {
    const { dir } = await crashed();
    fs.appendFileSync(join(dir, 'acme', 'index'), Buffer.alloc(57, 1));
    fs.writeFileSync(join(dir, 'acme', '.state.new'), '{"version":1,');
    const store = await openStore({ dir });
    expect(await read(store)).toEqual(decisions(603));
    await fill(store, 'acme', 400, 603);
    expect(await read(store)).toEqual(decisions(1003));
    await store.close();
    fs.truncateSync(join(dir, 'acme', 'index'), 41);
    expect(await read(await openStore({ dir }))).toEqual(decisions(1003));
  });
});

describe('what no crash can do is refused', () => {
  it('records missing below a signed checkpoint', async () => {
    const { dir, entries, ends } = await crashed();
    for (const size of [(ends[0] as number) - 1, 1000, 16, 0]) {
      fs.truncateSync(entries, Math.min(size, fs.statSync(entries).size));
      expect(await refusal(dir)).toMatch(/records are missing|header/);
    }
    fs.rmSync(entries);
    expect(await refusal(dir)).toMatch(/records are missing|header/);
  });

  it('a damaged batch before whole ones', async () => {
    const { dir, entries, ends } = await crashed();
    const whole = fs.readFileSync(entries);
    for (let at = ends[0] as number; at < (ends[2] as number); at++) {
      const bent = Buffer.from(whole);
      bent[at] = (bent[at] as number) ^ 0x10;
      fs.writeFileSync(entries, bent);
      expect(await refusal(dir)).toMatch(/damaged, and whole ones follow it/);
    }
  });

  it('a changed byte that a reader meets is told, not shown', async () => {
    const { dir, entries } = await crashed();
    const bent = fs.readFileSync(entries);
    bent[40] = (bent[40] as number) ^ 0x80;
    fs.writeFileSync(entries, bent);
    const store = await openStore({ dir });
    await expect(read(store)).rejects.toMatchObject({ code: 'UNAVAILABLE' });
    await expect(exportTenant({ store, tenant: 'acme', format: 'jsonl', out: join(newDirectory(), 'export') })).rejects.toMatchObject({ code: expect.stringMatching(/^(UNAVAILABLE|INVALID_ARGUMENT)$/) });
  });

  it('a changed byte below the checkpoint, when the log is read from the beginning', async () => {
    const { dir, entries } = await crashed();
    const whole = fs.readFileSync(entries);
    for (const at of [20, 31, 500, 3000]) {
      const bent = Buffer.from(whole);
      bent[at] = (bent[at] as number) ^ 1;
      fs.writeFileSync(entries, bent);
      fs.rmSync(join(dir, 'acme', 'index'), { force: true });
      expect(await refusal(dir)).toMatch(/is damaged, and a signed checkpoint covers 600/);
    }
  });

  it('a rewritten history with right checksums, when the log is read from the beginning', async () => {
    const { dir } = await crashed();
    const forged = join(newDirectory(), 'audit');
    const store = await openStore({ dir: forged });
    for (let i = 0; i < 700; i++) store.forTenant('acme').append(decision(i, { allow: true }));
    await store.close();
    fs.copyFileSync(join(forged, 'acme', 'entries'), join(dir, 'acme', 'entries'));
    fs.rmSync(join(dir, 'acme', 'index'));
    expect(await refusal(dir)).toMatch(/no batch ends at the 600 records/);
  });

  it('a state that is missing, bent, of another log, or signed by someone else', async () => {
    const { dir } = await crashed();
    const path = join(dir, 'acme', 'state');
    const text = fs.readFileSync(path, 'utf8');
    const state = JSON.parse(text) as { checkpoint: string; frontier: string[]; offset: number };
    const other = join(newDirectory(), 'audit');
    const store = await openStore({ dir: other });
    await fill(store, 'globex', 600);
    await store.close();
    const cases: [string, RegExp][] = [
      ['', /state file is not readable/], [text.slice(0, 100), /state file is not readable/], ['{}', /state file is not readable/], ['null', /state file is not readable/],
      [JSON.stringify({ ...state, checkpoint: state.checkpoint.replace('\n600\n', '\n500\n') }), /checkpoint is not valid/],
      [JSON.stringify({ ...state, frontier: [] }), /state does not fit/],
      [JSON.stringify({ ...state, frontier: state.frontier.map(() => Buffer.alloc(32).toString('base64')) }), /frontier does not hash/],
      [JSON.stringify({ ...state, offset: 1e9 }), /records are missing/],
      [JSON.stringify({ ...state, offset: state.offset + 1 }), /damaged|does not|end/],
      [JSON.stringify({ ...state, offset: -1 }), /state file is not readable/],
      [fs.readFileSync(join(other, 'globex', 'state'), 'utf8'), /of another log/],
    ];
    for (const [content, message] of cases) {
      fs.writeFileSync(path, content);
      expect(await refusal(dir)).toMatch(message);
    }
    fs.rmSync(path);
    expect(await refusal(dir)).toMatch(/entries but no state/);
    fs.writeFileSync(path, text);
    expect(await refusal(dir)).toBe('opened');
  });

  it('a tenant cannot make a torn tail look like a whole batch by what it writes into its records', async () => {
    const { entries, ends } = await crashed();
    const whole = fs.readFileSync(entries);
    // The last batch's own bytes, smuggled in as text after a tear: without the salt's checksum they are no batch.
    const copy = join(newDirectory(), 'audit');
    const store = await openStore({ dir: copy, checkpointIntervalMs: 1e6 });
    const smuggled = whole.subarray(ends[2] as number, ends[3] as number).toString('latin1');
    // And a pattern that looks like the beginning of a batch at every fourteenth byte: looking for batches must not take it for one.
    const pattern = Buffer.alloc(14);
    pattern.writeUInt32LE(1, 2);
    pattern.writeUInt32LE(50_000, 6);
    const log = store.forTenant('acme');
    for (let i = 0; i < 40; i++) log.append(decision(i, { detail: i === 0 ? smuggled : pattern.toString('latin1').repeat(4000) }));
    await log.whenDurable(39);
    const torn = join(newDirectory(), 'audit');
    fs.cpSync(copy, torn, { recursive: true });
    fs.rmSync(join(torn, 'lock'));
    const file = join(torn, 'acme', 'entries');
    fs.truncateSync(file, fs.statSync(file).size - 1);
    expect(await refusal(torn)).toBe('opened');
  });
});

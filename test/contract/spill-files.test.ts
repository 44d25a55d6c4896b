/** Spilled objects on a real disk: what comes back is what went, nothing plain is in the file, and a file that is not this object's own write does not open. */
import { randomBytes } from 'node:crypto';
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { BulkheadError } from '../../src/base/errors.ts';
import { SpillFiles, type SpilledObject } from '../../src/objects/spill-files.ts';
import { MemoryKeyManager } from '../../src/pki/memory-key-manager.ts';
import { parseTenantName } from '../../src/base/ids.ts';

const PREFIX = 'ab'.repeat(20);
let dir: string;
let keys: MemoryKeyManager;
let asked: string[];

async function dataKey(tenant: string): Promise<{ key: Uint8Array; wrapped: Uint8Array }> {
  asked.push(tenant);
  await keys.createTenantKey(parseTenantName(tenant));
  const key = randomBytes(32);
  return { key, wrapped: await keys.wrap(parseTenantName(tenant), key, Buffer.from('spill n1')) };
}

function object(n: number, size: number, change: Partial<SpilledObject> = {}): SpilledObject {
  const id = Buffer.alloc(24, n);
  return { tenant: 'acme', fileName: `sp-${PREFIX}-${n}`, id, version: 1, size, ...change };
}

async function write(files: SpillFiles, of: SpilledObject, value: Uint8Array): Promise<void> {
  await files.write(of, { read: (into, at, length, offset) => Buffer.from(value.buffer, value.byteOffset + offset, Math.min(length, value.length - offset)).copy(into as Buffer, at) });
}

async function read(files: SpillFiles, of: SpilledObject): Promise<Buffer> {
  const parts: Buffer[] = [];
  await files.read(of, (offset, bytes, last) => {
    expect(offset).toBe(parts.reduce((sum, p) => sum + p.length, 0));
    parts.push(Buffer.from(bytes));
    expect(last).toBe(offset + bytes.length === of.size);
  });
  return Buffer.concat(parts);
}

async function code(work: Promise<unknown>): Promise<string> {
  return work.then(() => 'done', (error: unknown) => (error instanceof BulkheadError ? error.code : String(error)));
}

const path = (of: SpilledObject): string => join(dir, of.tenant, of.fileName);

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'bulkhead-spill-'));
  keys = new MemoryKeyManager();
  asked = [];
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

describe('a spilled object', () => {
  it.each([1, 4_096, 2 ** 20 - 1, 2 ** 20, 2 ** 20 + 1, 3 * 2 ** 20 + 17])('of %i octets comes back as it was, and its file holds nothing plain', async (size) => {
    const files = new SpillFiles({ dir, dataKey, reserveBytes: 0 });
    const value = Buffer.alloc(size, 'the same text over and over ');
    const of = object(1, size);
    await write(files, of, value);
    expect(readFileSync(path(of)).includes('over and over')).toBe(false);
    expect(statSync(path(of)).mode & 0o777).toBe(0o600);
    expect(statSync(join(dir, 'acme')).mode & 0o777).toBe(0o700);
    expect((await read(files, of)).equals(value)).toBe(true);
    files.close();
    expect(existsSync(dir)).toBe(false);
  });

  it('no two files are encrypted alike, and a tenant’s key is asked for once', async () => {
    const files = new SpillFiles({ dir, dataKey, reserveBytes: 0 });
    const value = Buffer.alloc(50_000);
    for (const n of [1, 2, 3]) await write(files, object(n, value.length), value);
    const bodies = [1, 2, 3].map((n) => readFileSync(path(object(n, 0))).subarray(-50_016).toString('hex'));
    expect(new Set(bodies).size).toBe(3);
    expect(asked).toEqual(['acme']);
  });

  it('the data key in the file is the head’s to open, until the tenant is deleted', async () => {
    const files = new SpillFiles({ dir, dataKey, reserveBytes: 0 });
    await write(files, object(1, 9), Buffer.alloc(9));
    const file = readFileSync(path(object(1, 9)));
    const wrapped = file.subarray(7, 7 + file.readUInt16BE(5));
    expect(await keys.unwrap(parseTenantName('acme'), wrapped, Buffer.from('spill n1'))).toHaveLength(32);
    await expect(keys.unwrap(parseTenantName('acme'), wrapped, Buffer.from('spill n2'))).rejects.toThrow('cannot be opened');
    await keys.destroyTenantKey(parseTenantName('acme'));
    await expect(keys.unwrap(parseTenantName('acme'), wrapped, Buffer.from('spill n1'))).rejects.toThrow('cannot be opened');
  });

  it('without a key from the head nothing is written, and the head is asked again the next time', async () => {
    let up = false;
    const files = new SpillFiles({ dir, reserveBytes: 0, dataKey: (tenant) => (up ? dataKey(tenant) : Promise.reject(new BulkheadError('UNAVAILABLE', 'the head is away'))) });
    expect(await code(write(files, object(1, 9), Buffer.alloc(9)))).toBe('UNAVAILABLE');
    expect(readdirSync(dir)).toEqual([]);
    up = true;
    expect(await code(write(files, object(1, 9), Buffer.alloc(9)))).toBe('done');
  });

  it('a value that became shorter, and a disk without room, leave no file', async () => {
    const files = new SpillFiles({ dir, dataKey, reserveBytes: 0 });
    expect(await code(write(files, object(1, 100), Buffer.alloc(50)))).toBe('OBJECT_LOST');
    expect(readdirSync(join(dir, 'acme'))).toEqual([]);
    const full = new SpillFiles({ dir, dataKey, reserveBytes: Number.MAX_SAFE_INTEGER });
    expect(await code(write(full, object(1, 100), Buffer.alloc(100)))).toBe('RESOURCE_EXHAUSTED');
    expect(readdirSync(dir)).toEqual([]);
  });

  it('what an earlier process left goes at the start; a tenant’s files go with it', async () => {
    mkdirSync(join(dir, 'acme'), { recursive: true });
    writeFileSync(join(dir, 'acme', `sp-${PREFIX}-1`), 'old');
    const files = new SpillFiles({ dir, dataKey, reserveBytes: 0 });
    expect(readdirSync(dir)).toEqual([]);
    await write(files, object(1, 9), Buffer.alloc(9));
    await write(files, object(1, 9, { tenant: 'globex' }), Buffer.alloc(9));
    files.forget('acme');
    expect(readdirSync(dir)).toEqual(['globex']);
    expect(await code(read(files, object(1, 9)))).toBe('OBJECT_LOST');
  });

  it('a name that the raylet did not make is refused', async () => {
    const files = new SpillFiles({ dir, dataKey, reserveBytes: 0 });
    for (const fileName of ['../x', 'sp-ab-1', `sp-${PREFIX}-1/../../x`, '']) expect(await code(write(files, object(1, 9, { fileName }), Buffer.alloc(9)))).toBe('INTERNAL');
  });
});

describe('a file that is not this object’s own write does not open', () => {
  const size = 2 ** 20 + 5;
  let files: SpillFiles;
  const own = object(1, size);
  beforeEach(async () => {
    files = new SpillFiles({ dir, dataKey, reserveBytes: 0 });
    await write(files, own, randomBytes(size));
  });

  it('another tenant’s, moved in its place', async () => {
    const theirs = object(1, size, { tenant: 'globex' });
    await write(files, theirs, randomBytes(size));
    copyFileSync(path(theirs), path(own));
    expect(await code(read(files, own))).toBe('OBJECT_LOST');
    expect(await code(read(files, theirs))).toBe('done');
  });

  it('another tenant’s, even under the same key', async () => {
    const one = await dataKey('acme');
    const same = new SpillFiles({ dir, dataKey: async () => one, reserveBytes: 0 });
    const theirs = object(1, size, { tenant: 'globex' });
    await write(same, own, randomBytes(size));
    await write(same, theirs, randomBytes(size));
    renameSync(path(theirs), path(own));
    expect(await code(read(same, own))).toBe('OBJECT_LOST');
  });

  it('another object’s of the same tenant', async () => {
    await write(files, object(2, size), randomBytes(size));
    copyFileSync(path(object(2, size)), path(own));
    expect(await code(read(files, own))).toBe('OBJECT_LOST');
  });

  it('an older write of the same object', async () => {
    expect(await code(read(files, { ...own, version: 2 }))).toBe('OBJECT_LOST');
    expect(await code(read(files, own))).toBe('done');
  });

  it('of another size, cut, or longer at the end of a piece', async () => {
    expect(await code(read(files, { ...own, size: size - 1 }))).toBe('OBJECT_LOST');
    // As if the first piece were the last.
    expect(await code(read(files, { ...own, size: 2 ** 20 }))).toBe('OBJECT_LOST');
    truncateSync(path(own), statSync(path(own)).size - 1);
    expect(await code(read(files, own))).toBe('OBJECT_LOST');
  });

  it('with pieces exchanged', async () => {
    const twice = object(3, 2 * 2 ** 20);
    await write(files, twice, randomBytes(2 * 2 ** 20));
    const file = readFileSync(path(twice));
    const piece = 2 ** 20 + 16;
    const [a, b] = [file.subarray(-2 * piece, -piece), file.subarray(-piece)];
    writeFileSync(path(twice), Buffer.concat([file.subarray(0, -2 * piece), b, a]));
    expect(await code(read(files, twice))).toBe('OBJECT_LOST');
  });

  it('of another process, whose key is another', async () => {
    const before = readFileSync(path(own));
    const next = new SpillFiles({ dir, dataKey, reserveBytes: 0 });
    await write(next, own, randomBytes(size));
    writeFileSync(path(own), before);
    expect(await code(read(next, own))).toBe('OBJECT_LOST');
  });

  it('that is missing', async () => {
    rmSync(path(own));
    expect(await code(read(files, own))).toBe('OBJECT_LOST');
  });

  it('with any octet changed: header, wrapped key, salt, value, tag', async () => {
    const good = readFileSync(path(own));
    const header = 7 + good.readUInt16BE(5) + 32;
    for (const at of [0, 4, 5, 6, 7, 30, header - 33, header - 32, header - 1, header, header + 1_000, header + 2 ** 20, header + 2 ** 20 + 15, header + 2 ** 20 + 16, good.length - 16, good.length - 1]) {
      const bad = Buffer.from(good);
      bad[at] = (bad[at] as number) ^ 1;
      writeFileSync(path(own), bad);
      expect(await code(read(files, own)), `octet ${at}`).toBe('OBJECT_LOST');
    }
    writeFileSync(path(own), good);
    expect(await code(read(files, own))).toBe('done');
  });
});

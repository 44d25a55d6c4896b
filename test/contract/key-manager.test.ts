/** One suite for every key manager: memory and encrypted file now, OpenBao when it comes. */
import { spawn } from 'node:child_process';
import { createPublicKey, verify } from 'node:crypto';
import { once } from 'node:events';
import { chmod, copyFile, mkdtemp, readFile, readdir, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { parseTenantName } from '../../src/base/ids.ts';
import { EncryptedFileKeyManager, MemoryKeyManager, type KeyManager } from '../../src/pki/pki.ts';

const acme = parseTenantName('acme');
const globex = parseTenantName('globex');
const dataKey = Buffer.from('0123456789abcdef0123456789abcdef');
const aad = Buffer.from('object 7, version 1');
const dirs: string[] = [];

async function freshDir(): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'bulkhead-keys-'));
  dirs.push(dir);
  return dir;
}

afterEach(async () => {
  for (const dir of dirs.splice(0)) await rm(dir, { recursive: true });
});

const managers: readonly [string, () => Promise<KeyManager>][] = [
  ['memory', async () => new MemoryKeyManager()],
  ['encrypted file', async () => EncryptedFileKeyManager.open(await freshDir())],
];

describe.each(managers)('key manager: %s', (_name, open) => {
  test('signs for certificates and for JWTs, under the public key it names', async () => {
    const keys = await open();
    const spki = await keys.generateKey('ca-root');
    expect(await keys.publicKey('ca-root')).toEqual(spki);
    const publicKey = createPublicKey({ key: Buffer.from(spki), format: 'der', type: 'spki' });
    expect(publicKey.asymmetricKeyDetails?.namedCurve).toBe('prime256v1');
    const bytes = Buffer.from('to be signed');
    expect(verify('sha256', bytes, { key: publicKey, dsaEncoding: 'der' }, await keys.sign('ca-root', bytes, 'asn1'))).toBe(true);
    const jws = await keys.sign('ca-root', bytes, 'jws');
    expect(jws.length).toBe(64);
    expect(verify('sha256', bytes, { key: publicKey, dsaEncoding: 'ieee-p1363' }, jws)).toBe(true);
  });

  test('a key id is used once; unknown keys do not sign; deleted keys are gone', async () => {
    const keys = await open();
    const first = await keys.generateKey('k');
    await expect(keys.generateKey('k')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect(await keys.publicKey('k')).toEqual(first);
    await keys.deleteKey('k');
    await keys.deleteKey('k');
    expect(await keys.publicKey('k')).toBeUndefined();
    await expect(keys.sign('k', Buffer.of(1), 'asn1')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect(await keys.generateKey('k')).not.toEqual(first);
  });

  test.each(['', '../x', 'A', 'a/b', '-a', 'a'.repeat(64), 'a\n'])('refuses the key id %j', async (id) => {
    await expect((await open()).generateKey(id)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  test('what is wrapped for a tenant opens with the same tenant and aad only', async () => {
    const keys = await open();
    await keys.createTenantKey(acme);
    await keys.createTenantKey(globex);
    const wrapped = await keys.wrap(acme, dataKey, aad);
    expect(Buffer.from(await keys.unwrap(acme, wrapped, aad))).toEqual(dataKey);
    expect(Buffer.from(wrapped).includes(dataKey)).toBe(false);
    expect(await keys.wrap(acme, dataKey, aad)).not.toEqual(wrapped);
    await expect(keys.unwrap(globex, wrapped, aad)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(keys.unwrap(acme, wrapped, Buffer.from('object 8, version 1'))).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  test('every altered byte and every shorter length of a wrapped key is refused, with one answer', async () => {
    const keys = await open();
    await keys.createTenantKey(acme);
    const wrapped = await keys.wrap(acme, dataKey, aad);
    const answers = new Set<string>();
    for (let i = 0; i < wrapped.length; i++) {
      const altered = Uint8Array.from(wrapped);
      altered[i] = (altered[i] ?? 0) ^ 0x10;
      for (const bad of [altered, wrapped.subarray(0, i)]) answers.add(await keys.unwrap(acme, bad, aad).then(() => 'opened', (error: Error) => error.message));
    }
    expect([...answers]).toEqual([expect.stringContaining('cannot be opened')]);
  });

  test('a tenant without a key wraps nothing: keys are made on purpose only', async () => {
    const keys = await open();
    await expect(keys.wrap(acme, dataKey, aad)).rejects.toMatchObject({ code: 'UNAVAILABLE' });
    await expect(keys.rotateTenantKey(acme)).rejects.toMatchObject({ code: 'UNAVAILABLE' });
  });

  test('rotation keeps earlier wrapped keys readable', async () => {
    const keys = await open();
    await keys.createTenantKey(acme);
    const before = await keys.wrap(acme, dataKey, aad);
    await keys.rotateTenantKey(acme);
    await keys.createTenantKey(acme);
    const after = await keys.wrap(acme, dataKey, aad);
    expect(Buffer.from(await keys.unwrap(acme, before, aad))).toEqual(dataKey);
    expect(Buffer.from(await keys.unwrap(acme, after, aad))).toEqual(dataKey);
    expect(Buffer.from(before).subarray(1, 17)).not.toEqual(Buffer.from(after).subarray(1, 17));
  });

  test('destroying a tenant key is for ever, also after the tenant is made again', async () => {
    const keys = await open();
    await keys.createTenantKey(acme);
    await keys.createTenantKey(globex);
    const wrapped = await keys.wrap(acme, dataKey, aad);
    const other = await keys.wrap(globex, dataKey, aad);
    await keys.destroyTenantKey(acme);
    await keys.destroyTenantKey(acme);
    await expect(keys.wrap(acme, dataKey, aad)).rejects.toMatchObject({ code: 'UNAVAILABLE' });
    await keys.createTenantKey(acme);
    await expect(keys.unwrap(acme, wrapped, aad)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect(Buffer.from(await keys.unwrap(globex, other, aad))).toEqual(dataKey);
  });

  test('only keys are wrapped, not data', async () => {
    const keys = await open();
    await keys.createTenantKey(acme);
    await expect(keys.wrap(acme, Buffer.alloc(4_097), aad)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});

describe('the encrypted file', () => {
  test('keys survive a restart; many changes at once lose none', async () => {
    const dir = await freshDir();
    const keys = await EncryptedFileKeyManager.open(dir);
    const made = await Promise.all(['a', 'b', 'c', 'd'].map((id) => keys.generateKey(id)));
    await keys.createTenantKey(acme);
    const wrapped = await keys.wrap(acme, dataKey, aad);
    const again = await EncryptedFileKeyManager.open(dir);
    expect(await Promise.all(['a', 'b', 'c', 'd'].map((id) => again.publicKey(id)))).toEqual(made);
    expect(Buffer.from(await again.unwrap(acme, wrapped, aad))).toEqual(dataKey);
  });

  test('no key stands in the file, and only we may read it', async () => {
    const dir = await freshDir();
    const keys = await EncryptedFileKeyManager.open(dir);
    const spki = await keys.generateKey('a');
    for (const name of await readdir(dir)) {
      expect((await stat(join(dir, name))).mode & 0o777).toBe(0o600);
      const content = await readFile(join(dir, name));
      expect(content.includes(Buffer.from(spki)) || content.includes('signing') || content.includes('PRIVATE')).toBe(false);
    }
  });

  test('every altered byte of the key file and of the master key is detected', async () => {
    const dir = await freshDir();
    const keys = await EncryptedFileKeyManager.open(dir);
    await keys.generateKey('a');
    for (const name of await readdir(dir)) {
      const path = join(dir, name);
      const good = await readFile(path);
      for (let i = 0; i < good.length; i += name === 'keys.enc' ? 5 : 1) {
        const bad = Buffer.from(good);
        bad[i] = (bad[i] ?? 0) ^ 1;
        await writeFile(path, bad);
        await expect(EncryptedFileKeyManager.open(dir), `${name} byte ${i}`).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
      }
      for (const bad of [Buffer.alloc(0), good.subarray(0, good.length - 1), Buffer.concat([good, Buffer.of(0)])]) {
        await writeFile(path, bad);
        await expect(EncryptedFileKeyManager.open(dir)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
      }
      await writeFile(path, good);
    }
    expect(await (await EncryptedFileKeyManager.open(dir)).publicKey('a')).toBeDefined();
  });

  test.each([0o640, 0o604, 0o620, 0o666])('refuses files of mode %o and says the command that fixes it', async (mode) => {
    const dir = await freshDir();
    await EncryptedFileKeyManager.open(dir);
    for (const name of await readdir(dir)) {
      await chmod(join(dir, name), mode);
      await expect(EncryptedFileKeyManager.open(dir)).rejects.toThrow(`chmod 600 '${join(dir, name)}'`);
      await chmod(join(dir, name), 0o600);
    }
  });

  test('refuses a directory that others can write, a symbolic link to the keys, and a lost key file beside its master key', async () => {
    const dir = await freshDir();
    await EncryptedFileKeyManager.open(dir);
    await chmod(dir, 0o770);
    await expect(EncryptedFileKeyManager.open(dir)).rejects.toThrow('chmod 700');
    await chmod(dir, 0o700);
    const elsewhere = join(await freshDir(), 'keys.enc');
    await copyFile(join(dir, 'keys.enc'), elsewhere);
    await rm(join(dir, 'keys.enc'));
    await symlink(elsewhere, join(dir, 'keys.enc'));
    await expect(EncryptedFileKeyManager.open(dir)).rejects.toThrow('symbolic link');
    await rm(join(dir, 'keys.enc'));
    await expect(EncryptedFileKeyManager.open(dir)).rejects.toThrow('is missing');
  });

  test('a second writer on the same directory is noticed before anything is lost', async () => {
    const dir = await freshDir();
    const first = await EncryptedFileKeyManager.open(dir);
    const second = await EncryptedFileKeyManager.open(dir);
    await second.generateKey('b');
    await expect(first.generateKey('a')).rejects.toThrow('one head per data directory');
    expect(await (await EncryptedFileKeyManager.open(dir)).publicKey('b')).toBeDefined();
  });

  test('an old copy of the key file does not bring a destroyed key back', async () => {
    const dir = await freshDir();
    const keys = await EncryptedFileKeyManager.open(dir);
    await keys.createTenantKey(acme);
    const copy = await readFile(join(dir, 'keys.enc'));
    await keys.destroyTenantKey(acme);
    await writeFile(join(dir, 'keys.enc'), copy);
    await expect(EncryptedFileKeyManager.open(dir)).rejects.toThrow('master key');
  });

  test('killed at any moment, it keeps every key that it had answered with', async () => {
    const dir = await freshDir();
    const module = new URL('../../src/pki/encrypted-file-key-manager.ts', import.meta.url).href;
    const script = `import { EncryptedFileKeyManager } from '${module}';
      const keys = await EncryptedFileKeyManager.open(process.argv[1]);
      for (let i = 0; ; i++) {
        const id = 'k' + process.pid + '-' + i;
        await keys.generateKey(id);
        await keys.createTenantKey('t' + i);
        if (i % 3 === 2) await keys.destroyTenantKey('t' + i);
        process.stdout.write(id + '\\n');
      }`;
    const answered: string[] = [];
    for (const lines of [3, 7, 12]) {
      const child = spawn(process.execPath, ['--input-type=module', '-e', script, dir], { stdio: ['ignore', 'pipe', 'inherit'] });
      let text = '';
      child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
        text += chunk;
        if (text.split('\n').length > lines) child.kill('SIGKILL');
      });
      await once(child, 'close');
      answered.push(...text.split('\n').slice(0, -1));
      const keys = await EncryptedFileKeyManager.open(dir);
      for (const id of answered) expect(await keys.publicKey(id), id).toBeDefined();
      expect((await readdir(dir)).filter((name) => name.startsWith('master-')).length).toBe(1);
    }
    expect(answered.length).toBeGreaterThanOrEqual(22);
  }, 30_000);

  test('a crash between the new master key and the new key file loses nothing', async () => {
    const dir = await freshDir();
    const keys = await EncryptedFileKeyManager.open(dir);
    const spki = await keys.generateKey('a');
    await writeFile(join(dir, 'master-0011223344556677.key'), Buffer.alloc(32, 7), { mode: 0o600 });
    expect(await (await EncryptedFileKeyManager.open(dir)).publicKey('a')).toEqual(spki);
    expect((await readdir(dir)).length).toBe(2);
  });
});

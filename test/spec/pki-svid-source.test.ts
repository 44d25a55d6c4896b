/** The identity of a process: renewal at half life, failure and retry, refusal of wrong answers, and profiles on disk. */
import { chmod, mkdtemp, readFile, readdir, rename, rm, stat, symlink, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inspect } from 'node:util';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { BulkheadError } from '../../src/base/errors.ts';
import { SVID_TTL_MS } from '../../src/base/limits.ts';
import { SvidSource, TrustBundle, publicKeyFromCsr, readProfile, requestSvid, svidMaterial, writeProfile, writeProfileSvid, type RenewSvid, type SvidMaterial } from '../../src/pki/pki.ts';
import { id, random, testCluster, trustDomain, type TestCluster } from './pki-cluster.ts';

const ME = 'tenant/acme/service/etl';
const realClock = { nowMs: () => Date.now() };

/** What the head does with a CSR. */
const renewBy = (cluster: TestCluster, path = ME): RenewSvid => async (csr) => ({
  ...(await cluster.ca.issueX509Svid({ spiffeId: id(path), publicKeySpkiDer: publicKeyFromCsr(csr) })), trustBundlePem: cluster.ca.trustBundlePem(),
});

async function cluster(): Promise<TestCluster> {
  return testCluster({ clock: realClock });
}

describe('an SVID source', () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  async function start(own: TestCluster, options: Partial<ConstructorParameters<typeof SvidSource>[0]> = {}) {
    const initial = await requestSvid({ trustDomain, spiffeId: id(ME), request: renewBy(own) });
    const errors: string[] = [];
    const source = new SvidSource({ initial, renew: renewBy(own), clock: realClock, random, onError: (error, attempt) => errors.push(`${attempt} ${(error as Error).message}`), ...options });
    return { initial, source, errors };
  }

  test('renews between 40 % and 60 % of its life, with a new key, and tells its listeners', async () => {
    const { initial, source } = await start(await cluster());
    await using _ = source;
    const seen: string[] = [];
    source.onChange((svid) => seen.push(svid.serial));
    await vi.advanceTimersByTimeAsync(SVID_TTL_MS * 0.38);
    expect(source.current()).toBe(initial);
    await vi.advanceTimersByTimeAsync(SVID_TTL_MS * 0.25);
    expect(source.current().serial).not.toBe(initial.serial);
    expect(source.current().privateKeyPem).not.toBe(initial.privateKeyPem);
    expect(source.current().notAfterMs).toBeGreaterThan(initial.notAfterMs);
    expect(seen).toEqual([source.current().serial]);
    await vi.advanceTimersByTimeAsync(SVID_TTL_MS * 3);
    expect(seen.length).toBeGreaterThanOrEqual(4);
  });

  test('keeps the SVID in force while renewals fail, tries again with growing pauses, and recovers', async () => {
    const own = await cluster();
    let down = true;
    const { initial, source, errors } = await start(own, { renew: (csr) => (down ? Promise.reject(new Error('head is away')) : renewBy(own)(csr)) });
    await using _ = source;
    await vi.advanceTimersByTimeAsync(SVID_TTL_MS * 0.7);
    expect(source.current()).toBe(initial);
    expect(errors.length).toBeGreaterThan(5);
    expect(errors.length).toBeLessThan(120);
    expect(errors.slice(0, 3)).toEqual(['1 head is away', '2 head is away', '3 head is away']);
    down = false;
    await vi.advanceTimersByTimeAsync(31_000);
    expect(source.current().serial).not.toBe(initial.serial);
    const before = errors.length;
    await vi.advanceTimersByTimeAsync(SVID_TTL_MS);
    expect(errors.length).toBe(before);
  });

  test('refuses an answer for another identity, another key, another cluster, or one that is no chain', async () => {
    const own = await cluster();
    const other = await cluster();
    const { initial, source } = await start(own);
    await using _ = source;
    let renew: RenewSvid = renewBy(own);
    const strict = new SvidSource({ initial, renew: (csr) => renew(csr), clock: realClock, random });
    await using __ = strict;
    const earlier = await renewBy(own)((await import('../../src/pki/pki.ts')).createCsr(initial.privateKey));
    for (const [bad, why] of [
      [renewBy(own, 'system/admin'), 'another identity'],
      [async () => earlier, 'another key'],
      [renewBy(other), 'shares no root'],
      [async (csr: Uint8Array) => ({ ...(await renewBy(other)(csr)), trustBundlePem: own.ca.trustBundlePem() }), 'no chain'],
      [async (csr: Uint8Array) => ({ ...(await renewBy(own)(csr)), certificateChainPem: 'x' }), 'not valid PEM'],
      [async (csr: Uint8Array) => ({ ...(await renewBy(own)(csr)), trustBundlePem: other.ca.trustBundlePem() }), 'no chain'],
    ] as [RenewSvid, string][]) {
      renew = bad;
      await expect(strict.renewNow()).rejects.toThrow(why);
      expect(strict.current()).toBe(initial);
    }
    renew = renewBy(own);
    expect((await strict.renewNow()).serial).not.toBe(initial.serial);
  });

  test('takes a newer bundle of its cluster, never an older or a foreign one, and keeps JWT keys across renewals', async () => {
    const own = await cluster();
    const { source } = await start(own);
    await using _ = source;
    let changes = 0;
    source.onChange(() => changes++);
    const pushed = (): TrustBundle => TrustBundle.fromJwks(trustDomain, own.ca.trustBundleJwks());
    const first = pushed();
    expect([source.updateBundle(first), source.updateBundle(first), source.bundle().jwtKeys.size]).toEqual([true, false, 1]);
    await own.ca.prepareRoot();
    expect(source.updateBundle(pushed())).toBe(true);
    expect(source.updateBundle(first)).toBe(false);
    expect([source.bundle().roots.length, source.current().trustBundlePem, changes]).toEqual([2, own.ca.trustBundlePem(), 2]);
    const foreign = (await cluster()).ca.bundle();
    expect(() => source.updateBundle(foreign)).toThrow('another cluster');
    await source.renewNow();
    expect([source.bundle().jwtKeys.size, source.bundle().roots.length]).toEqual([1, 2]);
  });

  test('renews at once when its root is retired under it, and is whole again', async () => {
    const own = await cluster();
    const { source, initial } = await start(own);
    await using _ = source;
    const pushed = (): TrustBundle => TrustBundle.fromJwks(trustDomain, own.ca.trustBundleJwks());
    await own.ca.prepareRoot();
    source.updateBundle(pushed());
    await own.ca.activateRoot();
    await own.ca.retireRoots();
    expect(source.updateBundle(pushed())).toBe(true);
    expect([source.bundle().roots.length, source.current().leadsTo(source.bundle())]).toEqual([1, false]);
    await vi.advanceTimersByTimeAsync(1);
    expect([source.current().serial === initial.serial, source.current().leadsTo(source.bundle()), source.current().trustBundlePem]).toEqual([false, true, own.ca.trustBundlePem()]);
  });

  test.each([[2_000, 0, 200], [SVID_TTL_MS, 50 * 60_000, 4]])('does not renew in a loop with a life of %i ms and a clock %i ms ahead', async (ttlMs, aheadMs, atMost) => {
    const own = await cluster();
    let calls = 0;
    const renew: RenewSvid = async (csr) => {
      calls++;
      return { ...(await own.ca.issueX509Svid({ spiffeId: id(ME), publicKeySpkiDer: publicKeyFromCsr(csr), ttlMs })), trustBundlePem: own.ca.trustBundlePem() };
    };
    const initial = await requestSvid({ trustDomain, spiffeId: id(ME), request: renew });
    await using source = new SvidSource({ initial, renew, random, clock: { nowMs: () => Date.now() + aheadMs } });
    await vi.advanceTimersByTimeAsync(60_000);
    expect(source.current().serial).not.toBe(initial.serial);
    expect(calls).toBeLessThanOrEqual(atMost);
  });

  test('shows its key to nobody who prints or serialises it', async () => {
    const { source, initial } = await start(await cluster());
    await using _ = source;
    const secret = initial.privateKeyPem.split('\n')[1] as string;
    for (const text of [JSON.stringify(initial), inspect(initial, { depth: 9, showHidden: true }), inspect(source, { depth: 9 }), JSON.stringify({ ...initial }), String(initial)]) expect(text).not.toContain(secret);
  });

  test('renews once when asked twice at a time, and not at all once it is disposed', async () => {
    const own = await cluster();
    let calls = 0;
    const { source, initial } = await start(own, { renew: (csr) => (calls++, renewBy(own)(csr)) });
    const [a, b] = await Promise.all([source.renewNow(), source.renewNow()]);
    expect([a === b, calls]).toEqual([true, 1]);
    await source[Symbol.asyncDispose]();
    await vi.advanceTimersByTimeAsync(SVID_TTL_MS * 2);
    expect([calls, vi.getTimerCount()]).toEqual([1, 0]);
    await expect(source.renewNow()).rejects.toMatchObject({ code: 'UNAVAILABLE' });
    expect(source.current()).not.toBe(initial);
  });

  test('a first identity must be the one that was asked for', async () => {
    const own = await cluster();
    await expect(requestSvid({ trustDomain, spiffeId: id('system/admin'), request: renewBy(own) })).rejects.toThrow('another identity');
  });
});

describe('a profile', () => {
  let dir: string;
  let svid: SvidMaterial;
  let own: TestCluster;
  beforeEach(async () => {
    dir = join(await mkdtemp(join(tmpdir(), 'bulkhead-profile-')), 'profile');
    own = await cluster();
    svid = await requestSvid({ trustDomain, spiffeId: id(ME), request: renewBy(own) });
    await writeProfile(dir, { address: '127.0.0.1:7420', gateway: undefined, svid });
  });
  afterEach(() => rm(join(dir, '..'), { recursive: true }));

  test('reads back what was written, with a key that only its owner can read', async () => {
    const read = await readProfile(dir);
    expect(read).toMatchObject({ address: '127.0.0.1:7420', gateway: undefined });
    expect(read.svid).toEqual(svid);
    expect(read.svid.privateKeyPem).toBe(svid.privateKeyPem);
    expect((await readdir(dir)).toSorted()).toEqual(['bundle.pem', 'key.pem', 'profile.json', 'svid.pem']);
    expect((await stat(join(dir, 'key.pem'))).mode & 0o777).toBe(0o600);
    expect((await stat(dir)).mode & 0o777).toBe(0o700);
  });

  test.each([0o640, 0o604, 0o660, 0o644])('is refused with a key of mode %o, with the command that fixes it', async (mode) => {
    await chmod(join(dir, 'key.pem'), mode);
    await expect(readProfile(dir)).rejects.toThrow(`chmod 600 '${join(dir, 'key.pem')}'`);
  });

  test.each(['bundle.pem', 'svid.pem', 'profile.json'])('is refused when others can write its %s', async (name) => {
    await chmod(join(dir, name), 0o666);
    await expect(readProfile(dir)).rejects.toThrow('chmod 644');
  });

  test('is refused with a symbolic link for a key, and with any file missing', async () => {
    await rename(join(dir, 'key.pem'), join(dir, 'elsewhere.pem'));
    await symlink(join(dir, 'elsewhere.pem'), join(dir, 'key.pem'));
    await expect(readProfile(dir)).rejects.toThrow('symbolic link');
    await rm(join(dir, 'key.pem'));
    await expect(readProfile(dir)).rejects.toThrow('key.pem is missing');
    await expect(readProfile(join(dir, 'nothing'))).rejects.toThrow('is not a profile');
  });

  test.each<[string, (json: Record<string, unknown>) => unknown]>([
    ['an unknown member', (json) => ({ ...json, insecure: true })],
    ['another version', (json) => ({ ...json, version: 2 })],
    ['an address without a port', (json) => ({ ...json, address: 'localhost' })],
    ['an address that is a URL', (json) => ({ ...json, address: 'https://localhost:1' })],
    ['a gateway without TLS', (json) => ({ ...json, gateway: 'http://localhost:1' })],
    ['another identity', (json) => ({ ...json, spiffeId: 'spiffe://cluster.test/system/admin' })],
    ['another trust domain', (json) => ({ ...json, trustDomain: 'other.test' })],
    ['a list', () => []],
  ])('is refused with a profile.json that has %s', async (_what, change) => {
    const path = join(dir, 'profile.json');
    await writeFile(path, JSON.stringify(change(JSON.parse(await readFile(path, 'utf8')) as Record<string, unknown>)));
    await expect(readProfile(dir)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  test.each(['key.pem', 'svid.pem', 'bundle.pem', 'profile.json'])('is refused with a damaged %s, and the error shows nothing of a key', async (name) => {
    const path = join(dir, name);
    const text = await readFile(path, 'utf8');
    for (const bad of ['', 'x', text.slice(0, text.length / 2), text.replace(/[A-Za-z0-9+/]{20}\n/, '!!!!\n').replace(/^\{/, '')]) {
      await writeFile(path, bad);
      const error: unknown = await readProfile(dir).catch((e: unknown) => e);
      expect(error).toBeInstanceOf(BulkheadError);
      expect(JSON.stringify([(error as Error).message, String((error as Error).cause)])).not.toContain(svid.privateKeyPem.split('\n')[1]?.slice(0, 30));
    }
  });

  test('is refused with the certificate of another key', async () => {
    const other = await requestSvid({ trustDomain, spiffeId: id(ME), request: renewBy(own) });
    await writeFile(join(dir, 'svid.pem'), other.certificateChainPem);
    await expect(readProfile(dir)).rejects.toThrow('another key');
    expect(() => svidMaterial({ trustDomain, keyPem: svid.privateKeyPem, certificateChainPem: other.certificateChainPem, trustBundlePem: svid.trustBundlePem })).toThrow(BulkheadError);
  });

  test('written and read by several processes at once is always one identity with its own key', async () => {
    const next = await Promise.all(Array.from({ length: 4 }, () => requestSvid({ trustDomain, spiffeId: id(ME), request: renewBy(own) })));
    const reads: Promise<unknown>[] = [];
    await Promise.all(next.map(async (material) => {
      reads.push(readProfile(dir));
      await writeProfileSvid(dir, material);
      reads.push(readProfile(dir));
    }));
    await Promise.all(reads);
    expect(next.map((m) => m.serial)).toContain((await readProfile(dir)).svid.serial);
    expect((await readdir(dir)).toSorted()).toEqual(['bundle.pem', 'key.pem', 'profile.json', 'svid.pem']);
  });

  test('a lock that a dead process left does not hold up for ever', async () => {
    await writeFile(join(dir, '.lock'), '');
    const long = new Date(Date.now() - 60_000);
    await utimes(join(dir, '.lock'), long, long);
    const next = await requestSvid({ trustDomain, spiffeId: id(ME), request: renewBy(own) });
    await writeProfileSvid(dir, next);
    expect((await readProfile(dir)).svid.serial).toBe(next.serial);
  });

  test('renewed files replace the old ones; a crash between them is not seen', async () => {
    const next = await requestSvid({ trustDomain, spiffeId: id(ME), request: renewBy(own) });
    await writeProfileSvid(dir, next);
    expect((await readProfile(dir)).svid.serial).toBe(next.serial);
    // As a crash after the second write leaves it: the journal and a new key beside an old certificate.
    const last = await requestSvid({ trustDomain, spiffeId: id(ME), request: renewBy(own) });
    await writeFile(join(dir, '.renewal.json'), JSON.stringify({ keyPem: last.privateKeyPem, certificateChainPem: last.certificateChainPem, trustBundlePem: last.trustBundlePem }), { mode: 0o600 });
    await writeFile(join(dir, 'key.pem'), last.privateKeyPem);
    expect((await readProfile(dir)).svid.serial).toBe(last.serial);
    await writeProfileSvid(dir, last);
    expect((await readdir(dir)).includes('.renewal.json')).toBe(false);
  });
});

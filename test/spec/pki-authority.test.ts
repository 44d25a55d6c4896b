/** The authority against oracles that share no code with it: the openssl command, @peculiar/x509, Node's TLS. And its life: restart, rotation, failure. */
import 'reflect-metadata';
import { execFileSync } from 'node:child_process';
import { createHash, createPublicKey, generateKeyPairSync, webcrypto } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createServer, type AddressInfo } from 'node:net';
import { TLSSocket, connect, createSecureContext } from 'node:tls';
import * as peculiar from '@peculiar/x509';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { BulkheadError } from '../../src/base/errors.ts';
import { CLOCK_SKEW_MS, SVID_TTL_MS } from '../../src/base/limits.ts';
import { MAX_SVID_TTL_MS } from '../../src/pki/core/acceptable.ts';
import { isAuthorityDue, renewalTimeMs, retryDelayMs } from '../../src/pki/core/rotation.ts';
import { CertificateAuthority, EncryptedFileKeyManager, MemoryKeyManager, PeerVerifier, Revocations, TrustBundle, createCsr, fileStorage, publicKeyFromCsr } from '../../src/pki/pki.ts';
import { verifyChain } from '../../src/pki/peer-verifier.ts';
import { DAY_MS, id, newKey, random, testCluster, trustDomain } from './pki-cluster.ts';

peculiar.cryptoProvider.set(webcrypto as never);

async function inTemporaryDir<T>(use: (dir: string) => Promise<T>): Promise<T> {
  const dir = await mkdtemp(join(tmpdir(), 'bulkhead-pki-'));
  try {
    return await use(dir);
  } finally {
    await rm(dir, { recursive: true });
  }
}

describe('a server’s certificate', () => {
  test('is accepted by openssl under its names, and by our verifier for nobody', async () => {
    const { ca, clock } = await testCluster();
    const publicKeySpkiDer = publicKeyFromCsr(createCsr(newKey()));
    for (const [path, names] of [['node/n1', ['raylet.cluster.test', 'n1.raylet.cluster.test']], ['system/head', ['head.cluster.test']]] as const) {
      const made = await ca.issueServerCertificate({ spiffeId: id(path), publicKeySpkiDer, ttlMs: SVID_TTL_MS });
      expect(made.dnsNames).toEqual(names);
      const leaf = new peculiar.X509Certificate(Uint8Array.from(made.chainDer[0] as Uint8Array));
      expect(leaf.getExtension(peculiar.SubjectAlternativeNameExtension)?.names.toJSON()).toEqual(names.map((value) => ({ type: 'dns', value })));
      expect(leaf.getExtension(peculiar.ExtendedKeyUsageExtension)?.usages).toEqual(['1.3.6.1.5.5.7.3.1']);
      await inTemporaryDir(async (dir) => {
        await writeFile(join(dir, 'root.pem'), ca.trustBundlePem());
        await writeFile(join(dir, 'chain.pem'), made.certificateChainPem);
        const verify = (...more: string[]): string => execFileSync('openssl', ['verify', '-x509_strict', ...more, '-CAfile', 'root.pem', '-untrusted', 'chain.pem', 'chain.pem'], { cwd: dir, encoding: 'utf8', stdio: 'pipe' });
        for (const name of names) expect(verify('-purpose', 'sslserver', '-verify_hostname', name)).toBe('chain.pem: OK\n');
        expect(() => verify('-purpose', 'sslserver', '-verify_hostname', 'other.cluster.test')).toThrow();
        expect(() => verify('-purpose', 'sslclient')).toThrow();
      });
      expect(() => verifyChain(made.chainDer, ca.bundle(), clock.nowMs())).toThrow('not for exactly server and client authentication');
    }
  });

  test('is not made for a user, a service or a job', async () => {
    const { ca } = await testCluster();
    const publicKeySpkiDer = publicKeyFromCsr(createCsr(newKey()));
    for (const path of ['tenant/acme/user/ana', 'tenant/acme/service/etl']) await expect(ca.issueServerCertificate({ spiffeId: id(path), publicKeySpkiDer, ttlMs: SVID_TTL_MS })).rejects.toThrow('only nodes and components');
  });
});

describe('an issued SVID', () => {
  test('is accepted by openssl -x509_strict as server and as client, and by ours', async () => {
    const { ca, issue, clock } = await testCluster();
    const svid = await issue('tenant/acme/user/ana');
    await inTemporaryDir(async (dir) => {
      await writeFile(join(dir, 'root.pem'), ca.trustBundlePem());
      await writeFile(join(dir, 'chain.pem'), svid.certificateChainPem);
      for (const purpose of ['sslserver', 'sslclient']) {
        const out = execFileSync('openssl', ['verify', '-x509_strict', '-check_ss_sig', '-purpose', purpose, '-CAfile', 'root.pem', '-untrusted', 'chain.pem', 'chain.pem'], { cwd: dir, encoding: 'utf8' });
        expect(out).toBe('chain.pem: OK\n');
      }
    });
    expect(verifyChain(svid.chainDer, ca.bundle(), clock.nowMs())).toMatchObject({ id: 'spiffe://cluster.test/tenant/acme/user/ana', serial: svid.serial, notAfterMs: svid.notAfterMs });
  });

  test('reads in @peculiar/x509 exactly as it was meant', async () => {
    const { ca, issue } = await testCluster();
    const svid = await issue('node/n1');
    const [leaf, intermediate] = svid.chainDer.map((der) => new peculiar.X509Certificate(Uint8Array.from(der)));
    const root = new peculiar.X509Certificate(ca.trustBundlePem());
    expect(leaf?.getExtension(peculiar.SubjectAlternativeNameExtension)?.names.toJSON()).toEqual([{ type: 'url', value: 'spiffe://cluster.test/node/n1' }]);
    expect(leaf?.getExtension(peculiar.KeyUsagesExtension)).toMatchObject({ usages: peculiar.KeyUsageFlags.digitalSignature, critical: true });
    expect(leaf?.getExtension(peculiar.BasicConstraintsExtension)).toMatchObject({ ca: false, critical: true });
    expect(leaf?.getExtension(peculiar.ExtendedKeyUsageExtension)?.usages).toEqual(['1.3.6.1.5.5.7.3.1', '1.3.6.1.5.5.7.3.2']);
    expect(leaf?.subject).toBe('O=Bulkhead');
    expect(leaf?.serialNumber).toBe(svid.serial);
    expect(intermediate?.getExtension(peculiar.BasicConstraintsExtension)).toMatchObject({ ca: true, pathLength: 0, critical: true });
    expect(root.getExtension(peculiar.BasicConstraintsExtension)).toMatchObject({ ca: true, pathLength: 1, critical: true });
    expect(root.getExtension(peculiar.KeyUsagesExtension)?.usages).toBe(peculiar.KeyUsageFlags.keyCertSign | peculiar.KeyUsageFlags.cRLSign);
    expect(await leaf?.verify({ publicKey: await intermediate!.publicKey.export() })).toBe(true);
    expect(await intermediate?.verify({ publicKey: await root.publicKey.export() })).toBe(true);
    expect(leaf?.extensions.length).toBe(6);
  });

  test('carries both ends of a TLS 1.3 connection, and each end verifies the other from what the handshake showed', async () => {
    const { ca, issue, clock } = await testCluster();
    const [a, b] = [await issue('node/a'), await issue('tenant/acme/service/etl')];
    const verifier = new PeerVerifier({ bundles: ca, revocations: new Revocations(), clock });
    const seen = (socket: TLSSocket): string => {
      const chain: Uint8Array[] = [];
      for (let c = socket.getPeerCertificate(true); c?.raw !== undefined && chain.length < 4; c = c.issuerCertificate) chain.push(c.raw);
      return verifier.verify(chain).principal.spiffeId;
    };
    const tls = (svid: typeof a) => ({ key: svid.privateKey.export({ format: 'pem', type: 'pkcs8' }), cert: svid.certificateChainPem, ca: ca.trustBundlePem(), minVersion: 'TLSv1.3' as const });
    // As src/rpc/tls-listener.ts does it: `tls.createServer` of Node 24.21 loses the client's intermediates.
    let accept: (spiffeId: string) => void = () => undefined;
    const atServer = new Promise<string>((resolve) => (accept = resolve));
    const server = createServer((raw) => {
      const socket = new TLSSocket(raw, { isServer: true, secureContext: createSecureContext(tls(a)), requestCert: true, rejectUnauthorized: true });
      socket.once('secure', () => {
        accept(seen(socket));
        socket.end();
      });
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const client = connect({ ...tls(b), host: '127.0.0.1', port: (server.address() as AddressInfo).port, checkServerIdentity: () => undefined });
    await new Promise((resolve, reject) => client.once('secureConnect', resolve).once('error', reject));
    const atClient = seen(client);
    client.end();
    expect([await atServer, atClient]).toEqual(['spiffe://cluster.test/tenant/acme/service/etl', 'spiffe://cluster.test/node/a']);
    await new Promise((resolve) => server.close(resolve));
  });

  test('is recorded before it is handed out, and not handed out when the record fails', async () => {
    let fail = false;
    const issued: string[] = [];
    const { issue } = await testCluster({
      onIssued: async ({ kind, spiffeId, publicKeySha256 }) => {
        if (fail) throw new BulkheadError('UNAVAILABLE', 'the audit log is full');
        issued.push(`${kind} ${spiffeId} ${publicKeySha256}`);
      },
    });
    const svid = await issue('system/admin');
    const spki = createPublicKey(svid.privateKey).export({ format: 'der', type: 'spki' });
    expect(issued.map((line) => line.split(' ').slice(0, 2).join(' '))).toEqual(['root spiffe://cluster.test', 'intermediate spiffe://cluster.test', 'svid spiffe://cluster.test/system/admin']);
    expect(issued[2]).toContain(createHash('sha256').update(spki).digest('hex'));
    fail = true;
    await expect(issue('system/admin')).rejects.toThrow('audit log is full');
  });

  test('lives an hour unless told otherwise, never longer than 30 days or its intermediate', async () => {
    const { issue, clock, ca } = await testCluster();
    const second = (ms: number): number => Math.floor(ms / 1000) * 1000;
    expect((await issue('node/a')).notAfterMs).toBe(second(clock.nowMs() + SVID_TTL_MS));
    expect((await issue('node/a', MAX_SVID_TTL_MS)).notAfterMs).toBe(second(clock.nowMs() + MAX_SVID_TTL_MS));
    for (const bad of [0, -1, 999, MAX_SVID_TTL_MS + 1, Number.NaN, Number.POSITIVE_INFINITY]) await expect(issue('node/a', bad)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    const { notAfterMs } = ca.describe().intermediate;
    clock.set(notAfterMs - 60_000);
    expect((await issue('node/a')).notAfterMs).toBe(notAfterMs);
    clock.set(notAfterMs + 1_000);
    await expect(issue('node/a')).rejects.toMatchObject({ code: 'UNAVAILABLE' });
  });

  test('is only for our own trust domain and the five shapes of SPIFFE ID', async () => {
    const { ca } = await testCluster();
    const publicKeySpkiDer = publicKeyFromCsr(createCsr(newKey()));
    for (const bad of ['spiffe://other.test/node/a', 'spiffe://cluster.test', 'spiffe://cluster.test/tenant/acme/../globex/user/x', 'spiffe://cluster.test/x', 'node/a', '']) {
      await expect(ca.issueX509Svid({ spiffeId: bad as never, publicKeySpkiDer })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    }
  });
});

describe('a certificate request', () => {
  test('gives its key and nothing else, whatever names it asks for', async () => {
    const keys = (await webcrypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign', 'verify'])) as webcrypto.CryptoKeyPair;
    const request = await peculiar.Pkcs10CertificateRequestGenerator.create({
      name: 'CN=system:masters', keys, signingAlgorithm: { name: 'ECDSA', hash: 'SHA-256' },
      extensions: [new peculiar.SubjectAlternativeNameExtension([{ type: 'url', value: 'spiffe://cluster.test/system/admin' }, { type: 'dns', value: 'gateway.test' }]), new peculiar.BasicConstraintsExtension(true)],
    });
    const spki = publicKeyFromCsr(new Uint8Array(request.rawData));
    expect(Buffer.from(spki)).toEqual(Buffer.from(await webcrypto.subtle.exportKey('spki', keys.publicKey)));
    const { ca, clock } = await testCluster();
    const svid = await ca.issueX509Svid({ spiffeId: id('tenant/acme/user/ana'), publicKeySpkiDer: spki });
    expect(verifyChain(svid.chainDer, ca.bundle(), clock.nowMs()).id).toBe('spiffe://cluster.test/tenant/acme/user/ana');
    const leaf = new peculiar.X509Certificate(Uint8Array.from(svid.chainDer[0]!));
    expect([leaf.subject, leaf.getExtension(peculiar.BasicConstraintsExtension)?.ca]).toEqual(['O=Bulkhead', false]);
  });

  test('of ours is understood by openssl and @peculiar/x509', async () => {
    const csr = createCsr(newKey());
    expect(await new peculiar.Pkcs10CertificateRequest(csr).verify()).toBe(true);
    execFileSync('openssl', ['req', '-verify', '-inform', 'DER', '-noout'], { input: csr, stdio: ['pipe', 'pipe', 'pipe'] });
  });

  test('is refused with a key of another kind', () => {
    for (const { privateKey } of [generateKeyPairSync('ec', { namedCurve: 'P-384' }), generateKeyPairSync('ec', { namedCurve: 'secp256k1' }), generateKeyPairSync('rsa', { modulusLength: 2048 })]) {
      expect(() => publicKeyFromCsr(createCsr(privateKey))).toThrow(BulkheadError);
    }
  });

  test('is refused with any byte changed: nobody can ask for a key that they do not hold', () => {
    const csr = createCsr(newKey());
    for (let at = 0; at < csr.length; at++) {
      const altered = Uint8Array.from(csr);
      altered[at] = (altered[at] ?? 0) ^ 0x01;
      expect(() => publicKeyFromCsr(altered), `byte ${at}`).toThrow(BulkheadError);
    }
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      expect(() => publicKeyFromCsr(bytes)).toThrow(BulkheadError);
    }), { numRuns: 200 });
    expect(() => publicKeyFromCsr(new Uint8Array(5_000))).toThrow('larger');
  });
});

describe('the life of an authority', () => {
  test('survives a restart with the encrypted file: same roots, same issuer, old SVIDs hold', async () => {
    await inTemporaryDir(async (dir) => {
      const open = async () => testCluster({ keyManager: await EncryptedFileKeyManager.open(join(dir, 'keys')), storage: fileStorage(join(dir, 'ca.json')) });
      const before = await open();
      const svid = await before.issue('node/a');
      const after = await open();
      expect(after.ca.trustBundlePem()).toBe(before.ca.trustBundlePem());
      expect(after.ca.describe()).toEqual(before.ca.describe());
      expect(verifyChain(svid.chainDer, after.ca.bundle(), after.clock.nowMs()).id).toBe('spiffe://cluster.test/node/a');
      expect(verifyChain((await after.issue('node/b')).chainDer, before.ca.bundle(), after.clock.nowMs()).id).toBe('spiffe://cluster.test/node/b');
    });
  });

  test('refuses a stored state that was changed: a foreign root, another domain, lost state, other keys', async () => {
    const cluster = await testCluster();
    const other = await testCluster();
    const good = cluster.stored.text!;
    const state = JSON.parse(good) as { roots: { state: string }[]; jwtKeys: unknown[] };
    const foreign = JSON.parse(other.stored.text!) as typeof state;
    const open = (text: string | undefined, keyManager = cluster.options.keyManager) => CertificateAuthority.open({ ...cluster.options, keyManager, storage: { load: async () => text, save: async () => undefined } });
    await expect(open(JSON.stringify({ ...state, roots: [...state.roots, { ...foreign.roots[0], state: 'retired' }] }))).rejects.toThrow('does not hold key');
    await expect(open(JSON.stringify({ ...state, roots: foreign.roots }))).rejects.toThrow('does not hold key');
    await expect(open(JSON.stringify({ ...state, jwtKeys: [...state.jwtKeys, ...foreign.jwtKeys] }))).rejects.toThrow('does not hold key');
    await expect(open(JSON.stringify({ ...state, roots: state.roots.map((r) => ({ ...r, state: 'retired' })) }))).rejects.toThrow('exactly one active root');
    await expect(open(JSON.stringify({ ...state, trustDomain: 'other.test' }))).rejects.toThrow('another trust domain');
    await expect(open(JSON.stringify({ ...state, extra: 1 }))).rejects.toThrow('damaged');
    await expect(open('{')).rejects.toThrow('damaged');
    await expect(open(undefined)).rejects.toThrow('its keys are there');
    await expect(open(good, new MemoryKeyManager())).rejects.toThrow('does not hold key');
    expect((await open(good)).trustBundlePem()).toBe(cluster.ca.trustBundlePem());
  });

  test('a first start that died before its state was stored begins again', async () => {
    const keyManager = new MemoryKeyManager();
    await expect(testCluster({ keyManager, storage: { load: async () => undefined, save: async () => Promise.reject(new Error('killed')) } })).rejects.toThrow('killed');
    const { ca, issue, clock } = await testCluster({ keyManager });
    expect(verifyChain((await issue('node/a')).chainDer, ca.bundle(), clock.nowMs()).serial).toMatch(/^[0-9a-f]{32}$/);
  });

  test('a new intermediate signs from then on; SVIDs of the old one hold to their end; its key is gone', async () => {
    const { ca, issue, clock, options, stored } = await testCluster();
    const before = await issue('node/a');
    const oldKey = (JSON.parse(stored.text!) as { intermediate: { keyId: string } }).intermediate.keyId;
    await ca.rotateIntermediate();
    const after = await issue('node/a');
    expect(Buffer.from(after.chainDer[1]!)).not.toEqual(Buffer.from(before.chainDer[1]!));
    for (const svid of [before, after]) expect(verifyChain(svid.chainDer, ca.bundle(), clock.nowMs()).id).toBe('spiffe://cluster.test/node/a');
    expect(() => verifyChain([before.chainDer[0]!, after.chainDer[1]!], ca.bundle(), clock.nowMs())).toThrow('no chain');
    expect(await options.keyManager.publicKey(oldKey)).toBeUndefined();
    expect((await CertificateAuthority.open(options)).describe()).toEqual(ca.describe());
  });

  test('rotates its intermediate when a third of its life is left', async () => {
    const { ca, clock, issued } = await testCluster();
    expect(await ca.rotateIfDue()).toBe(false);
    clock.advance(240 * DAY_MS);
    expect(await ca.rotateIfDue()).toBe(false);
    clock.advance(5 * DAY_MS);
    expect(await ca.rotateIfDue()).toBe(true);
    expect(await ca.rotateIfDue()).toBe(false);
    expect(issued.filter((c) => c.kind === 'intermediate').length).toBe(2);
  });

  test('a root is replaced without a moment in which a peer with either bundle refuses a good SVID', async () => {
    const { ca, issue, clock } = await testCluster();
    const accepts = (svid: { chainDer: readonly Uint8Array[] }, bundle: TrustBundle): boolean => {
      try {
        return verifyChain(svid.chainDer, bundle, clock.nowMs()) !== undefined;
      } catch {
        return false;
      }
    };
    const told: number[] = [];
    ca.onChange((bundle) => told.push(bundle.roots.length));
    const [first, bundle1] = [await issue('node/a'), ca.bundle()];
    await ca.prepareRoot();
    await expect(ca.prepareRoot()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    const [second, bundle2] = [await issue('node/a'), ca.bundle()];
    expect([accepts(second, bundle1), accepts(first, bundle2)]).toEqual([true, true]);
    await ca.activateRoot();
    await expect(ca.activateRoot()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    const third = await issue('node/a');
    expect([accepts(third, bundle1), accepts(third, bundle2), accepts(first, ca.bundle())]).toEqual([false, true, true]);
    await ca.retireRoots();
    expect([accepts(third, ca.bundle()), accepts(first, ca.bundle())]).toEqual([true, false]);
    expect([told, ca.bundle().sequence > bundle2.sequence]).toEqual([[2, 1], true]);
    expect(TrustBundle.fromJwks(trustDomain, ca.trustBundleJwks()).toPem()).toBe(ca.trustBundlePem());
  });

  test('a change that could not be stored is not in force', async () => {
    let fail = false;
    const stored = { text: undefined as string | undefined };
    const { ca, issue, clock, options } = await testCluster({ storage: { load: async () => stored.text, save: async (text) => (fail ? Promise.reject(new Error('disk full')) : void (stored.text = text)) } });
    const before = ca.describe();
    fail = true;
    await expect(ca.rotateIntermediate()).rejects.toThrow('disk full');
    await expect(ca.prepareRoot()).rejects.toThrow('disk full');
    expect(ca.describe()).toEqual(before);
    expect(verifyChain((await issue('node/a')).chainDer, ca.bundle(), clock.nowMs()).id).toBe('spiffe://cluster.test/node/a');
    fail = false;
    await Promise.all([ca.rotateIntermediate(), ca.prepareRoot(), ca.rotateJwtKey()]);
    expect((await CertificateAuthority.open(options)).describe()).toEqual(ca.describe());
    expect(ca.describe().roots.map((r) => r.state)).toEqual(['active', 'prepared']);
  });
});

describe('the trust bundle', () => {
  test('is a SPIFFE JWK set that reads back the same', async () => {
    const { ca } = await testCluster();
    const jwks = JSON.parse(ca.trustBundleJwks()) as { keys: Record<string, unknown>[] };
    expect(jwks).toMatchObject({ spiffe_sequence: 1, keys: [{ use: 'x509-svid', kty: 'EC', crv: 'P-256' }, { use: 'jwt-svid', kty: 'EC', crv: 'P-256' }] });
    expect(createPublicKey({ key: jwks.keys[0] as never, format: 'jwk' }).export({ format: 'der', type: 'spki' })).toEqual(Buffer.from(ca.bundle().roots[0]!.spkiDer));
    expect(TrustBundle.fromJwks(trustDomain, ca.trustBundleJwks()).toJwks()).toEqual(jwks);
    expect(TrustBundle.fromPem(trustDomain, ca.trustBundlePem()).toPem()).toBe(ca.trustBundlePem());
  });

  test('refuses malformed and mismatched sets', async () => {
    const { ca } = await testCluster();
    const jwks = JSON.parse(ca.trustBundleJwks()) as { keys: Record<string, unknown>[]; spiffe_sequence: number };
    const [root, jwt] = jwks.keys;
    const svid = await (await testCluster()).issue('node/a');
    for (const bad of [
      '', 'null', '[]', '{}', { ...jwks, keys: [] }, { ...jwks, keys: [jwt] }, { ...jwks, spiffe_sequence: -1 }, { ...jwks, keys: [{ ...root, use: 'sig' }] }, { ...jwks, keys: [{ ...root, x5c: [] }] }, { ...jwks, keys: [{ ...root, x: jwt?.x }] },
      { ...jwks, keys: [root, { ...jwt, x: root?.x }] }, { ...jwks, keys: [root, { ...jwt, crv: 'P-384' }] }, { ...jwks, keys: [root, { ...jwt, kid: '' }] }, { ...jwks, keys: [{ ...root, x5c: [Buffer.from(svid.chainDer[0]!).toString('base64')] }] }, { ...jwks, keys: Array.from({ length: 33 }, () => root) },
    ]) expect(() => TrustBundle.fromJwks(trustDomain, bad), JSON.stringify(bad).slice(0, 200)).toThrow(BulkheadError);
    for (const bad of ['', 'x', svid.certificateChainPem, `# roots\n${ca.trustBundlePem()}`, ca.trustBundlePem().replace('CERTIFICATE', 'TRUSTED CERTIFICATE'), ca.trustBundlePem().replaceAll('CERTIFICATE', 'PRIVATE KEY'), ca.trustBundlePem().replace(/=*\n-----END/, '!\n-----END')]) {
      expect(() => TrustBundle.fromPem(trustDomain, bad)).toThrow(BulkheadError);
    }
  });
});

describe('when to rotate', () => {
  test('renewal is at half life, 10 % of the life sooner or later', () => {
    fc.assert(fc.property(fc.nat(2 ** 40), fc.integer({ min: 1_000, max: 30 * DAY_MS }), fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), (from, life, unit) => {
      const at = renewalTimeMs(from, from + life, unit);
      expect(at).toBeGreaterThanOrEqual(from + 0.4 * life - 1);
      expect(at).toBeLessThanOrEqual(from + 0.6 * life + 1);
    }));
  });
  test('retries wait longer and longer, at most 30 s, never less than 125 ms', () => {
    fc.assert(fc.property(fc.integer({ min: 1, max: 100_000 }), fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), (attempt, unit) => {
      const wait = retryDelayMs(attempt, unit);
      expect(wait >= 125 && wait <= 30_000 && wait >= retryDelayMs(attempt, 0)).toBe(true);
    }));
    expect([1, 2, 3, 8, 50].map((n) => retryDelayMs(n, 0))).toEqual([125, 250, 500, 15_000, 15_000]);
  });
  test('an authority is due before what it signs would outlive it', () => {
    expect(isAuthorityDue(0, 360 * DAY_MS, 100 * DAY_MS, 30 * DAY_MS)).toBe(false);
    expect(isAuthorityDue(0, 360 * DAY_MS, 241 * DAY_MS, 30 * DAY_MS)).toBe(true);
    expect(isAuthorityDue(0, 90 * DAY_MS, 31 * DAY_MS, 30 * DAY_MS)).toBe(true);
  });
  test('an SVID is dated back by exactly the tolerated clock difference, which revocation adds again', async () => {
    const { ca, issue, clock } = await testCluster();
    clock.set(Math.floor(clock.nowMs() / 1000) * 1000);
    const svid = await issue('node/a');
    expect(verifyChain(svid.chainDer, ca.bundle(), clock.nowMs()).notBeforeMs).toBe(clock.nowMs() - CLOCK_SKEW_MS);
    const revocations = new Revocations();
    const verifier = new PeerVerifier({ bundles: ca, revocations, clock });
    revocations.apply({ serials: [], identities: [{ spiffeId: 'spiffe://cluster.test/node/a', revokedBeforeMs: clock.nowMs() }] }, 1);
    expect(verifier.verify(svid.chainDer).principal.name).toBe('a');
    revocations.apply({ serials: [], identities: [{ spiffeId: 'spiffe://cluster.test/node/a', revokedBeforeMs: clock.nowMs() + 1 }] }, 2);
    expect(() => verifier.verify(svid.chainDer)).toThrow('revoked');
  });
});

test('keys and random numbers are not shared between certificates', async () => {
  const { issue, issued } = await testCluster({ random });
  for (let i = 0; i < 20; i++) await issue('node/a');
  expect(new Set(issued.map((c) => c.serial)).size).toBe(22);
});

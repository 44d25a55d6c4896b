/** Session credentials that someone altered, made up, kept too long or sent to the wrong place. Oracle for the good ones: jose on its own. */
import { createHmac, createPublicKey, sign, type KeyObject } from 'node:crypto';
import fc from 'fast-check';
import { createLocalJWKSet, jwtVerify } from 'jose';
import { beforeAll, describe, expect, test } from 'vitest';
import { BulkheadError } from '../../src/base/errors.ts';
import { CLOCK_SKEW_MS, SESSION_TTL_MS } from '../../src/base/limits.ts';
import { principalFromSpiffeId } from '../../src/base/principal.ts';
import { JwtAuthority, TrustBundle, verifySession } from '../../src/pki/pki.ts';
import { keyName } from '../../src/pki/trust-bundle.ts';
import { newKey, testCluster, trustDomain, type TestCluster } from '../spec/pki-cluster.ts';

const audience = 'spiffe://cluster.test/node/n1';
const ana = principalFromSpiffeId('spiffe://cluster.test/tenant/acme/user/ana');
const job = principalFromSpiffeId('spiffe://cluster.test/tenant/acme/job/job-1', { kind: 'user', name: 'ana' });

let cluster: TestCluster;
let jwt: JwtAuthority;
/** A key that is in the bundle, so that tokens made here fail for their content and not for their key. */
let ownKey: KeyObject;
let bundle: TrustBundle;
let good: string;

beforeAll(async () => {
  cluster = await testCluster();
  cluster.clock.set(Math.floor(cluster.clock.nowMs() / 1000) * 1000);
  jwt = new JwtAuthority({ signer: cluster.ca, clock: cluster.clock });
  ownKey = newKey();
  const real = cluster.ca.bundle();
  bundle = new TrustBundle(trustDomain, 2, real.roots, [...real.jwtKeys.values(), { kid: ownKid(), publicKey: createPublicKey(ownKey) }]);
  good = (await jwt.issueSession({ principal: job, audience, jti: 'j-1', tenantNumber: 7 })).token;
});

const ownKid = (): string => keyName(createPublicKey(ownKey).export({ format: 'der', type: 'spki' }));
const seconds = (): number => cluster.clock.nowMs() / 1000;
const part = (json: unknown): string => Buffer.from(typeof json === 'string' ? json : JSON.stringify(json)).toString('base64url');
const claims = (): Record<string, unknown> => ({ sub: ana.spiffeId, aud: [audience], iat: seconds(), exp: seconds() + 300, jti: 'j-2', tenant_number: 7 });

/** A token signed by a key of the bundle. */
function forge(payload: unknown, header: Record<string, unknown> = {}): string {
  const signed = `${part({ alg: 'ES256', kid: ownKid(), typ: 'JWT', ...header })}.${part(payload)}`;
  return `${signed}.${sign('sha256', Buffer.from(signed), { key: ownKey, dsaEncoding: 'ieee-p1363' }).toString('base64url')}`;
}

async function answer(token: unknown, options: Partial<Parameters<typeof verifySession>[1]> = {}): Promise<string> {
  try {
    const session = await verifySession(token, { audience, nowMs: cluster.clock.nowMs(), bundle, ...options });
    return `ACCEPTED as ${session.principal.spiffeId}`;
  } catch (error) {
    if (!(error instanceof BulkheadError) || error.code !== 'UNAUTHENTICATED') throw error;
    return error.safeMessage;
  }
}

test('a good session carries its principal, tenant number and end; jose agrees from the published JWK set', async () => {
  expect(await verifySession(good, { audience, nowMs: cluster.clock.nowMs(), bundle: TrustBundle.fromJwks(trustDomain, cluster.ca.trustBundleJwks()) })).toEqual({
    principal: job, tenantNumber: 7, jti: 'j-1', issuedAtMs: cluster.clock.nowMs(), expiresAtMs: cluster.clock.nowMs() + SESSION_TTL_MS,
  });
  // jose knows `sig` as use and not SPIFFE's `jwt-svid`.
  const { keys } = JSON.parse(cluster.ca.trustBundleJwks()) as { keys: Record<string, unknown>[] };
  const foreign = createLocalJWKSet({ keys: keys.filter((k) => k['use'] === 'jwt-svid').map((k) => ({ ...k, kty: 'EC', use: 'sig' })) });
  const { payload } = await jwtVerify(good, foreign, { audience, currentDate: new Date(cluster.clock.nowMs()) });
  expect(payload.sub).toBe(job.spiffeId);
  expect(await answer(forge(claims()))).toBe(`ACCEPTED as ${ana.spiffeId}`);
});

test('the authority refuses to issue what the verifier would refuse', async () => {
  const request = { principal: ana, audience, jti: 'j', tenantNumber: 7 };
  for (const bad of [
    { ttlMs: SESSION_TTL_MS + 1 }, { ttlMs: 0 }, { ttlMs: Number.NaN }, { audience: '' }, { jti: '' }, { jti: 'a b' }, { tenantNumber: -1 }, { tenantNumber: 1.5 }, { tenantNumber: 2 ** 32 },
    { principal: principalFromSpiffeId('spiffe://other.test/tenant/acme/user/ana') },
  ]) await expect(jwt.issueSession({ ...request, ...bad }), JSON.stringify(bad)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
});

describe('a session credential is refused', () => {
  const own = (change: (c: Record<string, unknown>) => void, header: Record<string, unknown> = {}) => () => {
    const changed = claims();
    change(changed);
    return forge(changed, header);
  };
  const without = (claim: string) => own((c) => void delete c[claim]);

  test.each<[string, RegExp, () => unknown]>([
    ['as undefined', /not a text/, () => undefined],
    ['as an array of one token', /not a text/, () => [good]],
    ['as an empty text', /three parts/, () => ''],
    ['with four parts', /three parts/, () => `${good}.x`],
    ['beyond 4096 characters', /at most 4096/, own((c) => void (c['sub'] = `spiffe://cluster.test/${'a'.repeat(5000)}`))],
    ['unsigned, with algorithm none', /its header/, () => `${part({ alg: 'none', kid: ownKid(), typ: 'JWT' })}.${part(claims())}.`],
    ['with algorithm none and a signature', /its header/, own(() => undefined, { alg: 'none' })],
    ['with HMAC under the public key', /its header/, () => {
      const signed = `${part({ alg: 'HS256', kid: ownKid(), typ: 'JWT' })}.${part(claims())}`;
      return `${signed}.${createHmac('sha256', createPublicKey(ownKey).export({ format: 'pem', type: 'spki' })).update(signed).digest('base64url')}`;
    }],
    ['with algorithm ES384', /its header/, own(() => undefined, { alg: 'ES384' })],
    ['with a key inside', /its header/, own(() => undefined, { jwk: { kty: 'EC' } })],
    ['with a URL of keys', /its header/, own(() => undefined, { jku: 'https://keys.test' })],
    ['with a critical header', /its header/, own(() => undefined, { crit: ['b64'], b64: false })],
    ['with another type', /its header/, own(() => undefined, { typ: 'at+jwt' })],
    ['without a type', /its header/, own(() => undefined, { typ: undefined })],
    ['with an unknown key', /key is not in the trust bundle/, own(() => undefined, { kid: 'nobody' })],
    ['with a key name from a prototype', /key is not in the trust bundle/, own(() => undefined, { kid: '__proto__' })],
    ['with the name of another key of the bundle', /signature does not hold/, own(() => undefined, { get kid() { return [...cluster.ca.bundle().jwtKeys.keys()][0]; } })],
    ['for another audience', /for another audience/, own((c) => void (c['aud'] = ['spiffe://cluster.test/node/n2']))],
    ['for two audiences', /not those of a session/, own((c) => void (c['aud'] = [audience, 'spiffe://cluster.test/node/n2']))],
    ['for an audience as plain text', /not those of a session/, own((c) => void (c['aud'] = audience))],
    ['without an audience', /not those of a session/, without('aud')],
    ['without an end', /not those of a session/, without('exp')],
    ['without a beginning', /not those of a session/, without('iat')],
    ['without an id', /not those of a session/, without('jti')],
    ['without a subject', /not those of a session/, without('sub')],
    ['without a tenant number', /not those of a session/, without('tenant_number')],
    ['with a claim that nobody here knows', /not those of a session/, own((c) => void (c['admin'] = true))],
    ['with a fraction of a second', /not those of a session/, own((c) => void (c['exp'] = seconds() + 0.5))],
    ['with its end as text', /not those/, own((c) => void (c['exp'] = String(seconds() + 60)))],
    ['living longer than five minutes', /lives longer/, own((c) => void (c['exp'] = seconds() + 301))],
    ['ending before it begins', /lives longer/, own((c) => void (c['exp'] = seconds() - 1))],
    ['from the future', /from the future/, own((c) => Object.assign(c, { iat: seconds() + 31, exp: seconds() + 200 }))],
    ['of another trust domain', /trust domain is not ours/, own((c) => void (c['sub'] = 'spiffe://other.test/tenant/acme/user/ana'))],
    ['with a malformed SPIFFE ID', /SPIFFE ID is not valid/, own((c) => void (c['sub'] = 'spiffe://cluster.test/tenant/acme/../globex/user/ana'))],
    ['with a submitter though it is no job', /only a job/, own((c) => void (c['submitter'] = { kind: 'user', name: 'root' }))],
    ['with a submitter of another kind', /not those of a session/, own((c) => Object.assign(c, { sub: job.spiffeId, submitter: { kind: 'system', name: 'admin' } }))],
    ['of a tenant under number 0', /tenant number/, own((c) => void (c['tenant_number'] = 0))],
    ['of a system component with a tenant number', /tenant number/, own((c) => void (c['sub'] = 'spiffe://cluster.test/system/admin'))],
    ['with JSON that is not an object', /not those/, () => forge([1])],
    ['with broken JSON in the header', /not JSON/, () => `${part('{')}.${part(claims())}.${good.split('.')[2]}`],
    ['with an ASN.1 signature', /64 bytes/, () => {
      const signed = forge(claims()).split('.').slice(0, 2).join('.');
      return `${signed}.${sign('sha256', Buffer.from(signed), ownKey).toString('base64url')}`;
    }],
    ['with a signature of zeros', /signature does not hold/, () => `${good.split('.').slice(0, 2).join('.')}.${Buffer.alloc(64).toString('base64url')}`],
    ['with padding', /canonical/, () => `${good}==`],
    ['with a line feed at its end', /canonical/, () => `${good}\n`],
    ['with another spelling of its last character', /canonical/, () => {
      const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
      return good.slice(0, -1) + alphabet[alphabet.indexOf(good.at(-1) as string) | 1];
    }],
  ])('%s', async (_what, why, make) => {
    expect(await answer(make())).toMatch(why);
  });

  test('once it has ended, to the second, whatever the clock tolerance', async () => {
    const end = cluster.clock.nowMs() + SESSION_TTL_MS;
    expect(await answer(good, { nowMs: end - 1 })).toBe(`ACCEPTED as ${job.spiffeId}`);
    expect(await answer(good, { nowMs: end })).toMatch(/expired/);
    expect(await answer(good, { nowMs: cluster.clock.nowMs() - CLOCK_SKEW_MS })).toBe(`ACCEPTED as ${job.spiffeId}`);
  });

  test('under the bundle of another cluster of the same name', async () => {
    expect(await answer(good, { bundle: (await testCluster()).ca.bundle() })).toMatch(/key is not in the trust bundle/);
  });

  test('with any character changed', async () => {
    await fc.assert(fc.asyncProperty(fc.nat(good.length - 1), fc.constantFrom(...'AQgw9-_.a=+/ '), async (at, character) => {
      fc.pre(good[at] !== character);
      expect(await answer(good.slice(0, at) + character + good.slice(at + 1))).not.toMatch(/ACCEPTED/);
    }), { numRuns: 300 });
  });
});

test('a new JWT key is published before it signs; sessions of the old key hold to their end, then the key leaves the bundle', async () => {
  const own = await testCluster();
  const authority = new JwtAuthority({ signer: own.ca, clock: own.clock });
  const issue = async (): Promise<string> => (await authority.issueSession({ principal: ana, audience, jti: 'j', tenantNumber: 7 })).token;
  const kid = (token: string): string => (JSON.parse(Buffer.from(token.split('.')[0] as string, 'base64url').toString()) as { kid: string }).kid;
  const check = (token: string): Promise<string> => answer(token, { bundle: own.ca.bundle(), nowMs: own.clock.nowMs() });
  const first = await issue();
  await own.ca.rotateJwtKey();
  expect(own.ca.bundle().jwtKeys.size).toBe(2);
  expect(kid(await issue())).toBe(kid(first));
  own.clock.advance(60_000);
  const second = await issue();
  expect(kid(second)).not.toBe(kid(first));
  expect([await check(first), await check(second)]).toEqual([`ACCEPTED as ${ana.spiffeId}`, `ACCEPTED as ${ana.spiffeId}`]);
  own.clock.advance(SESSION_TTL_MS + CLOCK_SKEW_MS + 1_000);
  await own.ca.rotateJwtKey();
  expect([...own.ca.bundle().jwtKeys.keys()].includes(kid(first))).toBe(false);
  expect(own.ca.bundle().jwtKeys.has(kid(second))).toBe(true);
});

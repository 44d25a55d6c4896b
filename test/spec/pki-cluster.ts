/** An authority with a clock that tests move, and what tests ask of it again and again. */
import { generateKeyPairSync, randomBytes, type KeyObject } from 'node:crypto';
import { parseSpiffeId, parseTrustDomain, type SpiffeId } from '../../src/base/ids.ts';
import { CertificateAuthority, MemoryKeyManager, createCsr, publicKeyFromCsr, type AuthorityOptions, type IssuedCertificate, type IssuedSvid } from '../../src/pki/pki.ts';

export const DAY_MS = 24 * 3_600_000;
export const trustDomain = parseTrustDomain('cluster.test');
export const random = { bytes: (length: number): Uint8Array => randomBytes(length) };
export const id = (path: string): SpiffeId => parseSpiffeId(`spiffe://cluster.test/${path}`).id;
export const newKey = (): KeyObject => generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey;

export interface TestCluster {
  readonly clock: { nowMs: () => number; set(ms: number): void; advance(ms: number): void };
  readonly options: AuthorityOptions;
  readonly issued: IssuedCertificate[];
  readonly stored: { text: string | undefined };
  readonly ca: CertificateAuthority;
  issue(path: string, ttlMs?: number): Promise<IssuedSvid & { privateKey: KeyObject }>;
}

export async function testCluster(overrides: Partial<AuthorityOptions> = {}): Promise<TestCluster> {
  let nowMs = Date.now();
  const clock = { nowMs: () => nowMs, set: (ms: number) => void (nowMs = ms), advance: (ms: number) => void (nowMs += ms) };
  const issued: IssuedCertificate[] = [];
  const stored: TestCluster['stored'] = { text: undefined };
  const options: AuthorityOptions = {
    trustDomain, clock, random, keyManager: new MemoryKeyManager(),
    storage: { load: async () => stored.text, save: async (text) => void (stored.text = text) },
    onIssued: async (certificate) => void issued.push(certificate),
    ...overrides,
  };
  const ca = await CertificateAuthority.open(options);
  const issue: TestCluster['issue'] = async (path, ttlMs) => {
    const privateKey = newKey();
    return { privateKey, ...(await ca.issueX509Svid({ spiffeId: id(path), publicKeySpkiDer: publicKeyFromCsr(createCsr(privateKey)), ...(ttlMs === undefined ? {} : { ttlMs }) })) };
  };
  return { clock, options, issued, stored, ca, issue };
}

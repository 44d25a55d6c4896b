/** A cluster's identities, policy and audit in memory, for the tests of src/rpc: real authority, real verifier, real sockets. */
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import type { AuditRecord } from '../../src/base/audit-record.ts';
import type { DecisionRequest } from '../../src/base/decision.ts';
import { parseTrustDomain, spiffeId, type SpiffeId, type SpiffePath } from '../../src/base/ids.ts';
import type { PrincipalKind } from '../../src/base/principal.ts';
import { CertificateAuthority, createCsr, MemoryKeyManager, PeerVerifier, publicKeyFromCsr, Revocations } from '../../src/pki/pki.ts';
import type { MethodRow, OwnIdentity, ServerSecurity } from '../../src/rpc/rpc.ts';

export const TRUST_DOMAIN = parseTrustDomain('cluster.test');
export const clock = { nowMs: () => Date.now(), monotonicMs: () => performance.now() };
const random = { bytes: (length: number) => Uint8Array.from(randomBytes(length)) };

/** An identity that can be replaced, as a renewal does. */
export class TestIdentity implements OwnIdentity {
  readonly spiffeId: SpiffeId;
  #current: ReturnType<OwnIdentity['current']>;
  readonly #listeners = new Set<() => void>();

  constructor(id: SpiffeId, current: ReturnType<OwnIdentity['current']>) {
    this.spiffeId = id;
    this.#current = current;
  }

  current(): ReturnType<OwnIdentity['current']> {
    return this.#current;
  }

  replace(current: ReturnType<OwnIdentity['current']>): void {
    this.#current = current;
    for (const listener of [...this.#listeners]) listener();
  }

  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  get listenerCount(): number {
    return this.#listeners.size;
  }
}

export interface Fixture {
  readonly authority: CertificateAuthority;
  readonly revocations: Revocations;
  readonly peers: PeerVerifier;
  issue(path: SpiffePath, ttlMs?: number): Promise<TestIdentity>;
  material(id: SpiffeId, ttlMs?: number): Promise<ReturnType<OwnIdentity['current']>>;
  /** Every record, with the log it went to. */
  readonly records: { log: string; record: AuditRecord }[];
  decide: (request: DecisionRequest) => boolean;
  security(identity: OwnIdentity, rows: readonly MethodRow[]): ServerSecurity;
}

export const user = (tenant: string, name: string): SpiffePath => ({ kind: 'user', tenant, name }) as SpiffePath;
export const node = (name: string): SpiffePath => ({ kind: 'node', node: name }) as SpiffePath;
export const system = (component: string): SpiffePath => ({ kind: 'system', component });

export async function openFixture(): Promise<Fixture> {
  let stored: string | undefined;
  const authority = await CertificateAuthority.open({
    trustDomain: TRUST_DOMAIN, keyManager: new MemoryKeyManager(), clock, random, onIssued: async () => undefined,
    storage: { load: async () => stored, save: async (text) => void (stored = text) },
  });
  const revocations = new Revocations();
  const peers = new PeerVerifier({ bundles: authority, revocations, clock });
  const material = async (id: SpiffeId, ttlMs?: number): Promise<ReturnType<OwnIdentity['current']>> => {
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const issued = await authority.issueX509Svid({ spiffeId: id, publicKeySpkiDer: publicKeyFromCsr(createCsr(privateKey)), ...(ttlMs === undefined ? {} : { ttlMs }) });
    return { privateKeyPem: privateKey.export({ format: 'pem', type: 'pkcs8' }) as string, certificateChainPem: issued.certificateChainPem, trustBundlePem: authority.trustBundlePem() };
  };
  const records: { log: string; record: AuditRecord }[] = [];
  const fixture: Fixture = {
    authority, revocations, peers, material, records,
    decide: () => true,
    async issue(path, ttlMs) {
      const id = spiffeId(TRUST_DOMAIN, path);
      return new TestIdentity(id, await material(id, ttlMs));
    },
    security: (identity, rows) => ({
      identity, peers,
      decisions: { version: 7, decide: (request) => ({ allow: fixture.decide(request), rule: 'test', policyVersion: 7 }) },
      audit: async (log, record) => {
        await new Promise((resolve) => setImmediate(resolve));
        records.push({ log, record });
      },
      methods: new Map(rows.map((row) => [row.method, row])),
    }),
  };
  return fixture;
}

const ALL_KINDS: readonly PrincipalKind[] = ['user', 'service', 'job', 'node', 'system'];

/** A row with defaults: everybody, the caller's own tenant. */
export function row(method: string, part: Partial<MethodRow> = {}): MethodRow {
  return { method, action: 'job.list', resource: 'job', callers: ALL_KINDS, tenant: 'own', name: undefined, ...part };
}

export const JOB_ROWS: readonly MethodRow[] = [
  row('bulkhead.v1.Jobs/List', { tenant: { field: 'tenant' } }),
  row('bulkhead.v1.Jobs/Get', { action: 'job.read', name: { field: 'job_id' } }),
  row('bulkhead.v1.Jobs/Stop', { action: 'job.stop', name: { field: 'jobId' }, callers: ['user'] }),
  row('bulkhead.v1.Jobs/DeleteSubmission', { action: 'job.delete', name: { field: 'job_id' } }),
];
export const CALLS_ROW = row('bulkhead.v1.Calls/Attach', { action: 'session.open', resource: 'session', callers: ['user', 'service', 'job'] });
export const PEERS_ROW = row('bulkhead.v1.Peers/Exchange', { action: 'peer.exchange', resource: 'node', tenant: 'none', callers: ['node'] });

/** Waits until the condition holds; the limit only bounds a failing test. */
export async function until(condition: () => boolean, what: string, limitMs = 5_000): Promise<void> {
  const end = performance.now() + limitMs;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`did not happen: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
